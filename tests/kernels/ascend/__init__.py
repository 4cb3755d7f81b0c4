"""Our kernels lowered for an Ascend NPU, without one and without CANN: `make kernels-ascend`.

It needs triton-ascend, which cannot live beside triton, so it has an environment of its own and
is no part of the suite. What it shows: the sources are in the subset of the language that
triton-ascend takes, accesses stay contiguous, and what it asks of on-chip memory, by a lower
bound, fits. What it does not show: that the closed compiler behind it makes a binary, that the
binary is right, or fast. None of this has run on an NPU.
"""
