"""What groups megatron-core makes of a layout, on torch's fake backend: one process, any rank.

Reads a list of (world, rank, sizes) as JSON from stdin; prints a list of {group: ranks}.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, List

from loopmoe_train.device.accelerator import select

select("cpu")

import torch.distributed as dist  # noqa: E402  the device must be selected before megatron
from megatron.core import parallel_state as core  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402


def groups() -> Dict[str, List[int]]:
    made = {
        "tensor": core.get_tensor_model_parallel_group(),
        "context": core.get_context_parallel_group(),
        "pipeline": core.get_pipeline_model_parallel_group(),
        "data": core.get_data_parallel_group(),
        "context data": core.get_data_parallel_group(with_context_parallel=True),
        "tensor pipeline": core.get_model_parallel_group(),
        "tensor context": core.get_tensor_and_context_parallel_group(),
        "tensor data": core.get_tensor_and_data_parallel_group(),
        "tensor context data": core.get_tensor_and_data_parallel_group(with_context_parallel=True),
        "expert_tensor": core.get_expert_tensor_parallel_group(),
        "expert": core.get_expert_model_parallel_group(),
        "expert_data": core.get_expert_data_parallel_group(),
        "expert_tensor expert": core.get_expert_tensor_and_model_parallel_group(),
        "expert_tensor expert pipeline": core.get_expert_tensor_model_pipeline_parallel_group(),
    }
    return {axes: dist.get_process_group_ranks(group) for axes, group in made.items()}


def main(cases: List[Any]) -> List[Dict[str, List[int]]]:
    results = []
    for world, rank, sizes in cases:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        core.initialize_model_parallel(
            tensor_model_parallel_size=sizes["tensor"],
            context_parallel_size=sizes["context"],
            pipeline_model_parallel_size=sizes["pipeline"],
            expert_tensor_parallel_size=sizes["expert_tensor"],
            expert_model_parallel_size=sizes["expert"],
            create_gloo_process_groups=False,
        )
        results.append(groups())
        core.destroy_model_parallel()
        dist.destroy_process_group()
    return results


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
