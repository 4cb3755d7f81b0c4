"""Inputs of the test and the benchmark: name -> (counts by rank and expert, rows behind them)."""

CASES = {
    "one segment": ([[3]], 0),
    "odd": ([[2, 0, 5], [1, 4, 0]], 0),
    "empty rank": ([[0, 0], [3, 1], [0, 0], [2, 2]], 0),
    "nothing": ([[0, 0], [0, 0]], 0),
    "nothing in a buffer": ([[0, 0], [0, 0]], 6),
    "rows behind": ([[2, 1], [0, 3]], 5),
    "longer than a run": ([[1100, 3], [0, 1500]], 1030),
    "many": ([[(3 * r + 5 * e) % 7 for e in range(5)] for r in range(9)], 2),
}
