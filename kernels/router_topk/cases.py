"""Inputs of the test and the benchmark: name -> (tokens, experts, k, with a bias, dtype name)."""

CASES = {
    "no token": (0, 4, 2, True, "float32"),
    "one token": (1, 1, 1, False, "float32"),
    "odd": (23, 37, 3, True, "float32"),
    "no bias": (23, 37, 3, False, "float32"),
    "all of them": (7, 6, 6, True, "float32"),
    "many experts": (5, 512, 8, True, "float32"),
    "bf16": (31, 64, 6, True, "bfloat16"),
    "training": (256, 64, 8, True, "float32"),
}
