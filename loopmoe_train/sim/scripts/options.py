"""Options of Megatron-LM and MindSpeed-LLM, and the sizes of a model that they give.

Defaults and refusals are those of ``megatron/training/arguments.py`` (d98e8a64) and of
``mindspeed_llm/features_manager`` (c77308a1). All that is wrong is collected in
:class:`Options`, so that one look mends it.
"""

from __future__ import annotations

import ast
import re
from typing import List, Mapping, Optional, Tuple

from loopmoe_train.errors import Refused
from loopmoe_train.sim.shape import Attention, Ffn, Layer, Shape

_MOST = 10**9  # of any number
MOST_LAYERS = 10_000
_GPT2 = 50257  # the vocabulary that comes with GPT2BPETokenizer


class Options:
    """Options of a launch command.

    Attributes:
        values: by name, without dashes before it; a flag has none.
        missing: options that are needed and not there.
        wrong: sentences about what can not be read.
        unfit: sentences about what does not fit together, which count only without the others.
    """

    def __init__(self, values: Mapping[str, Tuple[str, ...]]) -> None:
        self.values = values
        self.missing: List[str] = []
        self.wrong: List[str] = []
        self.unfit: List[str] = []

    def has(self, *names: str) -> bool:
        return any(name in self.values for name in names)

    def text(self, name: str, default: str = "") -> str:
        """The first value of an option."""
        return self.values.get(name, ())[0] if self.values.get(name) else default

    def number(self, *names: str, least: int = 1, most: int = _MOST) -> Optional[int]:
        """A whole number under the first of these names that is there; None: under none."""
        name = next((one for one in names if one in self.values), None)
        if name is None:
            return None
        text = self.text(name)
        if not text:
            self.wrong.append(f"--{name} has no value")
        elif not re.fullmatch(r"-?[0-9]{1,15}", text) or not least <= int(text) <= most:
            limit = f" to {most}" if most < _MOST else ""
            self.wrong.append(f"--{name} {text[:40]}: must be a whole number from {least}{limit}")
        else:
            return int(text)
        return least

    def real(self, name: str) -> Optional[float]:
        """A number that is not negative; None: not there."""
        if name not in self.values:
            return None
        try:
            found = float(self.text(name))
        except ValueError:
            found = -1.0
        if 0 <= found < _MOST:
            return found
        self.wrong.append(f"--{name} {self.text(name)[:40]}: must be a number, and not negative")
        return None

    def need(self, *names: str, most: int = _MOST) -> int:
        """As :meth:`number`, of an option that has to be there."""
        found = self.number(*names, most=most)
        if found is None:
            self.missing.append("--" + " or --".join(names))
        return found or 1

    def numbers(self, name: str) -> List[int]:
        """Whole numbers with commas between, none of them negative."""
        pieces = [piece for piece in re.split(r"[,\s]+", self.text(name)) if piece]
        if not all(re.fullmatch(r"[0-9]{1,9}", piece) for piece in pieces):
            self.wrong.append(f"--{name} {self.text(name)[:40]}: must be numbers, as 1,2,3")
            return []
        return [int(piece) for piece in pieces]

    def divides(self, what: str, size: int, by: str, parts: int) -> bool:
        """Whether ``parts`` divide ``size``; if not, they do not fit."""
        if size % parts == 0:
            return True
        self.unfit.append(f"{what} ({size}) is not a multiple of {by} ({parts})")
        return False

    def refuse(self, name: str) -> None:
        """Tell all that is wrong, if anything is.

        Raises:
            Refused: it is.
        """
        problems = [f"no {', '.join(dict.fromkeys(self.missing))}"] if self.missing else []
        problems += dict.fromkeys(self.wrong)
        fix = "write it into the launch command, or set the variables that it is taken from"
        if not problems:
            problems = list(dict.fromkeys(self.unfit))
            fix = "change the options: training would not start either"
        if problems:
            raise Refused(f"{name}: {'; '.join(problems)}", fix)


# -- the model ---------------------------------------------------------------------------------
def layers_told(options: Options) -> int:
    """``--num-layers``, those that do nothing among them."""
    return options.need("num-layers", most=MOST_LAYERS)


def idle(options: Options) -> List[int]:
    """Places of layers that do nothing: they only fill slots of the pipeline."""
    places, layers = options.numbers("noop-layers"), layers_told(options)
    if any(place >= layers for place in places) or len(set(places)) >= layers:
        options.unfit.append(f"--noop-layers {options.text('noop-layers')[:40]}: not of the layers")
    return places


def shape(options: Options, name: str, tensor: int, fused: bool) -> Shape:
    """Sizes of the model; what is missing or wrong is collected in ``options``.

    Args:
        tensor: tensor-parallel ranks, which the vocabulary is padded for.
        fused: attention never stores its scores.
    """
    hidden = options.need("hidden-size")
    skipped = set(idle(options))
    places = [place for place in range(layers_told(options)) if place not in skipped] or [0]
    attention = _attention(options, hidden, fused)
    gated = options.has("swiglu", "geglu", "gated-linear-unit")
    width = options.number("ffn-hidden-size")
    if width is None:
        width = int((4 * hidden * 2 / 3) / 64) * 64 if gated else 4 * hidden
    dense = sparse = Ffn(width, gated)
    experts = options.number("num-experts", least=0)
    if experts:
        narrow = options.number("moe-ffn-hidden-size", "moe-intermediate-size") or width
        shared = options.number("moe-shared-expert-intermediate-size", least=0)
        if shared is None:
            shared = narrow * (options.number("n-shared-experts", least=0) or 0)
        top_k = options.number("moe-router-topk") or 2
        if top_k > experts:
            options.unfit.append(f"--moe-router-topk {top_k} of --num-experts {experts}")
        sparse = Ffn(narrow, gated, experts, top_k, shared)
    norms = 4 if options.has("post-norm") else 2
    routed = _routed(options)
    layers = [Layer(attention, sparse if routed[place] else dense, norms) for place in places]
    return Shape(
        name, hidden, _vocabulary(options, tensor), tuple(layers), tuple(range(len(layers))),
        mtp=options.number("mtp-num-layers", least=0) or 0,
        tied=not options.has("untie-embeddings-and-output-weights"),
    )  # fmt: skip


def _attention(options: Options, hidden: int, fused: bool) -> Attention:
    heads = options.need("num-attention-heads")
    if options.has("multi-latent-attention", "multi-head-latent-attention"):
        nope = options.number("qk-head-dim", "qk-nope-head-dim") or 128
        rope = options.number("qk-pos-emb-head-dim", "qk-rope-head-dim") or 64
        return Attention(
            heads, heads, nope + rope, options.number("v-head-dim") or 128, rope,
            options.number("q-lora-rank"), options.number("kv-lora-rank") or 32, fused=fused,
        )  # fmt: skip
    groups = heads
    if options.has("group-query-attention"):
        groups = options.number("num-query-groups") or 1
        options.divides("--num-attention-heads", heads, "--num-query-groups", groups)
    dim = options.number("kv-channels")
    if dim is None:
        options.divides("--hidden-size", hidden, "--num-attention-heads", heads)
        dim = max(1, hidden // heads)
    rotary = options.text("position-embedding-type") in ("rope", "yarn", "mrope")
    rope = dim if rotary or options.has("use-rotary-position-embeddings") else 0
    window = None
    if not options.has("interleave-sliding-window", "window-attn-skip-freq"):
        window = options.number("sliding-window-size")
    return Attention(heads, groups, dim, dim, rope, fused=fused, window=window)


def _routed(options: Options) -> List[bool]:
    """Of every place whether its layer has experts."""
    layers = layers_told(options)
    if not options.number("num-experts", least=0):
        return [False] * layers
    first = options.number("first-k-dense-replace", least=-1) or 0
    text = options.text("moe-layer-freq", "1")
    try:
        period = _pattern(ast.parse(text[:1000].strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        period = 0
    if isinstance(period, list):
        if len(period) == layers and first <= 0:
            return [bool(one) for one in period]
        period = 0
    if not period:
        options.wrong.append(
            f"--moe-layer-freq {text[:40]}: must be a number, or a list of --num-layers 0 and 1"
        )
        return [True] * layers
    return [place >= first and place % period == 0 for place in range(layers)]


def _pattern(node: ast.AST) -> int | List[int]:
    """A whole number, or a list as ``([0]*3+[1]*58)``.

    Raises:
        ValueError: neither.
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _pattern(node.operand)
        if isinstance(inner, int):
            return -inner
    if isinstance(node, ast.List):
        return [one for one in map(_pattern, node.elts) if isinstance(one, int)]
    if isinstance(node, ast.BinOp):
        left, right = _pattern(node.left), _pattern(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int):
            if len(left) * right <= MOST_LAYERS:
                return left * right
    raise ValueError("not a list of numbers")


def _vocabulary(options: Options, tensor: int) -> int:
    padded = options.number("padded-vocab-size")
    if padded is not None:
        options.divides("--padded-vocab-size", padded, "--tensor-model-parallel-size", tensor)
        return padded
    gpt2 = options.has("merge-file") or options.text("tokenizer-type") == "GPT2BPETokenizer"
    size = options.number("vocab-size") or (_GPT2 if gpt2 else None)
    if size is None:
        options.missing.append("--padded-vocab-size (tokenizers are not read)")
        return 1
    each = tensor * (options.number("make-vocab-size-divisible-by") or 128)
    return -(-size // each) * each


# Options that hide the experts' exchange behind arithmetic, and the share of it that they hide.
_HIDING = (
    ("moe-fb-overlap", 0.8), ("overlap-moe-expert-parallel", 0.8), ("DualPipe", 0.9),
    ("moe-alltoall-overlap", 0.3),
)  # fmt: skip


def hidden_exchange(options: str) -> float:
    """The share of the experts' exchange that is hidden with these options."""
    return next((share for word, share in _HIDING if word in options), 0.0)
