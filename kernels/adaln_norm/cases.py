"""Inputs of the test and the benchmark: name -> (shape of h, dtype name)."""

CASES = {
    "one token": ((1, 1, 7), "float32"),
    "odd": ((5, 3, 41), "float32"),
    "large values": ((4, 2, 64), "float32"),
    "no token": ((0, 2, 16), "float32"),
    "odd bf16": ((5, 3, 41), "bfloat16"),
    "several at once": ((2, 1, 8192 + 40), "float32"),
    "training": ((256, 4, 256), "float32"),
    "training bf16": ((256, 4, 256), "bfloat16"),
}
