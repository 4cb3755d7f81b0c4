"""SwiGLU of routed experts with the router's probability inside: ``silu(gate) * up * p``."""

from loopmoe_kernels.weighted_swiglu.fused import weighted_swiglu

__all__ = ["weighted_swiglu"]
