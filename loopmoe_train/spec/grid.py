"""Ranks and their coordinates under parallel folding, in megatron-core's default order.

Attention and experts see the same ranks as two grids that share only the pipeline axis
(arXiv 2504.14960, "MoE parallel folding"): attention as tensor x context x data, experts as
expert tensor x expert x expert data. Core's order "tp-cp-ep-dp-pp" makes tensor the fastest
and pipeline the slowest axis of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Dict, List, Tuple

# Fastest axis first.
ATTENTION = ("tensor", "context", "data", "pipeline")
EXPERTS = ("expert_tensor", "expert", "expert_data", "pipeline")


@dataclass(frozen=True)
class Grid:
    """Sizes of all axes; the product of either side is the number of ranks.

    Raises:
        ValueError: a size below 1, or two sides of different size.
    """

    tensor: int
    context: int
    pipeline: int
    data: int
    expert_tensor: int
    expert: int
    expert_data: int

    def __post_init__(self) -> None:
        for axis in (*ATTENTION, *EXPERTS):
            if getattr(self, axis) < 1:
                raise ValueError(f"{axis}={getattr(self, axis)}: must be at least 1")
        attention = self.tensor * self.context * self.data
        experts = self.expert_tensor * self.expert * self.expert_data
        if attention != experts:
            raise ValueError(
                f"attention takes {attention} ranks of a pipeline stage (tensor {self.tensor} x "
                f"context {self.context} x data {self.data}), experts {experts} (expert tensor "
                f"{self.expert_tensor} x expert {self.expert} x expert data {self.expert_data})"
            )

    @classmethod
    def of(
        cls,
        world: int,
        tensor: int = 1,
        context: int = 1,
        pipeline: int = 1,
        expert_tensor: int = 1,
        expert: int = 1,
    ) -> Grid:
        """The grid of ``world`` ranks; both data axes take what the others leave.

        ``expert_tensor`` is 1 if not given, where core takes ``tensor``.

        Raises:
            ValueError: ``world`` is not a multiple of one side's other axes.
        """
        return cls(
            tensor=tensor,
            context=context,
            pipeline=pipeline,
            data=_rest(world, {"tensor": tensor, "context": context, "pipeline": pipeline}),
            expert_tensor=expert_tensor,
            expert=expert,
            expert_data=_rest(
                world, {"expert tensor": expert_tensor, "expert": expert, "pipeline": pipeline}
            ),
        )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tensor * self.context * self.data * self.pipeline

    def coordinate(self, rank: int) -> Dict[str, int]:
        """Where ``rank`` stands among attention's axes.

        Raises:
            ValueError: there is no such rank.
        """
        return self._split(rank, ATTENTION)

    def expert_coordinate(self, rank: int) -> Dict[str, int]:
        """Where ``rank`` stands among the experts' axes.

        Raises:
            ValueError: there is no such rank.
        """
        return self._split(rank, EXPERTS)

    def rank_at(self, **coordinate: int) -> int:
        """The rank at a coordinate of attention; axes left out are 0.

        Raises:
            ValueError: no axis of that name, or outside it.
        """
        return self._join(coordinate, ATTENTION)

    def expert_rank_at(self, **coordinate: int) -> int:
        """The rank at a coordinate of the experts; axes left out are 0.

        Raises:
            ValueError: no axis of that name, or outside it.
        """
        return self._join(coordinate, EXPERTS)

    def group(self, rank: int, *axes: str) -> List[int]:
        """The ranks that differ from ``rank`` at most along ``axes``, in core's order.

        The experts' side is meant if an axis is one of theirs, else attention's.

        Raises:
            ValueError: no such rank, an unknown axis, or axes of both sides.
        """
        side = EXPERTS if set(axes) & set(EXPERTS[:-1]) else ATTENTION
        for axis in axes:
            if axis not in side:
                raise ValueError(f"{axis}: not an axis of {', '.join(side)}")
        here = self._split(rank, side)
        # The slowest axis is the outermost loop: the ranks come out in ascending order.
        spans = [
            range(getattr(self, axis)) if axis in axes else (here[axis],) for axis in side[::-1]
        ]
        return [self._join(dict(zip(side[::-1], place)), side) for place in product(*spans)]

    def _split(self, rank: int, side: Tuple[str, ...]) -> Dict[str, int]:
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank}: there are {self.world}, counted from 0")
        coordinate = {}
        for axis in side:
            rank, coordinate[axis] = divmod(rank, getattr(self, axis))
        return coordinate

    def _join(self, coordinate: Dict[str, int], side: Tuple[str, ...]) -> int:
        for axis, place in coordinate.items():
            if axis not in side:
                raise ValueError(f"{axis}: not an axis of {', '.join(side)}")
            if not 0 <= place < getattr(self, axis):
                raise ValueError(f"{axis}={place}: its size is {getattr(self, axis)}")
        rank, stride = 0, 1
        for axis in side:
            rank += stride * coordinate.get(axis, 0)
            stride *= getattr(self, axis)
        return rank


def _rest(world: int, sizes: Dict[str, int]) -> int:
    """What is left of ``world`` for the data axis."""
    taken = 1
    for axis, size in sizes.items():
        if size < 1:
            raise ValueError(f"{axis}={size}: must be at least 1")
        taken *= size
    if world < 1 or world % taken:
        words = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ValueError(f"{world} ranks are not a multiple of {words} = {taken}")
    return world // taken
