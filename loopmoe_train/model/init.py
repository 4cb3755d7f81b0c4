"""Initial weights that do not depend on the layout.

Each parameter is drawn from a generator of its own, seeded by (seed, name of its unique
layer), and each expert by its global index too. So one process and any split of it start
from the same numbers, on any device (the draw is on the host).
"""

from __future__ import annotations

import hashlib
import math
from typing import Dict

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.spec.visits import visits

# Last matrices of a sublayer: scaled down by depth, as core does (GPT-2's rule).
_OUTPUT = ("linear_proj.weight", "linear_fc2.weight", "experts.w2_EFD")


def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of a bare GPTModel.

    norm scales 1; biases and IterAdaLN's modulation 0 (step 0 of the loop body is a plain
    norm, and its attention branch is off); other matrices normal(0, init_std), the last ones
    of a sublayer divided by sqrt(2 * visits).
    """
    layer_of = {str(v.index): v.layer for v in visits(config)}
    depth_scale = 1 / math.sqrt(2 * len(layer_of))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = _unique(name, layer_of)
            if name.endswith("norm.weight"):
                parameter.fill_(1)
            elif ".modulation." in name or name.endswith(".bias"):
                parameter.zero_()
            elif ".experts." in name:
                first = parallel_state.get_expert_model_parallel_rank() * parameter.shape[0]
                std = config.init_std * (depth_scale if name.endswith(_OUTPUT) else 1)
                for index, expert in enumerate(parameter):
                    expert.copy_(_normal(expert, std, f"{seed}:{key}:{first + index}"))
            else:
                std = config.init_std * (depth_scale if name.endswith(_OUTPUT) else 1)
                parameter.copy_(_normal(parameter, std, f"{seed}:{key}"))


def _unique(name: str, layer_of: Dict[str, int]) -> str:
    head, _, tail = name.partition("decoder.layers.")
    if not tail:
        return name
    index, _, rest = tail.partition(".")
    return f"{head}decoder.layers.{layer_of[index]}.{rest}"


def _normal(like: Tensor, std: float, key: str) -> Tensor:
    """Normal numbers from a host generator seeded by ``key``."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    generator = torch.Generator().manual_seed(seed >> 1)
    return torch.empty(like.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
