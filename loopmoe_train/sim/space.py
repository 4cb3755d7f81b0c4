"""The layouts of a run that divide and fit, cheapest looks first."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.sim import memory
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.stage import Placed, Stages
from loopmoe_train.sim.techniques import SAVING, using
from loopmoe_train.sim.workload import Memory, Workload, workload_of
from loopmoe_train.spec.exchange import TWO_LEVEL, fills_nodes
from loopmoe_train.spec.grid import Grid
from loopmoe_train.spec.placement import placement_of

# What is recomputed, from what costs least time; names of modules with ", " between.
_RECOMPUTE = ("none", "mla_up_proj", "moe", "mla_up_proj, moe", "full")


@dataclass(frozen=True)
class Candidate:
    """One layout; names as in ``parallel``.

    Attributes:
        saving: techniques in use that buy memory with time.
    """

    tensor: int
    context: int
    pipeline: int
    virtual: int
    expert: int
    expert_tensor: int
    micro_batch: int
    recompute: str
    exchange: str
    saving: Tuple[str, ...] = ()

    def settings(self) -> Dict[str, Any]:
        """As settings of a run."""
        found: Dict[str, Any] = {
            "parallel.tensor_parallel_size": self.tensor,
            "parallel.context_parallel_size": self.context,
            "parallel.pipeline_parallel_size": self.pipeline,
            "parallel.virtual_pipeline_size": self.virtual,
            "parallel.expert_parallel_size": self.expert,
            "parallel.expert_tensor_parallel_size": self.expert_tensor,
            "micro_batch_size": self.micro_batch,
            "model.moe.dispatcher": self.exchange,
        }
        if self.recompute == "full":
            found |= {"memory.recompute": "full", "memory.recompute_modules": []}
        elif self.recompute == "none":
            found |= {"memory.recompute": "none", "memory.recompute_modules": []}
        else:
            names = [name.strip() for name in self.recompute.split(",")]
            found |= {"memory.recompute": "selective", "memory.recompute_modules": names}
        return found

    def overrides(self) -> List[str]:
        """As words of a command line."""
        words = []
        for name, value in self.settings().items():
            text = f"[{','.join(value)}]" if isinstance(value, list) else str(value)
            words.append(f"{name}={text}")
        return words


def configured(run: RunConfig, candidate: Candidate) -> RunConfig:
    """``run`` with the layout of a candidate."""
    changed = copy.deepcopy(run)
    for name, value in candidate.settings().items():
        node: Any = changed
        *path, last = name.split(".")
        for part in path:
            node = getattr(node, part)
        setattr(node, last, value)
    return changed


def count(dropped: Dict[str, int], reason: str) -> None:
    """Note that a layout was dropped."""
    dropped[reason] = dropped.get(reason, 0) + 1


class Impossible(Exception):
    """Why a layout cannot be."""


class Space:
    """Candidates of a run, and their workloads with what they share."""

    def __init__(
        self, run: RunConfig, machine: Machine, techniques: Sequence[str], fixed: Dict[str, Any]
    ) -> None:
        self.run, self.machine, self.techniques, self.fixed = run, machine, techniques, fixed
        alone = copy.deepcopy(run)
        alone.parallel.tensor_parallel_size = alone.parallel.context_parallel_size = 1
        alone.parallel.pipeline_parallel_size = alone.parallel.virtual_pipeline_size = 1
        alone.parallel.pipeline_layout = None
        alone.parallel.expert_parallel_size = alone.parallel.expert_tensor_parallel_size = 1
        self.base = workload_of(alone)
        self.forced = tuple(name for name in self.techniques if name not in SAVING)
        self.saving = tuple(name for name in SAVING if name in self.techniques)
        self._slots: Dict[Tuple[int, int, int], Any] = {}
        self._shared: Dict[Any, Stages] = {}
        self._placed: Dict[Tuple[int, int, int], Placed] = {}

    # -- axes ------------------------------------------------------------------------------
    def fitting(self, dropped: Dict[str, int]) -> Iterator[Tuple[Candidate, Stages]]:
        """All that divide and fit; what does not is counted in ``dropped``."""
        for cut in self._cuts():
            try:
                stages = self.stages(cut)
            except Impossible as why:
                count(dropped, str(why))
                continue
            room = memory.room(stages.workload, self.machine)
            if max(memory.always(stages, stage) for stage in range(cut.pipeline)) > room:
                count(dropped, "weights and optimizer states alone do not fit")
            else:
                yield from self._batches(cut, dropped, room)

    def _cuts(self) -> Iterator[Candidate]:
        """Of the weights: candidates with the other axes at their least."""
        run, attention = self.run, self.run.model.attention
        devices, experts = run.cluster.devices, run.model.moe.num_experts
        groups = attention.num_heads
        if attention.kind != "mla":
            groups = attention.num_query_groups
        for tensor in self._axis("tensor", _powers(self.machine.node)):
            if groups % tensor or devices % tensor:
                continue
            for pipeline in self._axis("pipeline", _divisors(devices // tensor)):
                if not self._placeable(pipeline, 1):
                    continue
                per_stage = devices // pipeline
                for context in self._axis("context", _powers(max(1, run.sequence_length // 4096))):
                    pieces = tensor * context * (2 if context > 1 else 1)
                    if per_stage % (tensor * context) or run.sequence_length % pieces:
                        continue
                    for expert in self._axis("expert", _divisors(experts)):
                        for etp in self._axis("expert_tensor", sorted({1, tensor})):
                            if per_stage % (expert * etp) == 0:
                                yield Candidate(
                                    tensor, context, pipeline, 1, expert, etp, 1, "full",
                                    "alltoall", self.saving,
                                )  # fmt: skip

    def _batches(
        self, cut: Candidate, dropped: Dict[str, int], room: float
    ) -> Iterator[Tuple[Candidate, Stages]]:
        run = self.run
        data = run.cluster.devices // (cut.tensor * cut.context * cut.pipeline)
        for virtual in self._axis("virtual", (1, 2, 4)):
            chunks = virtual * self.base.iterations
            if not self._placeable(cut.pipeline, virtual):
                continue
            for micro in self._axis("micro_batch_size", (1, 2, 4, 8)):
                micro_batches = run.global_batch_size // (micro * data)
                if run.global_batch_size % (micro * data):
                    continue
                if cut.pipeline > 1 and chunks > 1 and micro_batches % cut.pipeline:
                    continue
                one = replace(cut, virtual=virtual, micro_batch=micro)
                try:
                    fitting = list(self._policies_that_fit(one, room))
                except Impossible as why:
                    count(dropped, str(why))
                    break
                if not fitting:
                    count(dropped, "does not fit, even if all is recomputed")
                    break  # larger micro-batches need more
                for policy in fitting:
                    candidate = replace(policy, exchange=self._exchange(policy))
                    yield candidate, self.stages(candidate)

    def _policies_that_fit(self, one: Candidate, room: float) -> Iterator[Candidate]:
        """With every choice of techniques that save memory what must be recomputed with it, unless
        as little must be without one of them."""
        least: Dict[Tuple[str, ...], Optional[str]] = {}
        for size in range(len(self.saving) + 1):
            for saving in combinations(self.saving, size):
                with_it = replace(one, saving=saving)
                least[saving] = found = self._least_recompute(with_it, room)
                fewer = combinations(saving, size - 1) if size else ()
                if found is not None and all(least[less] != found for less in fewer):
                    yield replace(with_it, recompute=found)

    def _least_recompute(self, one: Candidate, room: float) -> Optional[str]:
        """The policy that costs least time of those that fit; more only costs more."""
        for recompute in self._policies():
            stages = self.stages(replace(one, recompute=recompute))
            if memory.fits(stages, room):
                return recompute
        return None

    def _exchange(self, one: Candidate) -> str:
        """The quickest exchange of experts: it changes nothing else of a layout."""
        kinds = self._exchanges(one)
        if len(kinds) == 1:
            return kinds[0]
        stages = self.stages(one)
        layer = next(layer for layer in stages.placed.kinds if layer.ffn.experts)
        return min(kinds, key=lambda kind: stages.network.exchange(layer, kind))

    def _exchanges(self, cut: Candidate) -> Sequence[str]:
        told = self.fixed.get("model.moe.dispatcher")
        if told is not None:
            return (told,)
        if cut.expert == 1:
            return ("alltoall",)
        if cut.expert <= 8:
            return ("alltoall", "allgather", *self._two_level(cut))
        return ("alltoall", *self._two_level(cut))

    def _two_level(self, cut: Candidate) -> Sequence[str]:
        whole = fills_nodes(cut.expert, self.run.cluster.devices_per_node)
        return TWO_LEVEL if whole and cut.expert_tensor == 1 else ()

    def _axis(self, name: str, values: Sequence[int]) -> Sequence[int]:
        told = self.fixed.get(_setting(name))
        return values if told is None else (int(told),)

    def _policies(self) -> Sequence[str]:
        told = self.fixed.get("memory.recompute")
        if told == "selective":
            return (", ".join(self.run.memory.recompute_modules),)
        if told is not None:
            return (str(told),)
        mla = self.run.model.attention.kind == "mla"
        return [name for name in _RECOMPUTE if mla or "mla" not in name]

    def _placeable(self, pipeline: int, virtual: int) -> bool:
        model = self.run.model
        if pipeline == 1:
            return virtual == 1
        loop = model.loop.iterations > 1
        layers = model.body_layers if loop else len(self.base.shape.order)
        return pipeline * virtual <= layers

    # -- workloads -------------------------------------------------------------------------
    def _place(self, candidate: Candidate) -> Tuple[int, int, int]:
        """What a placement depends on: stages, chunks, and micro-batches as far as they count."""
        data = self.run.cluster.devices // (
            candidate.tensor * candidate.context * candidate.pipeline
        )
        micro = max(1, self.run.global_batch_size // (candidate.micro_batch * data))
        return candidate.pipeline, candidate.virtual, min(micro, 2 * candidate.pipeline)

    def slots(self, pipeline: int, virtual: int, micro_batches: int) -> Any:
        """Placement by cost."""
        key = (pipeline, virtual, micro_batches)
        if key not in self._slots:
            run = copy.deepcopy(self.run)
            run.cluster.devices = pipeline
            run.micro_batch_size, run.batch_ramp_from = 1, None
            run.global_batch_size = micro_batches
            for name in ("tensor", "context", "expert", "expert_tensor"):
                setattr(run.parallel, f"{name}_parallel_size", 1)
            run.parallel.pipeline_parallel_size = pipeline
            run.parallel.virtual_pipeline_size = virtual
            run.parallel.pipeline_layout = None
            try:
                placement = placement_of(run)
            except ValueError as error:
                self._slots[key] = str(error)
            else:
                self._slots[key] = tuple(
                    tuple(visit.index for visit in slot) for slot in placement.slots
                )
        if isinstance(self._slots[key], str):
            raise Impossible("layers do not fill the stages")
        return self._slots[key]

    def workload(self, candidate: Candidate) -> Workload:
        """The workload of a candidate."""
        grid = Grid.of(
            self.run.cluster.devices, candidate.tensor, candidate.context, candidate.pipeline,
            candidate.expert_tensor, candidate.expert,
        )  # fmt: skip
        work = replace(
            self.base,
            grid=grid,
            slots=self.slots(*self._place(candidate)),
            micro_batch=candidate.micro_batch,
            exchange=candidate.exchange,
            memory=_memory(self.base, candidate.recompute),
        )
        return using(work, (*self.forced, *candidate.saving))

    def stages(self, candidate: Candidate) -> Stages:
        """As :class:`Stages`, with operators shared among equal cuts."""
        work = self.workload(candidate)
        key = (
            candidate.tensor, candidate.context, candidate.expert, candidate.expert_tensor,
            candidate.micro_batch, candidate.recompute, candidate.exchange, candidate.saving,
        )  # fmt: skip
        place = self._place(candidate)
        own = Stages(work, self.machine, self._shared.get(key), self._placed.get(place))
        self._shared.setdefault(key, own)
        self._placed.setdefault(place, own.placed)
        return own


def _memory(work: Workload, recompute: str) -> Memory:
    if recompute == "full":
        return Memory(len(work.shape.order))
    modules = () if recompute == "none" else recompute.split(", ")
    return Memory(modules=frozenset(modules))


def _setting(name: str) -> str:
    if name == "micro_batch_size":
        return name
    return (
        f"parallel.{name}_pipeline_size" if name == "virtual" else f"parallel.{name}_parallel_size"
    )


def _powers(most: int) -> List[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _divisors(number: int) -> List[int]:
    return [n for n in range(1, min(number, 512) + 1) if number % n == 0]
