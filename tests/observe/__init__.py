"""Tests of loopmoe_train.observe (no torch)."""
