"""Process groups of a run."""
