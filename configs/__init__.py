"""Hydra presets, installed as `loopmoe_configs`: a folder is a group (GROUP=NAME)."""
