"""Inputs of the test and the benchmark: name -> (rows, expert hidden size, dtype name)."""

CASES = {
    "no row": (0, 8, "float32"),
    "one row": (1, 3, "float32"),
    "odd": (37, 29, "float32"),
    "training": (2048, 256, "float32"),
    "training bf16": (2048, 256, "bfloat16"),
}
