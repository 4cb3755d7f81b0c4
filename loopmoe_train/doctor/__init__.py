"""What is wrong with this machine, this cluster, this run; and the command that puts it right.

One file a group; a check is a plain function that takes what it looks at (a folder as ``/dev``, an
environment, a limit) and returns :class:`loopmoe_train.doctor.check.Check`. `node` says which are
made on a machine, `cluster` what all ranks do together, `postmortem` reads what a run has left.
No torch, but for `checkpoint`, `device`, `ops`, `rates`, `cluster` and `meeting`.
"""
