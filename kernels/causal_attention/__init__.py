"""Causal softmax attention in float32 on a processor, for sequences of up to MAX_LENGTH."""

from loopmoe_kernels.causal_attention.blocked import MAX_LENGTH, causal_attention

__all__ = ["MAX_LENGTH", "causal_attention"]
