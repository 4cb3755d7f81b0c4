"""The version matrix: whole, in step with pyproject, and it names the offending pair."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from loopmoe_train.device import matrix

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
GOOD = {
    "python": "3.11.7", "torch": "2.12.0", "torch_npu": "2.12.0.post2", "cann": "9.1.0",
    "megatron-core": "0.16.1", "hydra-core": "1.3.8",
}  # fmt: skip


def test_a_documented_set_is_fine():
    assert matrix.problems(GOOD, "npu") == []
    assert matrix.problems({**GOOD, "torch": "2.13.0+cpu", "torch_npu": None}, "cpu") == []


@pytest.mark.parametrize(
    "changed, name, status, said, fix",
    [
        ({"python": "3.9.18"}, "python", "FAIL", "3.9.18", "python3.11 -m venv"),
        ({"torch": None}, "torch", "FAIL", "not installed", "pip install 'torch>="),
        ({"torch": "2.7.1"}, "torch", "FAIL", "2.7.1", "pip install 'torch>="),
        ({"torch": "2.7.1"}, "torch_npu", "FAIL", "no row", "torch==2.12.*"),
        ({"megatron-core": "0.17.0"}, "megatron-core", "FAIL", "0.17.0", "==0.16.1"),
        ({"torch_npu": None}, "torch_npu", "FAIL", "not installed", "torch_npu==2.12.*"),
        ({"torch": "2.11.0"}, "torch_npu", "FAIL", "not for torch 2.11.0", "torch_npu==2.11.*"),
        ({"cann": None}, "cann", "FAIL", "no CANN", "set_env.sh"),
        ({"cann": "8.5.0"}, "cann", "FAIL", "CANN 8.5.0", "CANN 9.1"),
        ({"torch": "2.13.0", "torch_npu": "2.13.0"}, "cann", "WARN", "vendor", "torch==2.12.*"),
        ({"deepspeed": "0.10.0"}, "deepspeed", "WARN", "0.10.0", "deepspeed==0.19.8"),
        ({"triton-ascend": "3.2.0"}, "triton-ascend", "WARN", "2.7.1", "cluster.kernels"),
        ({"triton-ascend": "3.2.0", "triton": "3.7.1"}, "triton-ascend", "FAIL",
         "overwrite", "uninstall"),
    ],
)  # fmt: skip
def test_a_wrong_version_is_named_with_its_fix(changed, name, status, said, fix):
    found = matrix.problems({**GOOD, **changed}, "npu")
    mine = [p for p in found if p.name == name and p.status == status and said in p.what]
    assert mine and fix in mine[0].fix


def test_it_agrees_with_what_pyproject_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["deepspeed"], *extras["cuda"]]
    declared = {r.name: r.specifier for r in map(Requirement, lines)}
    for name, wanted in matrix.load().packages.items():
        assert declared[name] == SpecifierSet(wanted), name
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(matrix.load().python)


def test_images_are_made_of_sets_that_fit():
    for image in matrix.load().images.values():
        found = {
            **GOOD, "torch": image.torch, "torch_npu": image.torch_npu, "cann": image.cann,
        }  # fmt: skip
        assert matrix.problems(found, image.device) == [], image.name
        if image.cann:
            assert f":{image.cann}-" in image.base
