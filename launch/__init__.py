"""Templates of jobs for clusters, installed as `loopmoe_launch`.

Plain files: `@{name}` is filled in, and a line that ends in `# if X` is kept only where X holds.
`loopmoe train launcher=slurm launcher.dry_run=true` prints the result.
"""
