"""From a run folder to running processes."""
