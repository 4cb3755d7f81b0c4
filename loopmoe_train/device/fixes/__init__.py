"""Defects of megatron-core that this package repairs, each at the moment its module is imported.

All lie off the path that CUDA with Transformer Engine takes, and so on the path of npu and cpu;
the ones marked SILENT train wrongly without a word. `tests/device/test_fixes.py` switches each
one off and requires the scenario that needs it to fail.

Not here, because the port makes it unnecessary: `maybe_move_tensor_to_cpu` asks `is_cuda`, which
the rewriter turns into a question for the accelerator.
"""

from __future__ import annotations

from types import ModuleType

from loopmoe_train.device.fixes import layers, moe, optimizer, settings
from loopmoe_train.device.fixes.fix import Fix, disabled, undo
from loopmoe_train.device.fixes.moe import mark_expert_parameters
from loopmoe_train.device.fixes.settings import CONFIG_RULES, apply_config_rules
from loopmoe_train.errors import Refused

__all__ = [
    "CONFIG_RULES", "FIXES", "Fix", "apply_config_rules", "apply_to", "check_versions",
    "disable_fix", "disabled", "mark_expert_parameters",
]  # fmt: skip

FIXES: tuple[Fix, ...] = (*settings.FIXES, *layers.FIXES, *moe.FIXES, *optimizer.FIXES)


def disable_fix(name: str) -> None:
    """Leave out one fix or config rule, or take it back if it is applied already; for tests.

    Raises:
        ValueError: there is no fix of that name.
    """
    if name not in {fix.name for fix in FIXES} | set(CONFIG_RULES):
        raise ValueError(f"no fix is called {name!r}")
    disabled.add(name)
    undo.pop(name, lambda: None)()


def check_versions() -> None:
    """Compare the megatron-core on the path with the versions the fixes were written for.

    Raises:
        Refused: another version; fixes could miss their target or repair what is no longer broken.
    """
    # asks the imported files, not the metadata: a checkout on PYTHONPATH has none
    from megatron.core import package_info
    from packaging.specifiers import SpecifierSet

    installed = package_info.__version__
    for versions in sorted({fix.versions for fix in FIXES}):
        if not SpecifierSet(versions, prereleases=True).contains(installed):
            raise Refused(
                f"megatron-core {installed} is installed, loopmoe_train supports {versions}",
                f"pip install 'megatron-core{versions}'",
            )


def apply_to(module: ModuleType) -> None:
    """Apply the fixes registered for this module of megatron.core; the port calls it.

    Raises:
        Refused: the fixes are for another version of megatron-core.
    """
    wanted = [fix for fix in FIXES if fix.module == module.__name__]
    if not wanted and module.__name__ != "megatron.core":
        return
    check_versions()
    for fix in wanted:
        if fix.name not in disabled:
            fix.apply(module)
