"""A launch script of Megatron-LM or MindSpeed-LLM as a workload.

:func:`read` follows the script without running anything (:mod:`.bash`) and takes the options of
the command that starts the training; :func:`workload_of_script` makes a workload of them.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from loopmoe_train.errors import Refused
from loopmoe_train.sim.machine import HARDWARE
from loopmoe_train.sim.scripts import layout
from loopmoe_train.sim.scripts import options as megatron
from loopmoe_train.sim.scripts.bash.shell import Shell
from loopmoe_train.sim.scripts.options import Options
from loopmoe_train.sim.workload import (
    IMBALANCE,
    Memory,
    Overlap,
    Workload,
    without_idle,
)

_LAUNCHERS = ("torchrun", "msrun", "torch.distributed.launch", "torch.distributed.run",
              "deepspeed")  # fmt: skip
_PROGRAM = re.compile(r"(?:.*/)?\w*train\w*\.py")
_LONGEST = 1_000_000  # characters
_SAYS = ("echo", "printf", ":", "cat", "ls")  # that name a program and do not start it
# Options that change time or memory and are not simulated -> values that change nothing.
_UNUSED: Dict[str, Tuple[str, ...]] = {
    "cpu-offloading": (), "cpu-offloading-num-layers": ("0",), "delay-wgrad-compute": (),
    "data-parallel-sharding-strategy": ("no_shard", "optim", "optim_grads_params"),
    "distribute-saved-activations": (), "enable-dsa-indexer": (), "enable-mhc": (),
    "fine-grained-activation-offloading": (), "fp8-param-gather": (), "full-attention-interval": (),
    "interleave-sliding-window": (), "is-hybrid-model": (), "loss-compute-mode": ("default",),
    "mla-swap-core-attn-out": (), "moe-layer-recompute": (),
    "moe-shared-expert-overlap": (), "moe-unperm2-mem-optim": (), "moe-zerc": (),
    "moe-zero-memory-num-layers": (), "mtp-mem-efficient-logits": (), "optimizer": ("adam",),
    "optimizer-cpu-offload": (), "recompute-activation-function-num-layers": (),
    "recompute-in-advance": (), "recompute-norm-num-layers": (), "schedules-method": (),
    "tp-2d": (), "ulysses-degree-in-cp": ("1",),
    "use-precision-aware-optimizer": (), "window-attn-skip-freq": (), "window-size": (),
}  # fmt: skip
_UNUSED_BEGIN = ("fsdp", "hybrid-", "hierarchical-context-parallel", "linear-", "lora-", "mamba-")


@dataclass(frozen=True)
class Script:
    """What a launch script says.

    Attributes:
        name: that errors begin with, and that the model is called by.
        options: of the launcher and the program: values by name, without the dashes before it
            and with dashes for underscores; of one that is there twice the last.
        variables: of the shell behind the last line.
        preset: of ``configs/cluster``, as far as the script tells its hardware, else "".
        lost: options that bash does not pass on: a comment or a blank behind a backslash ends
            the command before them.
    """

    name: str
    options: Mapping[str, Tuple[str, ...]]
    variables: Mapping[str, str]
    preset: str = ""
    lost: Tuple[str, ...] = ()

    @property
    def unused(self) -> Tuple[str, ...]:
        """Options that change time or memory but are not simulated, as ``--name``."""
        found = [
            f"--{name}"
            for name, values in self.options.items()
            if (name in _UNUSED and values[:1] not in [(one,) for one in _UNUSED[name]])
            or name.startswith(_UNUSED_BEGIN)
        ]
        modules = _modules(self.options)
        return (*found, *(f"--recompute-modules {one}" for one in modules if one not in _MODULES))


def load(
    file: Path, variables: Optional[Mapping[str, str]] = None, more: Sequence[str] = ()
) -> Script:
    """:func:`read` of a file.

    Raises:
        Refused: it cannot be read, or as :func:`read`.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: {error}", "name a launch script, as pretrain_*.sh") from error
    return read(text, file.name, variables, more)


def read(
    text: str,
    name: str = "the script",
    variables: Optional[Mapping[str, str]] = None,
    more: Sequence[str] = (),
) -> Script:
    """What a bash script would start, without running anything.

    Args:
        name: for errors.
        variables: of the environment, where the script needs some; its parameters are "1", "2".
        more: words behind those of its launch command, as ``--vocab-size``, ``32000``.

    Raises:
        Refused: bash could not read it, or it starts no training.
    """
    if len(text) > _LONGEST:
        raise Refused(f"{name}: it is too long for a launch script", "name another file")
    shell = Shell(variables or {})
    try:
        shell.follow(text)
    except Refused as error:
        raise Refused(f"{name}: {error.what}", error.fix) from None
    launch = _launch(shell.commands)
    if launch is None:
        raise Refused(
            f"{name}: starts no training",
            "it must call torchrun, msrun, torch.distributed.launch or python pretrain_*.py",
        )
    lost: List[str] = []
    for command in shell.commands[launch + 1 :]:
        if not command[0].startswith("--"):
            break
        lost += [f"--{option}" for option in _options(command)]
    options = _options([*shell.commands[launch], *more])
    preset = _preset(name, text, options, shell.variables)
    return Script(name, options, shell.variables, preset, tuple(lost))


def _launch(commands: Sequence[Sequence[str]]) -> Optional[int]:
    """Which command starts the training: the last one, with sizes if any has."""
    found = [
        place
        for place, words in enumerate(commands)
        if words[0] not in _SAYS
        and any(os.path.basename(one) in _LAUNCHERS or _PROGRAM.fullmatch(one) for one in words)
    ]
    sized = [place for place in found if "num-layers" in _options(commands[place])]
    return max(sized or found, default=None)


def _options(words: Sequence[str]) -> Dict[str, Tuple[str, ...]]:
    found: Dict[str, Tuple[str, ...]] = {}
    name: Optional[str] = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("_", "-")
            found.pop(name, None)
            found[name] = (value,) if equals else ()
            name = None if equals else name
        elif name is not None and word.strip("\\"):  # a backslash that a blank follows is a word
            found[name] += (word,)
    return found


def _preset(
    name: str, text: str, options: Mapping[str, Sequence[str]], variables: Mapping[str, str]
) -> str:
    """The name of the file says it, or the text, or what is set and asked for."""
    found = (
        preset
        for told in (name.lower(), text.lower())
        for word, preset in HARDWARE
        if re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", told)
    )
    first = next(found, "ascend_a2" if _ascend(options, variables) else "")
    return "ascend_a3" if first == "ascend_a2" and variables.get("NPUS_PER_NODE") == "16" else first


def _ascend(options: Mapping[str, Sequence[str]], variables: Mapping[str, str]) -> bool:
    """Whether a script is for MindSpeed."""
    return any(name.startswith(("HCCL_", "NPU", "ASCEND_")) or "_NPU_" in name
               for name in variables) or any("ascend" in name for name in options)  # fmt: skip


# -- the workload ------------------------------------------------------------------------------
def workload_of_script(script: Script) -> Workload:
    """The training step that a script starts.

    Raises:
        Refused: sizes are missing or no numbers, or Megatron would refuse them; all at once.
    """
    options = Options(script.options)
    npu = _ascend(script.options, script.variables)
    grid = layout.grid(options, layout.devices(options, script.variables))
    tensor = layout.tensor_ranks(options)
    sizes = megatron.shape(options, script.name, tensor, _fused(options, npu))
    sequence, micro = options.need("seq-length"), options.need("micro-batch-size")
    batch = options.number("global-batch-size")
    lengths, idle = layout.slot_lengths(options), megatron.idle(options)
    chunks = max(1, len(lengths) // layout.stages(options))
    memory = _memory(options, max(lengths, default=1), chunks)
    precision, gradient, states = _precision(options)
    imbalance, dropout = _imbalance(options), options.real("hidden-dropout")
    if grid is not None:
        batch = micro * grid.data if batch is None else batch
        layout.check(options, sizes, grid, sequence, micro, batch, chunks)
    if script.lost and options.missing:
        cut = ", ".join((*script.lost[:3], "...") if len(script.lost) > 3 else script.lost)
        options.wrong.append(f"a comment or a blank behind a backslash cuts {cut} off")
    options.refuse(script.name)
    assert grid is not None and batch is not None
    return Workload(
        shape=sizes,
        grid=grid,
        slots=without_idle(_ranges(lengths), idle),
        sequence=sequence,
        micro_batch=micro,
        global_batch=batch,
        precision=precision,
        sequence_parallel=options.has("sequence-parallel") and grid.tensor > 1,
        sharding=_sharding(options, grid.pipeline),
        exchange=_exchange(options),
        imbalance=imbalance,
        probs_first=not npu,
        fused_loss=options.has("cross-entropy-loss-fusion"),
        fused_gradient=_fused_gradient(options, npu),
        dropout=dropout is None or dropout > 0,
        context=_context(options),
        states=states,
        gradient=gradient,
        graphs=options.has("enable-cuda-graph", "external-cuda-graph")
        or options.text("cuda-graph-impl", "none") != "none",
        memory=memory,
        overlap=Overlap(
            gradients=options.has("overlap-grad-reduce"),
            weights=options.has("overlap-param-gather"),
            pipeline=chunks > 1 and not options.has("no-overlap-p2p-communication"),
            tensor=options.has("use-ascend-mc2", "use-ascend-coc", "tp-comm-overlap"),
            experts=megatron.hidden_exchange(" ".join(options.values)),
        ),
    )


def _ranges(lengths: Sequence[int]) -> List[range]:
    begins = [sum(lengths[:place]) for place in range(len(lengths))]
    return [range(begin, begin + length) for begin, length in zip(begins, lengths)]


def _fused(options: Options, npu: bool) -> bool:
    """Whether attention is one kernel that never stores its scores."""
    if options.has("use-flash-attn") or options.text("attention-backend") in ("flash", "fused"):
        return True
    if npu or options.text("attention-backend") in ("unfused", "local"):
        return False
    return options.text("transformer-impl", "transformer_engine") != "local"


def _fused_gradient(options: Options, npu: bool) -> bool:
    if npu:
        return options.has("gemm-gradient-accumulation-fusion")
    return not options.has("no-gradient-accumulation-fusion")


def _precision(options: Options) -> Tuple[str, float, float]:
    """Of products, and bytes of a parameter's gradient and of its states."""
    bf16, fp16 = options.has("bf16"), options.has("fp16")
    if bf16 and fp16:
        options.unfit.append("--bf16 and --fp16: only one of them can be set")
    if not bf16 and not fp16:
        return "fp32", 4.0, 8.0
    # fp16 gradients are reduced as they are, bf16 ones in fp32, unless told otherwise
    whole = options.has("accumulate-allreduce-grads-in-fp32") or bf16
    gradient = 4.0 if whole and not options.has("grad-reduce-in-bf16") else 2.0
    if options.has("fp4-format"):
        return "fp4", gradient, 12.0
    return "fp8" if options.has("fp8-format", "fp8-hybrid", "fp8-e4m3") else "bf16", gradient, 12.0


def _sharding(options: Options, pipeline: int) -> str:
    strategy = options.text("data-parallel-sharding-strategy")
    if options.has("use-torch-fsdp2") or strategy == "optim_grads_params":
        # on a pipeline weights stay gathered between micro-batches
        return "full" if pipeline == 1 else "optimizer"
    spread = options.has("use-distributed-optimizer") or strategy.startswith("optim")
    return "optimizer" if spread else "none"


def _exchange(options: Options) -> str:
    if not options.number("num-experts", least=0):
        return "alltoall"
    kind = options.text("moe-token-dispatcher-type", "allgather")
    if kind == "flex" or options.has("moe-enable-deepep"):
        return "chunked"
    if options.has("moe-hierarchical-alltoallv"):
        return "hierarchical"
    return "allgather" if kind == "allgather" else "alltoall"


def _imbalance(options: Options) -> float:
    """Tokens of the fullest rank over the mean; experts may have a capacity."""
    capacity = options.real("moe-expert-capacity-factor")
    forced = options.has("fix-router", "moe-router-force-load-balancing")
    if not options.number("num-experts", least=0) or forced:
        return 1.0
    if capacity is None or options.has("moe-pad-expert-input-to-capacity"):
        return capacity or IMBALANCE
    return min(capacity, IMBALANCE)


def _context(options: Options) -> str:
    kind = options.text("context-parallel-algo") or options.text("cp-comm-type")
    return {
        "ulysses_cp_algo": "ulysses", "a2a": "ulysses", "kvallgather_cp_algo": "gather",
        "allgather": "gather", "all_gather": "gather",
    }.get(kind, "ring")  # fmt: skip


# Megatron's names of parts that are recomputed.
_MODULES = {
    "layernorm": "norm", "moe_act": "act", "core_attn": "core_attn", "mlp": "mlp", "moe": "moe",
    "mla_up_proj": "mla_up_proj", "shared_experts": "shared_experts",
}  # fmt: skip


def _modules(options: Mapping[str, Sequence[str]]) -> List[str]:
    values = options.get("recompute-modules", ())
    return [name for value in values for name in value.split(",") if name]


def _memory(options: Options, most: int, chunks: int) -> Memory:
    """What is recomputed and where states live. ``most``: layers of the longest slot."""
    full: Optional[int] = None
    modules = set()
    kind = options.text("recompute-granularity")
    method = options.text("recompute-method")
    if options.has("recompute-activations") or kind == "selective":
        names = _modules(options.values) or ["core_attn"]
        modules |= {_MODULES[name] for name in names if name in _MODULES}
    elif kind == "full":
        count = options.number("recompute-num-layers")
        if method not in ("uniform", "block") or (method == "block" and count is None):
            options.unfit.append(
                "--recompute-granularity full needs --recompute-method uniform, or block with "
                "--recompute-num-layers"
            )
        if method == "block" and options.has("enable-recompute-layers-per-pp-rank"):
            count = -(-(count or 1) // chunks)
        full = min(most, count or most) if method == "block" else most
    if options.has("recompute-activation-function"):
        modules.add("act")
    if options.has("recompute-norm"):
        modules.add("norm")
    if options.has("recompute-mla-up-proj"):
        modules.add("mla_up_proj")
    level = options.text("moe-zero-memory")
    modules |= {"level0": {"act"}, "level1": {"act", "norm"}}.get(level, set())
    swap = {name for name in ("optimizer", "attention") if options.has(f"swap-{name}")}
    return Memory(full, frozenset(modules), frozenset(swap), options.has("reuse-fp32-param"))
