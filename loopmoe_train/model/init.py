"""Initial weights that do not depend on the layout.

Each parameter is drawn from a generator of its own, seeded by (seed, name of its unique
layer), and each expert by its global index too. So one process and any split of it start
from the same numbers, on any device (the draw is on the host).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Callable, Tuple

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.model.cuts import Cut, cuts
from loopmoe_train.spec.visits import visits

Names = Callable[[str], str]

# Output norms of attention and FFN, in the order of ``depth_scaled_gains``.
_GAINS = ("self_attn_bda.output_norm.weight", "mlp_bda.output_norm.weight")
# Last matrices of a sublayer: scaled down by depth, as core does (GPT-2's rule).
_OUTPUT = ("linear_proj.weight", "linear_fc2.weight", "experts.w2_EFD")


def initialize(model: nn.Module, config: ModelConfig, seed: int, names: Names) -> None:
    """Fill every parameter of a bare chunk of the model.

    norm gains 1, those of the sandwich's output norms by ``depth_scaled_gains`` (arXiv
    2504.07866); biases, the loop's state injection and IterAdaLN's modulation 0 (step 0 of the
    loop body is a plain norm, and its attention branch is off); other matrices normal with
    :func:`_std`.

    Args:
        names: gives a parameter's unique name.
    """
    depth = len(visits(config))
    with torch.no_grad():
        for local, parameter, cut in cuts(model):
            name = names(local)
            if name.endswith("norm.weight"):
                parameter.fill_(_gain(name, config, depth))
            elif ".modulation." in name or ".injection." in name or name.endswith(".bias"):
                parameter.zero_()
            elif ".experts." in name:
                first = parallel_state.get_expert_model_parallel_rank() * parameter.shape[0]
                std = _std(name, config, depth)
                of_one = replace(cut, dim=cut.dim - 1)
                for index, expert in enumerate(parameter):
                    _draw(expert, of_one, std, f"{seed}:{name}:{first + index}")
            else:
                _draw(parameter, cut, _std(name, config, depth), f"{seed}:{name}")


def _draw(part: Tensor, cut: Cut, std: float, key: str) -> None:
    """Draw the whole weight and keep this rank's part: any split starts from the same numbers."""
    part.copy_(cut.part(_normal(cut.whole(tuple(part.shape)), std, key)))


def _gain(name: str, config: ModelConfig, depth: int) -> float:
    for constant, ending in zip(config.depth_scaled_gains or (), _GAINS):
        if name.endswith(ending):
            return constant / math.sqrt(depth)
    return 1.0


def _std(name: str, config: ModelConfig, depth: int) -> float:
    """``init_std``, output matrices divided by sqrt(2 depth); ``tiny``: sqrt(1 / (2 d depth))."""
    if name.endswith("word_embeddings.weight") and config.embedding_init_std is not None:
        return config.embedding_init_std
    if config.init == "tiny":
        return math.sqrt(1 / (2 * config.hidden_size * depth))
    return config.init_std / (math.sqrt(2 * depth) if name.endswith(_OUTPUT) else 1)


def _normal(shape: Tuple[int, ...], std: float, key: str) -> Tensor:
    """Normal numbers from a host generator seeded by ``key``."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    generator = torch.Generator().manual_seed(seed >> 1)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
