"""Fused operations of LoopMoE, installed as `loopmoe_kernels`. One folder per operation:
`reference.py` is the definition, `cases.py` the inputs of its test and benchmark.
A leaf: torch only."""
