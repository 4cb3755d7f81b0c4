"""The import finder, its cache, and what a process sees of them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest

from loopmoe_train.device import port, rewrite

ROOT = Path(__file__).parents[2]
SOURCE = b"answer = 42\n"


def python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code],
        cwd=ROOT,
        env={**os.environ, "LOOPMOE_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


# -- cache -----------------------------------------------------------------------------------


@pytest.fixture()
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Modules that were compiled rather than found, with a cache in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[str] = []
    original = rewrite.rewrite

    def record(source: bytes, path: str, name: str) -> types.CodeType:
        seen.append(name)
        return original(source, path, name)

    monkeypatch.setattr(rewrite, "rewrite", record)
    return seen


def load(source: bytes = SOURCE) -> dict[str, object]:
    namespace: dict[str, object] = {}
    exec(port.load_code(source, "m.py", "megatron.core.m"), namespace)
    return namespace


def test_cache_hit(compiled: list[str]) -> None:
    assert [load()["answer"], load()["answer"]] == [42, 42]
    assert len(compiled) == 1
    folder = Path(port.cache_folder())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]


def test_changed_source_is_compiled_again(compiled: list[str]) -> None:
    load()
    assert load(b"answer = 43\n")["answer"] == 43
    assert len(compiled) == 2


@pytest.mark.parametrize("body", [b"", b"x" * 10, b"\0" * 200])
def test_damaged_entry_is_replaced(compiled: list[str], body: bytes) -> None:
    load()
    (file,) = Path(port.cache_folder()).iterdir()
    file.write_bytes(body)
    assert load()["answer"] == 42
    load()
    assert len(compiled) == 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_folder_that_others_can_write_is_not_used(compiled: list[str], mode: int) -> None:
    load()
    Path(port.cache_folder()).chmod(mode)
    load()
    assert len(compiled) == 2


def test_folder_of_somebody_else_is_not_used(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    load()
    assert len(compiled) == 2


def test_symbolic_link_is_not_used(compiled: list[str], tmp_path: Path) -> None:
    folder = Path(port.cache_folder())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(elsewhere)
    load()
    assert not list(elsewhere.iterdir())


def test_cache_that_cannot_be_written_is_done_without(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load()["answer"] == 42


# -- processes -------------------------------------------------------------------------------


def test_importing_the_package_needs_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, loopmoe_train; "
        "print([m for m in ('torch', 'megatron', 'numpy', 'ast') if m in sys.modules])"
    )
    assert python(code) == "[]\n"


def test_megatron_first_is_refused_in_one_line() -> None:
    code = (
        "import megatron.core\n"
        "try:\n    import loopmoe_train\n"
        "except RuntimeError as error:\n    print('said:', error)\n"
    )
    assert "said: megatron.core was imported before loopmoe_train" in python(code)


UNTOUCHED = """
import torch
names = [n for n in dir(torch.cuda)]
before = {n: getattr(torch.cuda, n) for n in names}
tensor = dict(vars(torch.Tensor))  # not getattr: that binds class methods anew each time
import loopmoe_train
import megatron.core.models.gpt.gpt_model, megatron.core.optimizer, megatron.core.distributed
assert all(getattr(torch.cuda, n) is before[n] for n in names), "torch.cuda changed"
now = vars(torch.Tensor)
assert now.keys() == tensor.keys(), now.keys() ^ tensor.keys()
assert all(now[n] is tensor[n] for n in tensor), "torch.Tensor changed"
assert not torch.cuda.is_available()
import sys
from loopmoe_train.device.port import LEFT_ALONE, is_ported
core = {n: m for n, m in sys.modules.items() if n.startswith("megatron.core")}
# a folder without __init__.py has no code to port
alone = [n for n, m in core.items() if getattr(m, "__file__", None) and not is_ported(m)]
assert all(any(n.startswith(root) for root in LEFT_ALONE) for n in alone), alone
print("untouched", len(core) > 100)
"""


def test_torch_is_untouched_and_all_of_core_is_ported() -> None:
    assert "untouched True" in python(UNTOUCHED, "-W", "error::FutureWarning")


def test_the_known_notices_are_silent_and_others_are_not() -> None:
    code = (
        "import loopmoe_train, megatron.core.models.gpt.gpt_layer_specs, warnings; "
        "import megatron.core.optimizer; warnings.warn('something else')"
    )
    said = python(code)
    assert "Apex" not in said
    assert "something else" in said


def test_a_spawned_child_is_ported(tmp_path: Path) -> None:
    # the main module of the child imports nothing of ours: the wrapped target must bring the port
    (tmp_path / "target.py").write_text(
        "import sys\n"
        "from megatron.core.jit import noop_decorator\n"
        "def kind(): return type(sys.modules['megatron.core.jit'].__loader__).__name__\n"
    )
    code = (
        "import loopmoe_train, multiprocessing, target\n"
        "from loopmoe_train.device.port import spawned\n"
        "context = multiprocessing.get_context('spawn')\n"
        "with context.Pool(1) as pool:\n"
        "    print('child:', pool.apply(spawned(target.kind)))\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    assert "child: PortLoader" in python(code, PYTHONPATH=path)


@pytest.mark.parametrize(
    "first", ["megatron.core.transformer.moe.router", "megatron.core.optimizer.distrib_optimizer"]
)
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    code = (
        f"import loopmoe_train, {first}\n"
        "import megatron.core.transformer.moe.token_dispatcher\n"
        "import megatron.core.tensor_parallel as tp, megatron.core.models.gpt\n"
        "from megatron.core.distributed import DistributedDataParallel as ddp\n"
        "from megatron.core.optimizer import DistributedOptimizer as opt\n"
        "from megatron.core.transformer.moe import moe_utils\n"
        "fixed = [ddp.__init__, opt.load_state_dict, tp.CheckpointWithoutOutput.__init__,\n"
        "         tp.mappings._reduce]\n"
        "print('fixed', all(hasattr(f, '__wrapped__') for f in fixed), moe_utils.te_general_gemm)"
    )
    assert "fixed True None" in python(code)
