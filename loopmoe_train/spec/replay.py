"""When each forward and backward of a schedule runs, given how long they take.

A stage works through its table in order and starts an action as soon as it is free and the
input has arrived. Transfers are asynchronous: they delay the receiver and cost the sender
nothing, links have no queue. That is core with ``overlap_p2p_comm``; without it core waits for
both neighbours after every step of the interleaved schedule, which only adds to this time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, NamedTuple, Sequence

from loopmoe_train.spec.schedule import Action, Kind

# (stage, chunk, kind) -> how long, in the unit of every time here
Duration = Callable[[int, int, Kind], float]


class Span(NamedTuple):
    """An action on a stage from ``start`` to ``end``."""

    stage: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What a replay found.

    Attributes:
        stages: pipeline stages P.
        spans: stage after stage, each in time order.
        makespan: from 0 to the end of the last action.
        busy: sum of the durations on each stage.
    """

    stages: int
    spans: List[Span]
    makespan: float
    busy: List[float]

    @property
    def bubble_share(self) -> float:
        """The part of all stages' time that is idle: 1 - sum(busy) / (P * makespan)."""
        whole = self.stages * self.makespan
        return 1 - sum(self.busy) / whole if whole else 0.0


def replay(
    table: Sequence[Sequence[Action]], duration: Duration, transfer: float = 0.0
) -> Timeline:
    """Run ``table`` (of every stage, its actions in order; :mod:`schedule`).

    The forward of slot chunk * P + stage needs that of the slot before. The backward needs its
    own forward and the backward of the slot after, except on the last slot.

    Args:
        duration: how long an action takes.
        transfer: from the end of an action until its output is there on another stage.

    Raises:
        ValueError: the table can never finish; the words name what waits for what.
    """
    stages = len(table)
    chunks = 1 + max((action.chunk for actions in table for action in actions), default=0)
    slots = chunks * stages
    hop = transfer if stages > 1 else 0.0
    cost: Dict[Kind, List[List[float]]] = {
        kind: [[duration(stage, chunk, kind) for chunk in range(chunks)] for stage in range(stages)]
        for kind in ("F", "B")
    }
    # One number for (kind, micro-batch, slot): looking tuples up took most of the time.
    ended: Dict[int, float] = {}
    waiting: Dict[int, int] = {}  # what is not there yet -> the stage that needs it
    spans: List[List[Span]] = [[] for _ in range(stages)]
    free = [0.0] * stages
    ready = list(range(stages))
    while ready:
        stage = ready.pop()
        actions, done = table[stage], spans[stage]
        for place in range(len(done), len(actions)):
            action = actions[place]
            slot = action.chunk * stages + stage
            own = (action.micro_batch * slots + slot) * 2
            needed = own - 2 if slot else None
            if action.kind == "B":
                if own not in ended:
                    raise _stuck(f"stage {stage} runs {action} before its own forward")
                own, needed = own + 1, own + 3 if slot < slots - 1 else None
            start = free[stage]
            if needed is not None:
                if needed not in ended:
                    waiting[needed] = stage
                    break
                start = max(start, ended[needed] + hop)
            free[stage] = ended[own] = end = start + cost[action.kind][stage][action.chunk]
            done.append(Span(stage, action, start, end))
            if own in waiting:
                ready.append(waiting.pop(own))
    for stage, done in enumerate(spans):
        if len(done) < len(table[stage]):
            raise _stuck(f"stage {stage} waits for ever at {table[stage][len(done)]}")
    return Timeline(
        stages=stages,
        spans=[span for done in spans for span in done],
        makespan=max(free, default=0.0),
        busy=[sum(span.end - span.start for span in done) for done in spans],
    )


def _stuck(words: str) -> ValueError:
    return ValueError(f"the schedule can never finish: {words}")
