"""Which part of every weight this rank holds under tensor and expert parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, Tuple

from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import Tensor, nn

from loopmoe_train.moe.experts import GroupedExperts


@dataclass(frozen=True)
class Cut:
    """One dimension of a weight in ``ranks`` equal parts, of which this is part ``rank``.

    Attributes:
        halves: the dimension holds gate and up one after the other, each cut for itself.
    """

    dim: int
    rank: int
    ranks: int
    halves: int = 1

    def whole(self, shape: Tuple[int, ...]) -> Tuple[int, ...]:
        """Shape of the whole weight, from that of a part."""
        return (*shape[: self.dim], shape[self.dim] * self.ranks, *shape[self.dim + 1 :])

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part."""
        size = whole.shape[self.dim] // self.halves
        split = whole.unflatten(self.dim, (self.halves, size)).chunk(self.ranks, self.dim + 1)
        return split[self.rank].flatten(self.dim, self.dim + 1)


UNCUT = Cut(0, 0, 1)


def cuts(model: nn.Module) -> Iterator[Tuple[str, nn.Parameter, Cut]]:
    """Every parameter of a module with its name and its cut.

    Experts are cut by the expert-tensor group (their hidden size); that ranks hold different
    experts is no cut of a weight.
    """
    tensor = parallel_state.get_tensor_model_parallel_rank()
    tensors = parallel_state.get_tensor_model_parallel_world_size()
    for prefix, module in model.named_modules():
        dims: Dict[str, Cut] = {}
        if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding)):
            gated = prefix.endswith("linear_fc1") and module.config.gated_linear_unit
            dims["weight"] = Cut(0, tensor, tensors, halves=2 if gated else 1)
        elif isinstance(module, RowParallelLinear):
            dims["weight"] = Cut(1, tensor, tensors)
        elif isinstance(module, GroupedExperts):
            groups: Any = module.pg_collection.expt_tp
            dims = {
                name: Cut(dim, groups.rank(), groups.size())
                for name, dim in (("w1_EDGF", 3), ("w2_EFD", 1))
            }
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}".lstrip("."), parameter, dims.get(name, UNCUT)


def mark(model: nn.Module) -> None:
    """Tell core which weights differ between tensor-parallel ranks: it counts the others once in
    the gradient norm. Experts are different on all ranks of a model-parallel group."""
    for name, parameter, cut in cuts(model):
        cut_here = cut.ranks > 1 or ".experts." in name
        parameter.tensor_model_parallel = cut_here  # type: ignore[attr-defined]
        parameter.partition_dim = cut.dim if cut_here else -1  # type: ignore[attr-defined]
        parameter.partition_stride = 1  # type: ignore[attr-defined]
