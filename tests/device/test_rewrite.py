"""The rewriter on small snippets: what it changes, what it must leave, where lines stay."""

from __future__ import annotations

import ast
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

from loopmoe_train.device.rewrite import _Rewriter, rewrite


def text(source: str, module: str = "megatron.core.x") -> str:
    tree = _Rewriter(module).visit(ast.parse(source))
    return ast.unparse(ast.fix_missing_locations(tree))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("torch.cuda.synchronize()", "__accel__.synchronize()"),
        ("f(torch.cuda)", "f(__accel__)"),
        ("isinstance(x, torch.cuda.Stream)", "isinstance(x, __accel__.Stream)"),
        ("torch.zeros(1, device='cuda')", "torch.zeros(1, device=__accel__.device_type)"),
        ("torch.device('cuda')", "torch.device(__accel__.device_type)"),
        ("torch.device('cuda', torch.cuda.i())", "__accel__.make_device(__accel__.i())"),
        ("f'cuda:{i}'", "__accel__.device_string(i)"),
        ("x.cuda()", "__accel__.to_device(x)"),
        ("x.y().cuda(i, non_blocking=True)", "__accel__.to_device(x.y(), i, non_blocking=True)"),
        ("x.is_cuda", "__accel__.is_accelerated(x)"),
        ("x.record_stream(torch.cuda.s())", "__accel__.record_stream(x, __accel__.s())"),
        ("f(pin_memory=p)", "f(pin_memory=__accel__.may_pin(p))"),
        ("x.cpu().pin_memory()", "__accel__.pin(x.cpu())"),
        ("c.Process(target=f, args=a)", "c.Process(target=__accel__.spawned(f), args=a)"),
        (
            "x.type() in ['torch.cuda.HalfTensor']",
            "x.type() in [__accel__.type_string('torch.cuda.HalfTensor')]",
        ),
        ("import torch.cuda.nvtx as n", "n = __accel__.import_from('torch.cuda', 'nvtx')"),
        (
            "from torch.cuda import a, b as c",
            "a = __accel__.import_from('torch.cuda', 'a')\n"
            "c = __accel__.import_from('torch.cuda', 'b')",
        ),
        ("from torch import nn, cuda", "from torch import nn\ncuda = __accel__"),
        (
            "@torch.cuda.amp.custom_fwd\ndef f():\n    pass",
            "@__accel__.amp.custom_fwd\ndef f():\n    pass",
        ),
        ("def f(d: str='cuda'):\n    pass", "def f(d: str=__accel__.device_type):\n    pass"),
    ],
)
def test_rewritten(before: str, after: str) -> None:
    assert text(before) == after


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: torch.cuda.Stream) -> torch.cuda.Event:\n    pass",
        "x: Literal['cuda'] = None",
        "Kind = Literal['cuda', 'nccl']",
        "raise TypeError('torch.cuda.FloatTensor, ')",
        "print(f'on cuda {x}')",
        "hasattr(x, 'cuda')",
        "import torch.cuda",
        "backend == 'nccl'",
        "'cuda_rng_state'",
        "self.pin_memory",
        "match x:\n    case 'cuda':\n        pass",
    ],
)
def test_left_alone(source: str) -> None:
    assert text(source) == ast.unparse(ast.parse(source))


def test_nccl_only_where_it_means_the_backend_of_the_device() -> None:
    assert text("b == 'nccl'", "megatron.core.utils") == "b == __accel__.communication_backend"


def run(source: str, **facade: Any) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__accel__": SimpleNamespace(**facade)}
    exec(rewrite(source, "original.py", "megatron.core.x"), namespace)
    return namespace


def test_a_failing_import_stays_an_import_error() -> None:
    def import_from(module: str, name: str) -> None:
        raise ImportError(name)

    source = "try:\n    from torch.cuda import M\nexcept ImportError:\n    M = None"
    assert run(source, import_from=import_from)["M"] is None


def test_tracebacks_keep_the_original_lines() -> None:
    source = "def f(x):\n    y = 1\n    return x.cuda(\n        y\n    )\n"

    def fail(*arguments: object) -> None:
        raise KeyError("here")

    try:
        run(source, to_device=fail)["f"](None)
    except KeyError as error:
        frame = traceback.extract_tb(error.__traceback__)[1]
    assert (frame.filename, frame.lineno, frame.name) == ("original.py", 3, "f")


def test_future_imports_and_docstrings_survive() -> None:
    found = run('"""cuda"""\nfrom __future__ import annotations\ndef f(x: torch.cuda.S): ...\n')
    assert found["__doc__"] == "cuda"
    assert found["f"].__annotations__ == {"x": "torch.cuda.S"}
