"""Settings of core that depend on the device: no defects."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from loopmoe_train.device.fixes.fix import CORE, SUPPORTED, Fix, disabled, undo


def _no_jit_fuser(module: ModuleType) -> None:
    from loopmoe_train.device.accelerator import accel

    if not accel.compiles:
        module.disable_jit_fuser()
        undo["no-jit-fuser"] = module.enable_jit_fuser


def _no_rng_notice(module: ModuleType) -> None:
    from loopmoe_train.device import quiet
    from loopmoe_train.device.accelerator import accel

    if accel.device_type == "cpu":
        undo["no-rng-notice"] = quiet.hush_rng_notice(module.__name__)


FIXES: tuple[Fix, ...] = (
    Fix(
        "no-jit-fuser",
        CORE + "jit",
        SUPPORTED,
        "jit_fuser is torch.compile: off CUDA it costs seconds per function and gains nothing.",
        _no_jit_fuser,
    ),
    Fix(
        "no-rng-notice",
        CORE + "tensor_parallel.random",
        SUPPORTED,
        "On cpu every fork of the generator logs that the CPU generator moved. It must.",
        _no_rng_notice,
    ),
)


def _interleaved_over_two_stages(config: Any, device_type: str) -> str:
    chunks = config.virtual_pipeline_model_parallel_size
    if not chunks or config.pipeline_model_parallel_size != 2 or not config.batch_p2p_comm:
        return ""
    config.batch_p2p_comm = False
    return (
        "batch_p2p_comm=False: with two interleaved stages the next and the previous stage are "
        "the same rank, and batched messages of both directions get swapped silently"
    )


def _gloo_sends_hold_their_buffer(config: Any, device_type: str) -> str:
    held = config.overlap_p2p_comm and config.deallocate_pipeline_outputs
    if device_type != "cpu" or not held:
        return ""
    config.deallocate_pipeline_outputs = False
    return (
        "deallocate_pipeline_outputs=False: with overlap_p2p_comm the buffer of a send still in "
        "flight would be freed, which gloo (no stream order) turns into random losses"
    )


CONFIG_RULES: dict[str, Callable[[Any, str], str]] = {
    "interleaved-over-two-stages": _interleaved_over_two_stages,
    "gloo-sends-hold-their-buffer": _gloo_sends_hold_their_buffer,
}


def apply_config_rules(config: Any, device_type: str) -> list[str]:
    """Correct settings of a core ModelParallelConfig that core accepts and trains wrongly with.

    Args:
        config: changed in place. Call it once, before the model and the schedule see it.
        device_type: "cpu" means gloo.

    Returns:
        One sentence per change, for the log.
    """
    done = [rule(config, device_type) for n, rule in CONFIG_RULES.items() if n not in disabled]
    return [sentence for sentence in done if sentence]
