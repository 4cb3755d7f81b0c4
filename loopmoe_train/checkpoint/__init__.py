"""Saving and resuming on the same layout."""
