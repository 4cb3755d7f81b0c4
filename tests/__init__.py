"""Tests mirror the tree of the package."""

import loopmoe_train  # noqa: F401  (ports megatron.core, whatever a test module imports first)
