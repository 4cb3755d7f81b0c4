"""Run in a process that has the stand-in: what a real torch_npu would not take, it does not take.

Prints the names of the cases that were refused for the right reason.
"""

import importlib
import os

import torch
import torch_npu

importlib.import_module("loopmoe_train")
x = torch.ones(4, device="npu:0")
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")
torch.distributed.init_process_group(
    "hccl", store=torch.distributed.HashStore(), rank=0, world_size=1
)
CASES = {
    "no such name": (lambda: torch_npu.npu.cudnn_version(), AttributeError, "has no torch.npu"),
    "arguments": (lambda: torch_npu.npu.set_device(0, 1), TypeError, "set_device(device)"),
    "method": (lambda: torch_npu.npu.Event().record(None, None), TypeError, "Event.record"),
    "named": (lambda: torch_npu.profiler.profile(use_gpu=True), TypeError, "profile"),
    "two devices": (lambda: x + torch.ones(4), RuntimeError, "cpu"),
    "index on the host": (
        lambda: torch.gather(x, 0, torch.zeros(1, dtype=torch.int64)), RuntimeError, "cpu",
    ),
    "sum of doubles": (
        lambda: torch.distributed.all_reduce(x.double()), RuntimeError, "sums no such type",
    ),
    "sum on the host": (
        lambda: torch.distributed.all_reduce(torch.ones(4)), RuntimeError, "tensor on cpu",
    ),
    "schema": (
        lambda: torch.ops.npu.npu_moe_token_permute(x, 3), RuntimeError, "indices",
    ),
    "device": (lambda: torch.ones(1, device="npu:7"), RuntimeError, "no such npu: 7"),
}  # fmt: skip
for name, (call, error, words) in CASES.items():
    try:
        call()
    except error as told:
        print(name if words in str(told) else f"{name}: {told}")
print("of", len(CASES))
os._exit(0)
