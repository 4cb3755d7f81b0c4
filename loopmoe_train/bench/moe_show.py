"""What ``loopmoe bench moe`` prints."""

from __future__ import annotations

from typing import Any, Dict


def show(table: Dict[str, Any]) -> None:
    """Tables of the layer and of the exchange, and the headline."""
    layer, exchange = table["layer"], table["exchange"]
    print(
        f"\nMoE layer of {layer['model']}, {layer['tokens']} tokens, forward and backward, "
        f"medians of {layer['rounds']} rounds"
    )
    print(f"{'':26}{'time':>10}{'lowest':>10}{'highest':>10}{'over ours':>11}{'differs':>10}")
    for side, row in layer["sides"].items():
        print(f"{side:26}{1e3 * row['seconds']:7.1f} ms{1e3 * row['low']:7.1f} ms"
              f"{1e3 * row['high']:7.1f} ms{row['over_ours']:11.2f}"
              f"{row['error']:10.1e}")  # fmt: skip
    print(
        f"\nexchange of {exchange['tokens']} tokens a rank, top {exchange['top_k']}, hidden "
        f"{exchange['hidden']}, {exchange['ranks']} ranks: MiB that leave a rank's node,\n"
        "there and back, forward and backward"
    )
    print(f"{'nodes':>5}  {'exchange':14}{'counted':>10}{'by routing':>12}{'formula':>10}"
          f"{'of alltoall':>13}{'time':>11}")  # fmt: skip
    flat = {row["nodes"]: row for row in exchange["rows"] if row["kind"] == "alltoall"}
    for row in exchange["rows"]:
        counted = f"{row['counted'] / 2**20:10.2f}" if "counted" in row else f"{'not sent':>10}"
        seconds = f"{1e3 * row['seconds']:8.1f} ms" if "seconds" in row else ""
        print(f"{row['nodes']:5}  {row['kind']:14}{counted}{row['sent'] / 2**20:12.2f}"
              f"{row['formula'] / 2**20:10.2f}{row['sent'] / flat[row['nodes']]['sent']:13.2f}"
              f"{seconds:>11}")  # fmt: skip
    wrong = sum("counted" in row and row["counted"] != row["sent"] for row in exchange["rows"])
    sides = layer["sides"]
    saved = {
        row["nodes"]: flat[row["nodes"]]["sent"] / row["sent"]
        for row in exchange["rows"]
        if row["kind"] == "deduplicated"
    }
    print(
        f"headline: over_sequential={sides['core, SequentialMLP']['over_ours']:.2f} "
        f"over_grouped={sides['core, grouped products']['over_ours']:.2f} "
        + " ".join(f"fewer_bytes_{nodes}_nodes={gain:.2f}" for nodes, gain in saved.items())
        + f" miscounted={wrong}"
    )
