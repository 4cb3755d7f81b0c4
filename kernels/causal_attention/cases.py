"""Inputs of the test and the benchmark: name -> (n, s, d_qk, d_v)."""

CASES = {
    "one token": (1, 1, 3, 5),
    "less than a block": (3, 17, 8, 8),
    "one block": (2, 64, 16, 8),
    "a block and one": (2, 65, 16, 24),
    "odd": (5, 199, 7, 11),
    "training": (16, 256, 64, 64),
    "training mla": (16, 256, 48, 32),
}
