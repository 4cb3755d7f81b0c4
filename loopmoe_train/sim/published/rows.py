"""Rows of published measurements as workloads.

The columns are those of the file that comes with the package; a row that cannot be read as a
training step says why (:class:`Skipped`).
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Set, Tuple

from loopmoe_train.errors import Refused
from loopmoe_train.sim.machine import HARDWARE, Machine, machine_of, named
from loopmoe_train.sim.published.models import known
from loopmoe_train.sim.published.software import SOFTWARE
from loopmoe_train.sim.scripts.options import hidden_exchange
from loopmoe_train.sim.shape import Attention, Ffn, Layer, Shape
from loopmoe_train.sim.workload import (
    IMBALANCE,
    Memory,
    Overlap,
    Workload,
    even_slots,
    without_idle,
)
from loopmoe_train.spec.grid import Grid

COLUMNS = (
    "id", "model", "layers", "hidden", "heads", "kv_heads", "ffn", "num_experts", "topk", "shared",
    "moe_ffn", "mla", "vocab", "seq", "gbs", "mbs", "hardware", "devices", "tp", "sp", "cp", "pp",
    "vpp", "ep", "etp", "dp", "zero_dist_opt", "recompute", "precision", "overlap_flags", "metric",
    "value", "unit", "notes",
)  # fmt: skip


class Skipped(Exception):
    """Why no prediction can be made for a row."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        family: where it comes from: the words of its name before the number.
        version: of the software, as far as it is told.
        value: measured, in ``unit``.
    """

    id: str
    family: str
    model: str
    machine: str
    version: str
    metric: str
    unit: str
    value: float
    fields: Dict[str, str]

    @property
    def group(self) -> str:
        """Rows of one hardware and software, which one factor may bring to scale."""
        return (
            f"{self.family}/{self.machine}/{self.version}"
            if self.version
            else (f"{self.family}/{self.machine}")
        )


def read(file: Path) -> List[Row]:
    """All rows of a CSV.

    Raises:
        Refused: not readable, or columns are missing.
    """
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise Refused(f"{file} lacks the columns {', '.join(missing)}", "add them")
            return [_row(fields, file) for fields in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{file}: {error}", "name a CSV of measured rows") from error


def _row(fields: Dict[str, str], file: Path) -> Row:
    fields = {key: (value or "").strip() for key, value in fields.items() if key}
    hardware = fields["hardware"].lower()
    machine = next((name for word, name in HARDWARE if word in hardware), "")
    family, _, _ = fields["id"].partition("-")
    if family == "ASC":
        family = "-".join(fields["id"].split("-")[:2])
    found = re.search(r"(\d\d\.\d\d(\.\d\d)?) NeMo", fields["notes"])
    version = found[1] if found else ""
    if family == "ASC-MFU":
        version = fields["id"].split("-")[2]
    if family == "MGS":
        version = "Megatron-LM" if "Megatron-LM" in fields["id"] else "MegaScale"
    try:
        value = float(fields["value"])
    except ValueError:
        value = float("nan")
    return Row(
        fields["id"], family, fields["model"], machine, version, fields["metric"], fields["unit"],
        value, fields,
    )  # fmt: skip


def machine(row: Row) -> Machine:
    """The machine of a row.

    Raises:
        Skipped: unknown hardware.
    """
    if not row.machine:
        raise Skipped(f"hardware {row.fields['hardware']!r} is not known")
    cluster = named(row.machine)
    hardware = row.fields["hardware"].lower()
    if "800 gbps inter-node" in hardware:  # of a node with 8
        cluster.links[-1].gbytes_per_s = 12.5
    if "40gb" in hardware:
        cluster.memory_gib, cluster.memory_gbytes_per_s = 39.5, 1555
    for one in SOFTWARE:
        if one.holds(row.family, row.machine, row.version):
            for name, value in one.reached.items():
                setattr(cluster.efficiency, name, value)
    return machine_of(cluster)


# -- reading the columns -----------------------------------------------------------------------
def _number(fields: Dict[str, str], name: str) -> Optional[int]:
    found = re.match(r"-?\d+", fields[name])
    least = 0 if name in _MAY_BE_ZERO else 1
    if found and not least <= int(found[0]) <= (_MOST_LAYERS if name == "layers" else 10**9):
        raise Skipped(f"{name}={found[0]} is no size")
    return int(found[0]) if found else None


_MOST_LAYERS = 2000
_MAY_BE_ZERO = ("num_experts", "shared", "vpp", "ep", "etp", "topk", "kv_heads", "dp")


def _must(fields: Dict[str, str], *names: str) -> List[int]:
    values = [_number(fields, name) for name in names]
    missing = [name for name, value in zip(names, values) if value is None]
    if missing:
        raise Skipped(f"no {', '.join(missing)} given")
    return [value for value in values if value is not None]


def shape(row: Row) -> Shape:
    """Sizes of a row's model.

    Raises:
        Skipped: they are not told, or of a kind that is not simulated.
    """
    fields, flags = row.fields, row.fields["overlap_flags"]
    if "mamba" in flags or re.search(r"nemotron.?3", row.model.lower()):
        raise Skipped("a hybrid with Mamba layers")
    if "qwen3_next" in row.model.lower():
        raise Skipped("a hybrid with linear attention")
    layers, hidden, heads = _must(fields, "layers", "hidden", "heads")
    more = known(row.model)
    layers -= len(_idle(row, layers))
    groups = _number(fields, "kv_heads") or heads
    dim = more.head_dim or hidden // heads
    mla = fields["mla"] == "1"
    fused = not (
        row.family in ("VTR", "KOR", "KORM", "SC21")
        or (row.machine.startswith("ascend") and "use-flash-attn" not in flags
            and row.family in ("ASC-RC1", "ASC-RC3", "ASC-RC2"))
    )  # fmt: skip
    if mla:
        q_rank, kv_rank, nope, rope, value = more.latent or (1536, 512, 128, 64, 128)
        attention = Attention(heads, heads, nope + rope, value, rope, q_rank, kv_rank, fused=fused)
    else:
        rope = 0 if more.gated is False else dim
        attention = Attention(heads, groups, dim, dim, rope, fused=fused)
    width = _number(fields, "ffn")
    gated = more.gated if more.gated is not None else width is not None or mla
    experts = _number(fields, "num_experts") or 0
    if width is None and not experts:
        width, gated = 4 * hidden, False if more.gated is None else more.gated
    dense = Ffn(width or 4 * hidden, gated)
    sparse = dense
    if experts:
        top_k = _number(fields, "topk") or 2
        narrow = _number(fields, "moe_ffn") or width or 4 * hidden
        shared = (_number(fields, "shared") or 0) * narrow
        sparse = Ffn(narrow, True, experts, top_k, shared)
        gated = True
    dense = replace(dense, passes=more.passes)
    sparse = replace(sparse, passes=more.passes)
    first = more.dense_layers if experts else 0
    told = re.search(r"first-k-dense-replace=(-?\d+)", flags)
    if told and experts:
        first = max(0, int(told[1]))
    first = min(first, max(0, layers - 1))
    own = [Layer(attention, dense if place < first else sparse) for place in range(layers)]
    mtp = re.search(r"mtp-num-layers=(\d+)", flags)
    vocab = _number(fields, "vocab") or more.vocab or 32000
    return Shape(
        row.model, hidden, vocab, tuple(own), tuple(range(layers)),
        mtp=int(mtp[1]) if mtp else int("w/ MTP" in row.model), tied=more.tied,
    )  # fmt: skip


def _idle(row: Row, layers: int) -> List[int]:
    """Places of layers that do nothing: they only fill slots of the pipeline."""
    told = re.search(r"noop-layers=([\d,]+)", row.fields["overlap_flags"])
    if told:
        return [int(place) for place in told[1].split(",") if place and int(place) < layers]
    if known(row.model).dense_layers == 3 and layers == 64:
        return [61, 62, 63]
    return []


def _slots(row: Row, visits: int, slots: int) -> Tuple[Tuple[int, ...], ...]:
    idle = _idle(row, _must(row.fields, "layers")[0])
    return without_idle(even_slots(visits + len(idle), slots), idle)


def _grid(row: Row) -> Grid:
    fields = row.fields
    (devices,) = _must(fields, "devices")
    tp, cp, pp = (_number(fields, name) or 1 for name in ("tp", "cp", "pp"))
    ep = _number(fields, "ep") or 1
    if not _number(fields, "num_experts"):
        ep = 1
    etp = _number(fields, "etp")
    if etp is None:
        # Without folding the experts are cut as attention is, where the ranks allow it.
        etp = tp if ep > 1 and devices % (pp * ep * tp) == 0 else 1
    if not _number(fields, "num_experts"):
        etp, ep = 1, 1
    dp = _number(fields, "dp")
    if dp and devices != dp * tp * cp * pp and row.family not in ("DSV3",):
        devices = dp * tp * cp * pp
    try:
        return Grid.of(devices, tp, cp, pp, etp, ep)
    except ValueError as error:
        raise Skipped(f"its layout does not fit its devices: {error}") from None


_PRECISION = (("nvfp4", "fp4"), ("fp8", "fp8"), ("mxfp8", "fp8"))


def workload(row: Row) -> Workload:
    """The training step of a row.

    Raises:
        Skipped: it is not told whole, or not simulated.
    """
    fields, flags, notes = row.fields, row.fields["overlap_flags"], row.fields["notes"]
    if "SUSPECT" in notes:
        raise Skipped("marked as suspect")
    if "LoRA" in notes:
        raise Skipped("LoRA is not full training")
    if "packed 256K" in notes:
        raise Skipped("packed samples of unknown length")
    sizes = shape(row)
    if not _number(fields, "tp") and not _number(fields, "pp") and not _number(fields, "dp"):
        raise Skipped("no layout given")
    grid = _grid(row)
    (sequence,) = _must(fields, "seq")
    micro = _number(fields, "mbs") or 1
    batch = _number(fields, "gbs")
    if batch is None:
        raise Skipped("no global batch given")
    chunks = _number(fields, "vpp") or 1
    visits = len(sizes.order)
    if row.family in ("FOLD", "LL3") and grid.pipeline > 1:
        chunks = max(1, visits // grid.pipeline)  # interleaved, a layer a chunk
    places = max(visits, _number(fields, "layers") or 0)  # idle layers fill slots too
    if grid.pipeline == 1 or chunks * grid.pipeline > places:
        chunks = 1
    per_rank = batch // (micro * grid.data)
    if per_rank < 1:
        micro, per_rank = max(1, batch // grid.data), 1
    if chunks > 1 and per_rank < grid.pipeline:
        chunks = 1
    if grid.pipeline > visits:
        raise Skipped("more stages than layers")
    kind = fields["precision"].lower()
    precision = next((name for word, name in _PRECISION if word in kind), "bf16")
    sharding = "none"
    zero = fields["zero_dist_opt"].lower()
    if ("fsdp" in zero or "zero-3" in zero or "FSDP" in row.id) and grid.pipeline == 1:
        sharding = "full"
    elif "fsdp" in zero:
        sharding = "optimizer"  # on a pipeline weights stay gathered between micro-batches
    elif any(word in zero for word in ("dist_opt", "zero", "parallel_optimizer")):
        sharding = "optimizer"
    if row.family in ("NVB", "FOLD", "MGS") and sharding == "none":
        sharding = "optimizer"
    nvidia = not row.machine.startswith("ascend")
    balanced = row.family in ("NVB", "FOLD", "SMX", "NVM") or "fix-router" in flags
    exchange = "allgather" if "dispatcher-type=allgather" in flags else "alltoall"
    if row.family == "NVB" or "dispatcher-type=flex" in flags or "DeepEP" in flags:
        exchange = "chunked"
    slots = _slots(row, visits, chunks * grid.pipeline)
    swap: Set[str] = set()
    if "swap-optimizer" in zero:
        swap.add("optimizer")
    if "swap-attention" in fields["recompute"]:
        swap.add("attention")
    old = row.family in ("VTR", "KOR", "KORM", "SC21", "MGS")
    context = "ulysses" if "ulysses" in flags else "ring"
    return Workload(
        shape=sizes,
        grid=grid,
        slots=slots,
        sequence=sequence,
        micro_batch=micro,
        global_batch=batch,
        precision=precision,
        sequence_parallel=fields["sp"] != "0" and not (old and fields["sp"] != "1")
        and "seqsel" not in row.id or "seqsel" in row.id,
        sharding=sharding,
        exchange=exchange,
        imbalance=1.0 if balanced else IMBALANCE,
        probs_first=nvidia,
        fused_loss="CE fusion on" in notes or row.family == "NVB",
        fused_gradient=row.family != "SMX",
        # Megatron accumulates bf16 gradients in fp32, fp16 ones as they are
        gradient=2.0 if "16" in kind and "bf" not in kind and "bfloat" not in kind else 4.0,
        dropout=old,
        context=context,
        states=12.0,
        graphs=row.family == "NVB" and (not sizes.layers[-1].ffn.experts or row.version > "26.02"),
        memory=_memory(row, max(map(len, slots)), swap),
        overlap=Overlap(
            gradients="overlap-grad-reduce" in flags
            or row.family in ("NVB", "FOLD", "SMX", "LL3")
            or _step_of_ladder(row) >= 5,
            weights="overlap-param-gather" in flags or row.family in ("NVB", "FOLD"),
            pipeline=chunks > 1,
            tensor=any(w in flags for w in ("mc2", "coc", "tp-comm-overlap", "TP overlap"))
            or row.family == "NVB"
            or _step_of_ladder(row) >= 3,
            experts=hidden_exchange(flags),
        ),
    )  # fmt: skip


# MegaScale's ablation: every step holds those before it.
_LADDER = ("baseline", "PTB", "SWA", "TPoverlap", "PPoverlap", "DPoverlap", "efficient", "misc",
           "LAMB")  # fmt: skip


def _step_of_ladder(row: Row) -> int:
    if "MegaScale" in row.id:
        return len(_LADDER)
    if not row.id.startswith("MGS-ABL-"):
        return -1
    word = row.id[len("MGS-ABL-") :]
    return next((place for place, name in enumerate(_LADDER) if word.startswith(name)), 0)


def _memory(row: Row, most: int, swap: Set[str]) -> Memory:
    """``most``: layers of the longest slot."""
    text = row.fields["recompute"].lower()
    zero = row.fields["zero_dist_opt"]
    full: Optional[int] = None
    if text.startswith("full"):
        full = most
        block = re.search(r"block n=(\d+)", text)
        if block:
            full = min(most, int(block[1]))
    modules = set()
    if "activation-function" in text or "moe_act" in text:
        modules.add("act")
    if "norm" in text:
        modules.add("norm")
    if "mla_up_proj" in text or "mla up-proj" in text or "mla qkv" in text:
        modules.add("mla_up_proj")
    if re.search(r"modules=\[.*\bmlp\b", text):
        modules.add("mlp")
    if "attn core" in text or text == "seqsel" or text == "selective":
        modules.add("core_attn")
    if text in ("per-op sac", "selective") and row.family == "TTN":
        modules |= {"norm", "act"}
    if "zero-memory=level1" in text:
        modules |= {"act", "norm"}
    elif "zero-memory" in text:
        modules.add("act")
    return Memory(full, frozenset(modules), frozenset(swap), "reuse-fp32" in zero)


def without(work: Workload, module: str) -> Workload:
    """The same with ``module`` kept instead of recomputed."""
    return replace(work, memory=replace(work.memory, modules=work.memory.modules - {module}))
