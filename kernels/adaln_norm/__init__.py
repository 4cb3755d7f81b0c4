"""RMSNorm without a scale of its own, modulated per token: ``(1 + gamma) * norm(h) + beta``."""

from loopmoe_kernels.adaln_norm.fused import adaln_norm

__all__ = ["adaln_norm"]
