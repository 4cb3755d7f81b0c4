"""Process groups of the backend "hccl": gloo's, on the memory of the npu's tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch_npu import record, wheel

#: Types that HCCL's sums over ranks take on A2 and A3 (CANN 8.5, HcclAllReduce; int64 is slow).
SUMMED = {
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32,
}  # fmt: skip
_REDUCE = {
    "allreduce", "allreduce_coalesced", "reduce", "reduce_scatter", "_reduce_scatter_base",
    "reduce_scatter_tensor_coalesced",
}  # fmt: skip


def _host(value: Any, name: str) -> Any:
    """The tensors of a call, as gloo takes them."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "npu":
            raise RuntimeError(f"hccl: {name} was given a tensor on {value.device}")
        if name in _REDUCE and value.dtype not in SUMMED:
            raise RuntimeError(f"hccl: {name} of {value.dtype}: HCCL sums no such type")
        if not value.is_contiguous():
            raise RuntimeError(f"hccl: {name} was given a tensor that is not contiguous")
        return torch.ops.stand_in.host(value.detach())
    if isinstance(value, (list, tuple)):
        return [_host(one, name) for one in value]
    return value


class ProcessGroupHCCL(dist.ProcessGroup):
    """Every collective of the wheel's header, over gloo."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroup(store, rank, size)
        kind = dist.ProcessGroup.BackendType.GLOO
        gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._gloo._register_backend(torch.device("cpu"), kind, gloo)
        self._gloo._set_default_backend(kind)

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("npu")]

    def getBackendName(self) -> str:
        return "hccl"

    def name(self) -> str:
        return "hccl"


#: Names of torch 2.13 -> those of the wheel's header.
_METHODS = {
    "all_gather_single": "_allgather_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "all_to_all_single": "alltoall_base",
    "allgather": "allgather",
    "allreduce": "allreduce",
    "allreduce_coalesced": "allreduce_coalesced",
    "alltoall": "alltoall",
    "barrier": "barrier",
    "broadcast": "broadcast",
    "gather": "gather",
    "recv": "recv",
    "reduce": "reduce",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_single": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    "scatter": "scatter",
    "send": "send",
}


def _forward(name: str, theirs: str) -> Any:
    def call(self: ProcessGroupHCCL, *arguments: Any, **named: Any) -> Any:
        if theirs not in wheel.collectives():
            raise AttributeError(f"torch_npu 2.13: ProcessGroupHCCL has no {theirs}")
        record.write("collective", theirs, [record.plain(one) for one in arguments], {})
        if name == "barrier":  # its options name the npu
            return self._gloo.barrier()
        host = [_host(one, theirs) for one in arguments]
        return getattr(self._gloo, name)(*host, **named)

    return call


for _name, _theirs in _METHODS.items():
    setattr(ProcessGroupHCCL, _name, _forward(_name, _theirs))
    setattr(ProcessGroupHCCL, _theirs, _forward(_name, _theirs))


def register() -> None:
    def create(common: Any, options: Any) -> ProcessGroupHCCL:
        return ProcessGroupHCCL(common.store, common.group_rank, common.group_size, common.timeout)

    dist.Backend.register_backend("hccl", create, extended_api=True, devices=["npu"])
