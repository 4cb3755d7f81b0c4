"""What the user sees: metrics on disk, progress on the console, pictures and a report.

Nothing in here imports torch, so a finished run can be read on any machine.
"""
