"""Versions and trees, planted as metadata and packages on a path of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict

from loopmoe_train.doctor import versions
from tests.doctor.found import assert_finds, assert_passes

GOOD = {"torch": "2.12.0", "megatron-core": "0.16.1", "hydra-core": "1.3.2"}


def plant(folder: Path, packages: Dict[str, str]) -> Path:
    """Put the metadata of ``packages`` into ``folder``."""
    for name, version in packages.items():
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return folder


def found(folder: Path, device: str, cann: str = "") -> object:
    return versions.versions(versions.installed([str(folder)]) | {"cann": cann or None}, device)


def test_what_is_installed_here_fits() -> None:
    assert_passes(versions.versions(versions.installed(sys.path), "cpu"), "versions/matrix")


def test_a_wrong_torch(tmp_path: Path) -> None:
    assert_passes(found(plant(tmp_path / "good", GOOD), "cpu"), "versions/matrix")
    old = found(plant(tmp_path / "old", GOOD | {"torch": "2.1.0"}), "cpu")
    assert_finds(old, "versions/matrix", "FAIL", "torch 2.1.0", "pip install 'torch>=2.11,<2.14'")


def test_a_wrong_megatron_core(tmp_path: Path) -> None:
    other = found(plant(tmp_path, GOOD | {"megatron-core": "0.15.0"}), "cpu")
    fix = "pip install 'megatron-core==0.16.1'"
    assert_finds(other, "versions/matrix", "FAIL", "megatron-core 0.15.0", fix)


def test_a_torch_npu_of_another_torch(tmp_path: Path) -> None:
    good = plant(tmp_path / "good", GOOD | {"torch_npu": "2.12.0"})
    assert_passes(found(good, "npu", "9.1.0"), "versions/matrix")
    bad = found(plant(tmp_path / "bad", GOOD | {"torch_npu": "2.7.1"}), "npu", "9.1.0")
    assert_finds(bad, "versions/matrix", "FAIL", "torch_npu 2.7.1", "torch_npu==2.12.*")


def test_a_cann_of_another_release(tmp_path: Path) -> None:
    home = tmp_path / "latest"
    info = home / "aarch64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.0.RC3\narch=aarch64\n")
    cann = versions.cann_version({"ASCEND_TOOLKIT_HOME": str(home)})
    assert cann == "8.0.RC3"
    good = plant(tmp_path / "site", GOOD | {"torch_npu": "2.12.0"})
    assert_finds(found(good, "npu", cann), "versions/matrix", "FAIL", "CANN 8.0.RC3", "CANN 9.1")


def test_a_triton_ascend_that_is_documented_for_another_set(tmp_path: Path) -> None:
    packages = GOOD | {"torch_npu": "2.12.0", "triton-ascend": "3.2.0"}
    bad = found(plant(tmp_path, packages), "npu", "9.1.0")
    assert_finds(
        bad, "versions/matrix", "WARN", "documented for torch_npu==2.7.1", "cluster.kernels"
    )


def tree(root: Path) -> Path:
    """A megatron in ``root``."""
    (root / "megatron" / "core").mkdir(parents=True)
    (root / "megatron" / "core" / "__init__.py").touch()
    return root


def test_a_second_megatron_before_the_installed_one(tmp_path: Path) -> None:
    assert_passes(versions.trees(sys.path), "versions/trees")
    mine = tree(tmp_path / "Megatron-LM")
    shadowed = versions.trees([str(mine), *sys.path])
    assert_finds(shadowed, "versions/trees", "FAIL", f"takes {mine}", "export PYTHONPATH=''")


def test_a_second_megatron_behind_the_installed_one(tmp_path: Path) -> None:
    hidden = versions.trees([*sys.path, str(tree(tmp_path / "Megatron-LM"))])
    assert_finds(hidden, "versions/trees", "WARN", "two copies of megatron", "off PYTHONPATH")
