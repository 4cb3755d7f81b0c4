"""Silence, by exact message, the warnings that a megatron.core run repeats without a reason.

Nothing broader: any other warning of the same category still shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

# Five wordings of one fact: neither Transformer Engine nor Apex is there. They never are here.
_NO_TE_OR_APEX = (
    r"Transformer Engine and Apex are not installed\. Falling back to "
    r"(Torch optimizers|local implementations of multi_tensor_applier"
    r"(, multi_tensor_l2norm,)? and multi_tensor_scale)",
    r"Apex is not installed\. Falling back to Torch Norm",
)
# torch 2.13 renamed these collectives to *_single; megatron-core 0.16.1 calls the old names.
_RENAMED_COLLECTIVE = (
    r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor|_all_gather_base|"
    r"_reduce_scatter_base)` is (deprecated|a private function)"
)


def install() -> None:
    """Register the filters; calling it again changes nothing (the list stays short)."""
    for message in _NO_TE_OR_APEX:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    warnings.filterwarnings("ignore", message=_RENAMED_COLLECTIVE, category=FutureWarning)


def _not_the_cpu_rng_notice(record: Any) -> bool:
    return "CPU RNG state changed within GPU RNG context" not in record.msg


def hush_rng_notice(logger_name: str) -> Callable[[], None]:
    """Drop megatron.core's notice that the CPU generator moved inside the device RNG context.

    On cpu the two generators are the same one, so it is said at every dropout and means nothing.

    Returns:
        What takes it back.
    """
    import logging

    logger = logging.getLogger(logger_name)
    logger.addFilter(_not_the_cpu_rng_notice)
    return lambda: logger.removeFilter(_not_the_cpu_rng_notice)
