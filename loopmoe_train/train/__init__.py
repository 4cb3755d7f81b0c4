"""The trainer. Read ``step.py`` first: one optimizer step, top to bottom; then ``run.py``."""
