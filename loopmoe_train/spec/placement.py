"""Where the visits of a model stand on a pipeline of P stages with V chunks each.

The P * V *slots* are visited in order: slot chunk * P + stage. A slot holds consecutive visits.
All visits of one layer stand on one stage, since the layer's weights live there once; so with
a looped model chunk follows chunk as iteration follows iteration, and no weight ever travels.

Two layers may differ in cost (dense or experts), and the last slot computes the loss and
multi-token prediction too, so slots are filled by FLOPs, not by count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Sequence, Tuple

from loopmoe_train.config.schema import ModelConfig, RunConfig
from loopmoe_train.spec.arithmetic import forward_flops_per_token, visit_flops
from loopmoe_train.spec.batch import global_batch, micro_batches
from loopmoe_train.spec.replay import replay
from loopmoe_train.spec.schedule import table
from loopmoe_train.spec.visits import Visit, visits

# A placement is chosen by the replay of so many micro-batches per stage at most: more of them
# only lengthen the steady part.
_REPLAYED = 2


@dataclass(frozen=True)
class Placement:
    """Visits on slots.

    Attributes:
        stages: P.
        slots: of every slot its visits; as many slots as stages x chunks.
        costs: forward FLOPs of one token in every slot, the loss included.
    """

    stages: int
    slots: Tuple[Tuple[Visit, ...], ...]
    costs: Tuple[float, ...]

    @property
    def chunks(self) -> int:
        """V."""
        return len(self.slots) // self.stages

    def at(self, stage: int, chunk: int) -> Tuple[Visit, ...]:
        """Visits of one chunk of a stage."""
        return self.slots[chunk * self.stages + stage]

    def iteration(self, stage: int, chunk: int) -> int | None:
        """Iteration of the looped visits there (the last of several); None without one."""
        return max((v.iteration for v in self.at(stage, chunk) if v.looped), default=None)

    def duration(self, stage: int, chunk: int, kind: str) -> float:
        """FLOPs of one token: forward ("F"), or backward as twice that ("B")."""
        return self.costs[chunk * self.stages + stage] * (1 if kind == "F" else 2)

    def layout(self) -> List[int]:
        """As ``parallel.pipeline_layout``: the number of visits of every slot."""
        return [len(slot) for slot in self.slots]


def placement_of(run: RunConfig) -> Placement:
    """The placement of a run: its ``pipeline_layout``, or the one that replays fastest.

    Raises:
        ValueError: there is none; one line that says why.
    """
    stages = run.parallel.pipeline_parallel_size
    candidates = [_placed(run, stages, layout) for layout in _layouts(run)]
    if len(candidates) == 1:
        return candidates[0]
    replayed = min(micro_batches(run, global_batch(run, 0)), _REPLAYED * stages)
    return min(candidates, key=lambda one: (_makespan(one, replayed), one.chunks))


def feasible(run: RunConfig) -> Placement:
    """Some placement of a run, found without a search.

    Raises:
        ValueError: there is none; one line that says why.
    """
    return _placed(run, run.parallel.pipeline_parallel_size, next(_layouts(run)))


def _layouts(run: RunConfig) -> Iterator[List[int]]:
    """Layouts to choose from, at least one.

    Raises:
        ValueError: there is none.
    """
    model, parallel, order = run.model, run.parallel, visits(run.model)
    stages, chunks = parallel.pipeline_parallel_size, parallel.virtual_pipeline_size
    if stages == 1:
        yield [len(order)]
    elif parallel.pipeline_layout is not None:
        _check(run, parallel.pipeline_layout)
        yield parallel.pipeline_layout
    elif model.loop.iterations == 1:
        if len(order) < stages * chunks:
            raise ValueError(
                f"{len(order)} layers do not fill {stages} stages x {chunks} chunks: lower "
                "parallel.pipeline_parallel_size or virtual_pipeline_size"
            )
        yield split(_costs(run), stages * chunks)
    elif model.body_layers < stages * chunks:
        raise ValueError(
            f"model.body_layers={model.body_layers} is less than {stages} stages x {chunks} "
            "chunks: every stage needs a layer of the loop body (one layer on several stages "
            "would be a copy of its weights); lower parallel.pipeline_parallel_size, or put the "
            "whole body on one stage with parallel.pipeline_layout"
        )
    else:
        yield from _loop_layouts(run)


def split(costs: Sequence[float], parts: int) -> List[int]:
    """Lengths of ``parts`` runs of consecutive costs, none empty, with the least maximum sum."""
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    count = len(costs)
    # best[n]: least maximum of the first n costs in so many parts as rounds were made.
    best, cuts = sums[:], []
    for part in range(2, parts + 1):
        found, where = [float("inf")] * (count + 1), [0] * (count + 1)
        for end in range(part, count + 1):
            for begin in range(part - 1, end):
                worst = max(best[begin], sums[end] - sums[begin])
                if worst < found[end]:
                    found[end], where[end] = worst, begin
        best = found
        cuts.append(where)
    ends = [count]
    for where in reversed(cuts):
        ends.append(where[ends[-1]])
    ends = [0, *reversed(ends)] if ends[-1] else ends[::-1]
    return [end - begin for begin, end in zip(ends, ends[1:])]


def _costs(run: RunConfig) -> List[float]:
    """Forward FLOPs of one token in every visit; the last one's with the loss and MTP."""
    costs = [visit_flops(run.model, visit, run.sequence_length) for visit in visits(run.model)]
    costs[-1] += _after(run)
    return costs


def _after(run: RunConfig) -> float:
    """Of what follows the last visit. The tokenizer's size as it is asked for is near enough."""
    vocabulary = run.model.vocab_size or run.tokenizer.vocab_size
    parts = forward_flops_per_token(run.model, vocabulary, run.sequence_length)
    return parts["head"] + parts["mtp"]


def _placed(run: RunConfig, stages: int, layout: Sequence[int]) -> Placement:
    order, costs = visits(run.model), _costs(run)
    slots, sums, begin = [], [], 0
    for length in layout:
        slots.append(tuple(order[begin : begin + length]))
        sums.append(sum(costs[begin : begin + length]))
        begin += length
    return Placement(stages, tuple(slots), tuple(sums))


def _loop_layouts(run: RunConfig) -> Iterator[List[int]]:
    """Layouts of a looped model.

    The body is cut into as many parts as stages (times chunks per iteration) and goes round K
    times. Prefix and suffix join its first and last slot, or have q and r slots of their own;
    then the body begins on stage q mod P. Layers of the body go to the stage with the least work.
    """
    model, parallel = run.model, run.parallel
    stages = parallel.pipeline_parallel_size
    parts = stages * parallel.virtual_pipeline_size
    costs = _costs(run)
    prefix, suffix = costs[: model.prefix_layers], costs[len(costs) - model.suffix_layers :]
    after = [_after(run)] if not suffix else []
    for q in range(min(stages, len(prefix)) + 1):
        for r in range(min(stages, len(suffix)) + 1):
            if (q + r) % stages:
                continue
            head = split(prefix, q) if q else []
            tail = split(suffix, r) if r else []
            outside = [0.0] * stages
            for slot, length in enumerate(head):
                outside[slot] += sum(prefix[sum(head[:slot]) :][:length])
            for slot, length in enumerate(tail):
                outside[stages - r + slot] += sum(suffix[sum(tail[:slot]) :][:length])
            outside[0] += 0.0 if q else sum(prefix)
            outside[stages - 1] += sum(after) if r else sum(suffix) + sum(after)
            body = _body(model, outside, q, parts, costs[model.prefix_layers])
            rounds = body * model.loop.iterations
            if not q:
                rounds[0] += len(prefix)
            if not r:
                rounds[-1] += len(suffix)
            yield [*head, *rounds, *tail]


def _body(
    model: ModelConfig, outside: Sequence[float], first: int, parts: int, cost: float
) -> List[int]:
    """Body layers of every part: one each, then one by one where least is done so far."""
    stages, layers = len(outside), [1] * parts
    work = list(outside)
    for part in range(parts):
        work[(first + part) % stages] += model.loop.iterations * cost
    for _ in range(model.body_layers - parts):
        part = min(range(parts), key=lambda p: (work[(first + p) % stages], layers[p]))
        layers[part] += 1
        work[(first + part) % stages] += model.loop.iterations * cost
    return layers


def _makespan(placement: Placement, micro: int) -> float:
    stages = placement.stages
    # A multiple of the stages, as the interleaved schedule has it.
    tables = table(stages, max(stages, micro // stages * stages), placement.chunks)
    return replay(tables, placement.duration).makespan


def _check(run: RunConfig, layout: Sequence[int]) -> None:
    """A layout by hand.

    Raises:
        ValueError: what is wrong with it.
    """
    stages, order = run.parallel.pipeline_parallel_size, visits(run.model)
    name = f"parallel.pipeline_layout={list(layout)}"
    if len(layout) % stages or not layout:
        raise ValueError(f"{name}: {len(layout)} slots are no multiple of {stages} stages")
    if any(length < 1 for length in layout):
        raise ValueError(f"{name}: every slot needs a visit")
    if sum(layout) != len(order):
        raise ValueError(f"{name}: holds {sum(layout)} visits, the model has {len(order)}")
    stage_of: dict[int, int] = {}
    for slot, found in enumerate(_placed(run, stages, layout).slots):
        for visit in found:
            stage = stage_of.setdefault(visit.layer, slot % stages)
            if stage != slot % stages:
                raise ValueError(
                    f"{name}: iteration {visit.iteration} of layer {visit.layer} would be on "
                    f"stage {slot % stages}, its weights are on stage {stage}"
                )
