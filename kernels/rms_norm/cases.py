"""Inputs of the test and the benchmark: name -> (shape of h, dtype name)."""

CASES = {
    "one token": ((1, 1, 7), "float32"),
    "odd": ((5, 3, 41), "float32"),
    "large values": ((4, 2, 64), "float32"),
    "training": ((256, 4, 256), "float32"),
    "training bf16": ((256, 4, 256), "bfloat16"),
}
