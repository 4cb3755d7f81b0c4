"""Bash scripts, read and followed without running anything."""
