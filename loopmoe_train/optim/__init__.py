"""Optimizer and learning-rate schedule: megatron-core's, from the run's configuration."""
