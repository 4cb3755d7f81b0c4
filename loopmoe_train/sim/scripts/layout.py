"""Options of Megatron-LM and MindSpeed-LLM as a layout: devices, grid, layers of every slot."""

from __future__ import annotations

import re
from typing import List, Mapping, Optional

from loopmoe_train.sim.scripts.options import MOST_LAYERS, Options, layers_told
from loopmoe_train.sim.shape import Shape
from loopmoe_train.spec.grid import Grid


def tensor_ranks(options: Options) -> int:
    return options.number("tensor-model-parallel-size") or 1


def stages(options: Options) -> int:
    return options.number("pipeline-model-parallel-size", most=MOST_LAYERS) or 1


def devices(options: Options, variables: Mapping[str, str]) -> int:
    """Ranks: as the launcher is told, else as the variables say that scripts use for it."""

    def variable(*names: str) -> Optional[int]:
        texts = [variables.get(name, "").strip() for name in names]
        return next((int(text) for text in texts if re.fullmatch(r"[1-9][0-9]{0,8}", text)), None)

    workers = options.number("worker-num")
    if workers is not None:
        return workers
    if options.text("nproc-per-node") in ("auto", "gpu", "cpu", "npu"):
        each = None
    else:
        each = options.number("nproc-per-node", "num-gpus")
    nodes = options.number("nnodes", "num-nodes")
    if each is None:
        each = variable("NPUS_PER_NODE", "GPUS_PER_NODE", "NPROC_PER_NODE")
        nodes = nodes or variable("NNODES", "NUM_NODES")
        world = variable("WORLD_SIZE")
        if world is not None and (each is None or nodes is None):
            return world
    if each is None:
        options.missing.append("--nproc_per_node (or WORLD_SIZE)")
    return (each or 1) * (nodes or 1)


def grid(options: Options, devices: int) -> Optional[Grid]:
    """The ranks; without experts they are all of one kind. None: they do not fit."""
    tensor, context = tensor_ranks(options), options.number("context-parallel-size") or 1
    expert, experts = options.number("expert-model-parallel-size") or 1, 1
    expert_tensor = 1
    count = options.number("num-experts", least=0) or 0
    if count:
        expert_tensor = options.number("expert-tensor-parallel-size") or tensor
        experts = expert
        if options.has("moe-tp-extend-ep"):
            # whole experts on the ranks of tensor parallelism too
            experts, expert_tensor = expert * tensor, 1
        options.divides("--num-experts", count, "expert-parallel ranks", experts)
    elif expert > 1:
        options.unfit.append(f"--expert-model-parallel-size {expert} without --num-experts")
    try:
        return Grid.of(devices, tensor, context, stages(options), expert_tensor, experts)
    except ValueError as error:
        options.unfit.append(f"the layout does not fit its devices: {error}")
        return None


def slot_lengths(options: Options) -> List[int]:
    """Layers of every slot (chunk * stages + stage); what Megatron refuses is collected."""
    layers, pipeline = layers_told(options), stages(options)
    told = ("num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank",
            "pipeline-model-parallel-layout")  # fmt: skip
    ways = [f"--{name}" for name in told if options.has(name)]
    if len(ways) > 1:
        options.unfit.append(f"{' and '.join(ways)}: only one of them can be set")
    if options.has("pipeline-model-parallel-layout"):
        parts = _layout(options.text("pipeline-model-parallel-layout"))
        if sum(parts) != layers or len(parts) % pipeline:
            options.unfit.append(
                f"--pipeline-model-parallel-layout: its {sum(parts)} layers in {len(parts)} parts "
                f"must be --num-layers {layers} in a multiple of {pipeline}, the stages"
            )
        return parts
    ends = [options.has(f"account-for-{end}-in-pipeline-split") for end in ("embedding", "loss")]
    per_stage = _stage_lengths(options, layers + sum(ends), pipeline)
    chunks = options.number("num-virtual-stages-per-pipeline-rank", most=MOST_LAYERS) or 1
    each = options.number("num-layers-per-virtual-pipeline-stage", most=MOST_LAYERS)
    if each is not None and per_stage:
        if options.divides("layers of a stage", per_stage[0], f"--{told[0]}", each):
            chunks = per_stage[0] // each
    whole = [
        options.divides("layers of a stage", length, "its virtual stages", chunks)
        for length in sorted(set(per_stage))
    ]
    if chunks > 1 and pipeline < 2:
        options.unfit.append("virtual stages need --pipeline-model-parallel-size 2 or more")
    if not whole or not all(whole):
        return []
    lengths = [length // chunks for _ in range(chunks) for length in per_stage]
    lengths[0] -= ends[0]
    lengths[-1] -= ends[1]
    return lengths


def _stage_lengths(options: Options, layers: int, pipeline: int) -> List[int]:
    """Layers of every stage; none if they do not fit."""
    if options.has("num-layer-list"):
        lengths = options.numbers("num-layer-list")
        if len(lengths) != pipeline or sum(lengths) != layers or not all(lengths):
            options.unfit.append(
                f"--num-layer-list {options.text('num-layer-list')[:40]}: must be {pipeline} "
                f"numbers that make --num-layers {layers}"
            )
            return []
        return lengths
    first = options.number("decoder-first-pipeline-num-layers")
    last = options.number("decoder-last-pipeline-num-layers")
    left = layers - (first or 0) - (last or 0)
    middle = pipeline - (first is not None) - (last is not None)
    what = "--num-layers" if left == layers else "layers of the stages in the middle"
    if middle < 1 or left < middle:
        options.unfit.append(f"{left} layers on {middle} stages of the pipeline")
    elif options.divides(what, left, "--pipeline-model-parallel-size" if left == layers else "them",
                         middle):  # fmt: skip
        ends = [[] if one is None else [one] for one in (first, last)]
        return [*ends[0], *[left // middle] * middle, *ends[1]]
    return []


def _layout(text: str) -> List[int]:
    """Layers ("t") of every part of a layout as ``Et*3|(tt|)*29,m|L``."""
    text = re.sub(r"[,\s]", "", text)
    for pattern in (r"\(([^()]+)\)\*(\d{1,4})", r"(.)\*(\d{1,4})"):
        text = re.sub(pattern, lambda found: found[1] * int(found[2]), text[:MOST_LAYERS])
    return [part.count("t") for part in text.split("|")]


def check(
    options: Options, sizes: Shape, grid: Grid, sequence: int, micro: int, batch: int, chunks: int
) -> None:
    """Refusals of Megatron that need more than one option."""
    per_pass = micro * grid.data
    options.divides("--global-batch-size", batch, "--micro-batch-size x data ranks", per_pass)
    if chunks > 1:
        by = "stages, as virtual ones need"
        options.divides("micro-batches of a rank", batch // per_pass, by, grid.pipeline)
    tensor = "--tensor-model-parallel-size"
    attention = sizes.layers[0].attention
    options.divides("--num-attention-heads", attention.heads, tensor, grid.tensor)
    if grid.tensor % attention.groups and attention.groups % grid.tensor:
        options.unfit.append(
            f"--num-query-groups ({attention.groups}) is neither a multiple nor a divisor of "
            f"{tensor} ({grid.tensor})"
        )
    for ffn in {layer.ffn for layer in sizes.layers}:
        if ffn.experts:
            by = "--expert-tensor-parallel-size"
            options.divides("--moe-ffn-hidden-size", ffn.width, by, grid.expert_tensor)
        else:
            options.divides("--ffn-hidden-size", ffn.width, tensor, grid.tensor)
    if grid.context > 1:
        parts = 2 * grid.context
        options.divides("--seq-length", sequence, "2 x --context-parallel-size", parts)
    if options.has("sequence-parallel"):
        options.divides("--seq-length", sequence, tensor, grid.tensor)
    if options.has("use-torch-fsdp2") and grid.pipeline > 1:
        options.unfit.append("--use-torch-fsdp2 has no pipeline")
