"""Who updates what: whole parameters are spread over the ranks that hold copies of them."""

from __future__ import annotations

from typing import Any, Iterator, List, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Elements of small parameters that travel together; a larger parameter travels alone.
BUCKET = 1 << 24


def assign(costs: Sequence[float], ranks: int) -> List[int]:
    """An owner for each item: the largest first, always to the rank with the least so far.

    The same on every rank for the same costs. The largest sum exceeds the mean by less than
    the largest single cost.
    """
    loads = [0.0] * ranks
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner = loads.index(min(loads))
        owners[index] = owner
        loads[owner] += costs[index]
    return owners


class Owned:
    """Parameters that every rank of ``group`` holds, each updated by one of them.

    Args:
        parameters: in the same order on every rank of the group.
        costs: of updating each; the owners share them evenly.

    Attributes:
        mine: those this rank owns.
    """

    def __init__(self, parameters: Sequence[Tensor], costs: Sequence[float], group: Any) -> None:
        self.group = group
        self.parameters = list(parameters)
        self.owners = assign(costs, dist.get_world_size(group))
        self.rank = dist.get_rank(group)
        self.mine = self._of(self.rank)

    def _of(self, rank: int) -> List[Tensor]:
        return [p for p, owner in zip(self.parameters, self.owners) if owner == rank]

    @torch.no_grad()
    def share(self) -> None:
        """Give every rank the values that the owners hold; a collective call of the group.

        A broadcast per owner and bucket: exact in volume however uneven the owners' sizes are,
        and never more than one bucket of extra memory.
        """
        ranks = dist.get_world_size(self.group)
        for owner in range(ranks if ranks > 1 else 0):
            source = dist.get_global_rank(self.group, owner)
            for bucket in _buckets(self._of(owner)):
                flat = torch.cat([parameter.detach().reshape(-1) for parameter in bucket])
                dist.broadcast(flat, source, self.group)
                if owner != self.rank:
                    pieces = flat.split([parameter.numel() for parameter in bucket])
                    for parameter, piece in zip(bucket, pieces):
                        parameter.copy_(piece.view_as(parameter))


def _buckets(parameters: List[Tensor]) -> Iterator[List[Tensor]]:
    """Neighbours of one dtype, together at most BUCKET elements."""
    bucket: List[Tensor] = []
    size = 0
    for parameter in parameters:
        full = size + parameter.numel() > BUCKET or (bucket and bucket[0].dtype != parameter.dtype)
        if bucket and full:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
