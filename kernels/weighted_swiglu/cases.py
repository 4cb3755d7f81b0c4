"""Inputs of the test and the benchmark: name -> (rows, expert hidden size, dtype name)."""

CASES = {
    "no row": (0, 8, "float32"),
    "one row": (1, 3, "float32"),
    "odd": (37, 29, "float32"),
    "odd bf16": (37, 29, "bfloat16"),
    "several pieces": (3, 3 * 512, "float32"),
    "several at once": (2, 8192 + 8, "bfloat16"),
    "training": (2048, 256, "float32"),
    "training bf16": (2048, 256, "bfloat16"),
}
