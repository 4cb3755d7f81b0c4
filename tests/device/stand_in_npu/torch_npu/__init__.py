"""Stands in for torch_npu: a second torch device "npu" that computes on the processor.

What it is told is recorded in order, with arguments, in the folder STAND_IN_RECORD, and compared
at once with the wheel that it stands for (STAND_IN_WHEEL): a name that torch_npu 2.13 does not
have, arguments that its functions do not take, an operator called against its schema, or a sum
over ranks of a type that HCCL cannot sum is an error as on the machine itself.

STAND_IN_LIBRARY: device.cpp, compiled.
"""

import os

import torch

torch.ops.load_library(os.environ["STAND_IN_LIBRARY"])
torch.ops.stand_in.hook()
torch.utils.rename_privateuse1_backend("npu")

from torch_npu import hccl, operators, profiler, record  # noqa: E402
from torch_npu.device import npu  # noqa: E402

torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend()
# what a real one reads of its environment, at this moment or later
record.write("environment", "loaded", [], {
    name: value for name, value in os.environ.items()
    if name.startswith(("HCCL_", "TASK_QUEUE", "PYTORCH_NPU", "CPU_AFFINITY"))
})  # fmt: skip
hccl.register()
operators.register()

__version__ = "2.13.0"
__all__ = ["npu", "profiler"]
