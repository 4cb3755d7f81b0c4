"""Fused operations of LoopMoE, installed as `loopmoe_kernels`. One folder per operation:
`reference.py` is the definition, `cases.py` the inputs of its test and benchmark, `ascendc/` the
kernel for Ascend NPUs, which `twin` checks on a host.
A leaf: torch only."""
