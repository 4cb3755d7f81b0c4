"""Inputs of the test and the benchmark: those of permute, whose inverse it is."""

from loopmoe_kernels.permute.cases import ACCELERATOR, CASES, PROCESSOR, QUICK, slots_of

__all__ = ["ACCELERATOR", "CASES", "PROCESSOR", "QUICK", "slots_of"]
