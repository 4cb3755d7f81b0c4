"""A wheel works like the checkout: every package, every preset, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*words: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "checkout"
    for path in ("pyproject.toml", "README.md", "LICENSE", "loopmoe_train", "kernels", "configs",
                 "launch"):  # fmt: skip
        (sources / path).parent.mkdir(parents=True, exist_ok=True)
        _run("cp", "-r", str(ROOT / path), str(sources / path), cwd=ROOT)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run(*pip, "wheel", "--no-deps", "-w", str(folder), ".", cwd=sources)
    (wheel,) = folder.glob("*.whl")
    _run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def test_all_packages_and_presets_are_in_it(installed: Path) -> None:
    for package, source in (("loopmoe_train", "loopmoe_train"), ("loopmoe_kernels", "kernels"),
                            ("loopmoe_configs", "configs"),
                            ("loopmoe_launch", "launch")):  # fmt: skip
        files = {
            path.relative_to(ROOT / source)
            for path in (ROOT / source).rglob("*")
            if path.suffix
            in (".py", ".yaml", ".typed", ".csv", ".json", ".cpp", ".h", ".cmake", ".in", ".sbatch")
            or path.name == "CMakeLists.txt"
        }
        missing = [str(path) for path in files if not (installed / package / path).is_file()]
        assert not missing, f"{package} lacks {missing}"


def test_it_trains_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(12):
        text = f"def f{number}(x):\n    return x + {number}\n" * 40
        (tmp_path / "texts" / f"{number}.py").write_text(text)
    code = (
        "import sys, loopmoe_train, loopmoe_kernels, loopmoe_configs\n"
        "from loopmoe_train.cli import main\n"
        "for package in (loopmoe_train, loopmoe_kernels, loopmoe_configs):\n"
        f"    assert package.__file__.startswith({str(installed)!r}), package.__file__\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    _run(
        sys.executable, "-c", code, "train", "experiment=smoke", "steps=2", "optim.warmup_steps=1",
        "sequence_length=16", "data.source=texts", "data.path=d", "data.valid_percent=20",
        "data.workers=1", "tokenizer.vocab_size=400", "observe.sample_tokens=2",
        cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip
    assert (tmp_path / "runs" / "smoke" / "report.html").is_file()
