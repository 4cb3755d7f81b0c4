"""RMSNorm with a static scale: ``w * h / sqrt(mean(h^2) + eps)``."""

from loopmoe_kernels.rms_norm.fused import rms_norm

__all__ = ["rms_norm"]
