"""What may be simulated before the trainer has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Sequence

from loopmoe_train.errors import Refused

if TYPE_CHECKING:
    from loopmoe_train.sim.workload import Workload

# Techniques that the simulator knows and the trainer has not yet; `loopmoe plan --with`.
TECHNIQUES = {
    "expert-overlap": "the exchange runs beside another micro-batch's arithmetic",
    "tensor-overlap": "gathers and scatters run beside their product",
    "fine-recompute": "norms and activations are recomputed",
    "swap-optimizer": "the optimizer's states live on the host",
    "balanced": "experts are moved so that all ranks have equal work",
}
# Those that buy memory with time: a search takes each where it pays, all others wherever it may.
SAVING = ("fine-recompute", "swap-optimizer")
# Of the exchange, hidden by another micro-batch (Pangu Ultra MoE: 95 %).
_HIDDEN = 0.95


def using(work: Workload, techniques: Sequence[str]) -> Workload:
    """The workload with techniques of ``TECHNIQUES``, whatever it had before.

    Raises:
        Refused: an unknown one.
    """
    for name in techniques:
        if name not in TECHNIQUES:
            raise Refused(f"{name}: an unknown technique", f"use some of {', '.join(TECHNIQUES)}")
    overlap, kept = work.overlap, work.memory
    if "expert-overlap" in techniques:
        overlap = replace(overlap, experts=_HIDDEN)
    if "tensor-overlap" in techniques:
        overlap = replace(overlap, tensor=True)
    if "fine-recompute" in techniques and kept.full is None:
        kept = replace(kept, modules=kept.modules | {"norm", "act"})
    if "swap-optimizer" in techniques:
        kept = replace(kept, swap=kept.swap | {"optimizer"})
    imbalance = 1.0 if "balanced" in techniques else work.imbalance
    return replace(work, overlap=overlap, memory=kept, imbalance=imbalance)
