"""Build the model of a run on this rank: core's GPTModel over our visits."""

from __future__ import annotations

from typing import Dict, List

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.model.init import initialize
from loopmoe_train.model.layer_specs import block_spec
from loopmoe_train.model.mtp import MTPModel, mtp_spec
from loopmoe_train.spec.visits import visits


def build_gpt(run: RunConfig, vocab_size: int, config: TransformerConfig) -> GPTModel:
    """The bare model in ``params_dtype`` on this rank's device, initialised from ``run.seed``."""
    model = empty_gpt(run, vocab_size, config)
    model.to(accel.current_device())
    initialize(model, run.model, run.seed)
    return model


def empty_gpt(run: RunConfig, vocab_size: int, config: TransformerConfig) -> GPTModel:
    """The bare model as core builds it, its weights not yet drawn.

    Inside ``accelerator.shapes_only()`` it takes no memory.
    """
    heads = run.model.mtp_layers
    return (MTPModel if heads else GPTModel)(
        config=config,
        transformer_layer_spec=block_spec(run.model),  # type: ignore[arg-type]
        vocab_size=vocab_size,
        max_sequence_length=run.sequence_length,
        share_embeddings_and_output_weights=run.model.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=int(run.model.attention.rotary_base),
        mtp_block_spec=mtp_spec(run.model) if heads else None,
    )


def build_model(run: RunConfig, vocab_size: int) -> List[DistributedDataParallel]:
    """The model chunks of this rank, wrapped for data parallelism.

    Raises:
        ValueError: core refuses the configuration.
    """
    config = transformer_config(run)
    model: nn.Module = build_gpt(run, vocab_size, config)
    if config.bf16:
        model = Float16Module(config, model)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=run.parallel.overlap_grad_reduce,
        overlap_param_gather=run.parallel.overlap_param_gather,
        # Muon's owners need the gradients of whole matrices: all-reduced, not scattered by ranges.
        use_distributed_optimizer=run.parallel.distributed_optimizer and run.optim.kind == "adamw",
    )
    return [DistributedDataParallel(config, ddp, model)]


def bare(module: nn.Module) -> GPTModel:
    """The GPTModel inside its wrappers."""
    while not isinstance(module, GPTModel):
        module = module.module  # type: ignore[assignment]
    return module


def layer_names(run: RunConfig) -> Dict[str, str]:
    """Prefixes ``decoder.layers.<visit>.`` of owning visits -> ``decoder.layers.<layer>.``.

    Checkpoints and gradients are named by unique layer, so that they mean the same for any
    number of iterations.
    """
    return {
        f"decoder.layers.{visit.index}.": f"decoder.layers.{visit.layer}."
        for visit in visits(run.model)
        if visit.owns_weights
    }


def unique_name(name: str, prefixes: Dict[str, str]) -> str:
    """A parameter's name by unique layer; ``prefixes`` from :func:`layer_names`."""
    for visit_prefix, layer_prefix in prefixes.items():
        if name.startswith(visit_prefix):
            return layer_prefix + name[len(visit_prefix) :]
    return name
