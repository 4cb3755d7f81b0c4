"""Tiny plain megatron.core models for the fix scenarios, equal in every layout.

Imported in the process that runs a scenario, after its fixes were switched: megatron.core must
not be imported before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor, nn

from loopmoe_train.device import fixes

VOCAB, SEQUENCE, BATCH = 64, 16, 2


class PlainAttention(nn.Module):
    """Causal attention for MLA's head sizes, which core's own CPU attention does not take."""

    def __init__(self, config: Any, *args: Any, softmax_scale: float | None = None, **kw: Any):
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
        heads_first = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(
            *heads_first, is_causal=True, scale=self.scale
        )
        return out.permute(2, 0, 1, 3).flatten(2).contiguous()


def make_config(mla: bool = False, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "num_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_hidden_size": 48,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "normalization": "RMSNorm",
        "pipeline_dtype": torch.float32,
        "bias_dropout_fusion": False,
    }
    if "num_moe_experts" in changes:
        values |= {"moe_ffn_hidden_size": 48, "moe_router_topk": 2}
        values |= {"moe_router_load_balancing_type": "none"}
        values |= {"moe_token_dispatcher_type": "alltoall"}
    kind: Any = TransformerConfig
    if mla:
        kind = MLATransformerConfig
        values |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_head_dim": 8, "v_head_dim": 8}
        values |= {"qk_pos_emb_head_dim": 8, "qk_layernorm": True, "rope_type": "rope"}
    return kind(**(values | changes))


@dataclass
class Tiny:
    """A wrapped model of one rank and what one training pass gave."""

    config: Any
    chunks: list[Any]
    losses: list[float] = field(default_factory=list)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by the name that they have in a model on one process."""
        for chunk in self.chunks:
            inner = chunk.module
            numbers = [layer.layer_number - 1 for layer in inner.decoder.layers]
            for name, parameter in inner.named_parameters():
                yield _global_name(name, numbers), parameter

    def run(self, microbatches: int = 1) -> float:
        """One forward and backward pass over the fixed data; returns the mean loss (or 0)."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        schedule = get_forward_backward_func()
        data = [iter(batches(microbatches)) for _ in self.chunks]
        done = schedule(
            forward_step_func=forward_step,
            data_iterator=data if len(data) > 1 else data[0],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=microbatches,
            seq_length=SEQUENCE,
            micro_batch_size=BATCH,
            forward_only=False,
        )
        return sum(float(item["loss"]) for item in done) / len(done) if done else 0.0


def _global_name(name: str, numbers: list[int]) -> str:
    return re.sub(
        r"decoder\.layers\.(\d+)\.", lambda m: f"decoder.layers.{numbers[int(m[1])]}.", name
    )


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    shape = (BATCH, SEQUENCE + 1)
    return [torch.randint(0, VOCAB, shape, generator=generator) for _ in range(count)]


def forward_step(data: Iterator[Tensor], model: nn.Module) -> tuple[Tensor, Any]:
    tokens = next(data)
    positions = torch.arange(SEQUENCE).expand(BATCH, -1)
    output = model(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())

    def loss(per_token: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mean = per_token.float().mean()
        return mean, {"loss": mean.detach()}

    return output, loss


def start(rank: int, world: int, store: str, **sizes: int | None) -> None:
    """Bring up gloo over a file and core's process groups."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    parallel_state.initialize_model_parallel(**sizes)
    model_parallel_cuda_manual_seed(1234)


def build(config: Any, experts: int | None = None, **ddp: Any) -> Tiny:
    """Build this rank's chunks with weights that depend on their names alone."""
    fixes.apply_config_rules(config, "cpu")
    mla = isinstance(config, MLATransformerConfig)
    spec = get_gpt_layer_local_spec(
        num_experts=experts,
        moe_grouped_gemm=False,
        multi_latent_attention=mla,
        qk_layernorm=mla,
        normalization=config.normalization,
    )
    if experts and isinstance(config.moe_layer_freq, list):
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
    if mla:
        spec.submodules.self_attention.submodules.core_attention = PlainAttention
    config.finalize_model_grads_func = finalize_model_grads
    count = config.virtual_pipeline_model_parallel_size or 1
    chunks = []
    for index in range(count):
        virtual = {"vp_stage": index} if count > 1 else {}
        model = GPTModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=VOCAB,
            max_sequence_length=SEQUENCE,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, **virtual),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, **virtual),
            share_embeddings_and_output_weights=False,
            position_embedding_type="none" if mla else "rope",
            **virtual,
        )
        model.model_type = ModelType.encoder_or_decoder
        settings = DistributedDataParallelConfig(**ddp)
        chunks.append(DistributedDataParallel(config, settings, model, disable_bucketing=index > 0))
    tiny = Tiny(config, chunks)
    with torch.no_grad():
        for name, parameter in tiny.parameters():
            parameter.copy_(shard(name, full_weight(name, parameter), parameter))
    return tiny


def _partition(name: str, parameter: nn.Parameter) -> tuple[int, int]:
    """(dimension, number of parts) along which a parameter is split over tensor parallel ranks."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return 0, 1
    parts = (
        parallel_state.get_expert_tensor_parallel_world_size()
        if ".experts." in name
        else parallel_state.get_tensor_model_parallel_world_size()
    )
    return parameter.partition_dim, parts  # type: ignore[attr-defined]


def full_weight(name: str, parameter: nn.Parameter) -> Tensor:
    """The weight of the whole model: a function of its name and full shape."""
    dimension, parts = _partition(name, parameter)
    shape = list(parameter.shape)
    shape[dimension] *= parts
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return 1.0 + 0.1 * values if len(shape) == 1 else 0.15 * values


def shard(name: str, full: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's part of a full weight or gradient."""
    dimension, parts = _partition(name, parameter)
    rank = parallel_state.get_tensor_model_parallel_rank()
    return full.chunk(parts, dimension)[rank if parts > 1 else 0]
