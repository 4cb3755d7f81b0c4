"""Inputs of the test and the benchmark: those of the other norm, name -> (shape of h, dtype)."""

from loopmoe_kernels.adaln_norm.cases import CASES

__all__ = ["CASES"]
