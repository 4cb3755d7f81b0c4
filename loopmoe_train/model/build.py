"""Build the model of a run on this rank: core's GPTModel over our visits, a chunk per slot."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from loopmoe_kernels import registry
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.model.cuts import mark
from loopmoe_train.model.init import initialize
from loopmoe_train.model.layer_specs import Owners, block_spec
from loopmoe_train.model.mtp import MTPModel, mtp_spec
from loopmoe_train.spec.placement import placement_of
from loopmoe_train.spec.visits import visits


def build_gpt(run: RunConfig, vocab_size: int, config: TransformerConfig) -> GPTModel:
    """The bare model of a run without a pipeline, in ``params_dtype`` on this rank's device,
    initialised from ``run.seed``."""
    (model,) = _chunks(run, vocab_size, config)
    return model


def empty_gpt(run: RunConfig, vocab_size: int, config: TransformerConfig) -> GPTModel:
    """As :func:`build_gpt`, its weights not yet drawn.

    Inside ``accelerator.shapes_only()`` it takes no memory.
    """
    (model,) = _empty_chunks(run, vocab_size, config)
    return model


def build_model(run: RunConfig, vocab_size: int) -> List[DistributedDataParallel]:
    """The model chunks of this rank, wrapped for data parallelism.

    A layer of the loop body is visited by several chunks of its stage. The chunk of the first
    visit owns its weights, later ones reach them unregistered. Backward visits that chunk last,
    so a gradient is whole, and may be reduced, when its backward is done: any other owner would
    reduce too early. Only the first chunk's gradients are cut into buckets, which is what lets
    a reduction overlap with backward; core gives the other stages one bucket anyway.

    Raises:
        ValueError: core refuses the configuration.
    """
    chunks, config = build_chunks(run, vocab_size)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=run.parallel.overlap_grad_reduce,
        overlap_param_gather=run.parallel.overlap_param_gather,
        # Muon's owners need the gradients of whole matrices: all-reduced, not scattered by ranges.
        use_distributed_optimizer=run.parallel.distributed_optimizer and run.optim.kind == "adamw",
    )
    return [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]


def build_chunks(run: RunConfig, vocab_size: int) -> Tuple[List[nn.Module], TransformerConfig]:
    """The model chunks of this rank, in the run's precision, and core's configuration of them.

    Raises:
        ValueError: core refuses the configuration.
    """
    registry.use(run.cluster.kernels)
    config = transformer_config(run)
    chunks: List[nn.Module] = list(_chunks(run, vocab_size, config))
    if config.bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    return chunks, config


def _chunks(run: RunConfig, vocab_size: int, config: TransformerConfig) -> List[GPTModel]:
    chunks = _empty_chunks(run, vocab_size, config)
    for chunk in chunks:
        chunk.to(accel.current_device())
        initialize(chunk, run.model, run.seed, lambda name, of=chunk: _unique(name, of))
        mark(chunk)
    return chunks


def _empty_chunks(run: RunConfig, vocab_size: int, config: TransformerConfig) -> List[GPTModel]:
    """The chunks of this stage as core builds them."""
    placement, heads = placement_of(run), run.model.mtp_layers
    stage = parallel_state.get_pipeline_model_parallel_rank()
    owners: Owners = {}
    chunks = []
    # Core keeps these by process, in the size of the first model that it met.
    MTPLossLoggingHelper.tracker.clear()
    get_moe_layer_wise_logging_tracker().clear()
    for chunk in range(placement.chunks):
        first = stage == 0 and chunk == 0
        last = stage == placement.stages - 1 and chunk == placement.chunks - 1
        chunks.append(
            (MTPModel if heads else GPTModel)(
                config=config,
                transformer_layer_spec=block_spec(  # type: ignore[arg-type]
                    run.model, placement.at(stage, chunk), owners
                ),
                vocab_size=vocab_size,
                max_sequence_length=run.sequence_length,
                pre_process=first,
                post_process=last,
                share_embeddings_and_output_weights=run.model.tie_embeddings,
                position_embedding_type="rope",
                rotary_base=int(run.model.attention.rotary_base),
                mtp_block_spec=mtp_spec(run.model) if heads and last else None,
                vp_stage=chunk if placement.chunks > 1 else None,
            )
        )
    return chunks


def bare(module: nn.Module) -> GPTModel:
    """The GPTModel inside its wrappers."""
    while not isinstance(module, GPTModel):
        module = module.module  # type: ignore[assignment]
    return module


def layers(model: List[Any]) -> List[Any]:
    """The visits of all chunks of this rank, as layers with a ``visit``."""
    return [layer for chunk in model for layer in bare(chunk).decoder.layers]


def named_weights(model: List[Any]) -> Iterator[Tuple[str, nn.Parameter]]:
    """Every parameter of the chunks of this rank, by unique layer.

    Copies of the embedding on the last stage have the embedding's name.
    """
    for chunk in model:
        for name, parameter in bare(chunk).named_parameters():
            yield _unique(name, bare(chunk)), parameter


def _unique(name: str, chunk: GPTModel) -> str:
    """Name of a chunk's parameter by unique layer, whatever the chunk and its place."""
    if name == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        return "embedding.word_embeddings.weight"
    head, _, tail = name.partition("decoder.layers.")
    if not tail:
        return name
    index, _, rest = tail.partition(".")
    return f"{head}decoder.layers.{chunk.decoder.layers[int(index)].visit.layer}.{rest}"


def layer_names(run: RunConfig) -> Dict[str, str]:
    """Prefixes ``decoder.layers.<visit>.`` of owning visits -> ``decoder.layers.<layer>.``.

    Core names sharded tensors by visit; checkpoints are named by unique layer, so that they mean
    the same for any number of iterations.
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
