"""Inputs of the test and the benchmark: name -> (n, s, d_qk, d_v), or with the number of
queries behind them where they are the last ones only."""

CASES = {
    "one token": (1, 1, 3, 5),
    "less than a block": (3, 17, 8, 8),
    "one block": (2, 64, 16, 8),
    "a block and one": (2, 65, 16, 24),
    "odd": (5, 199, 7, 11),
    "training": (16, 256, 64, 64),
    "training mla": (16, 256, 48, 32),
    "the last query": (3, 70, 5, 9, 1),
    "the last block and one": (3, 199, 7, 11, 65),
}
