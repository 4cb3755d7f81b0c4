"""DeepSpeed's vectorised Adam for the host (extra ``deepspeed``): built once per machine, called.

The operator is C++ that torch compiles for this processor at first use (AVX2 or AVX512, NEON or
SVE) and keeps in ``TORCH_EXTENSIONS_DIR`` (``~/.cache/torch_extensions``). Only the operator is
used, not the class around it: that has no state in a form that core's checkpoints know.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sys
import threading
from typing import Any, Callable, Dict

from torch import Tensor

from loopmoe_train.errors import Refused
from loopmoe_train.optim.host import MASTER, State

_SLOW_S = 3.0  # a load from the cache takes less
_numbers = itertools.count(2**20)  # the operator knows optimizers by number; DeepSpeed's start at 0


class DeepSpeedUpdate:
    """:class:`loopmoe_train.optim.host.TorchUpdate` by DeepSpeed's operator."""

    def __init__(self) -> None:
        self._operator = operator()
        self._number = next(_numbers)

    def begin(self) -> None:
        """Forget the powers of beta.

        The operator multiplies them up from step to step, but computes them anew after a restart:
        the two differ in the last bit, and so would a continued run. A new one always computes.
        """
        self._operator.create_adam(self._number, 0.0, 0.0, 0.0, 0.0, 0.0, True, False)

    def update(self, group: Dict[str, Any], state: State, gradient: Tensor) -> None:
        """As :meth:`loopmoe_train.optim.host.TorchUpdate.update`."""
        state["step"] += 1
        self._operator.adam_update(
            self._number, int(state["step"]), group["lr"], *group["betas"], group["eps"],
            group["weight_decay"], True, state[MASTER], gradient, state["exp_avg"],
            state["exp_avg_sq"],
        )  # fmt: skip


def continuable() -> Any:
    """DeepSpeedCPUAdam whose continued run is bitwise the straight one, for its ZeRO-Offload."""
    operator()
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    class Continuable(DeepSpeedCPUAdam):
        def begin(self) -> None:
            """As :meth:`DeepSpeedUpdate.begin`."""
            self.ds_opt_adam.create_adam(self.opt_id, 0.0, 0.0, 0.0, 0.0, 0.0, True, False)

        def first_step(self) -> int:
            """Steps are whole numbers here, tensors in torch's."""
            return 0

    return Continuable


def operator(say: Callable[[str], None] = lambda line: None) -> Any:
    """The compiled operator, built if this machine has none yet.

    Args:
        say: receives a line if it takes longer than a load.

    Raises:
        Refused: DeepSpeed is not installed, or the operator cannot be built here.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise Refused(
            "optim.offload_update=deepspeed but the package deepspeed is not installed",
            "pip install 'loopmoe-train[deepspeed]', or use optim.offload_update=torch",
        )
    notice = threading.Timer(
        _SLOW_S, say, ["compiling DeepSpeed's Adam for this processor: once, one to two minutes"]
    )
    notice.daemon = True
    notice.start()
    try:
        return _load()
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise Refused(
            "optim.offload_update=deepspeed: its operator cannot be built here: "
            f"{reason[0][:200] if reason else type(error).__name__}",
            "install a C++ compiler (g++) and ninja, or use optim.offload_update=torch",
        ) from error
    finally:
        notice.cancel()


@functools.cache
def _load() -> Any:
    # DeepSpeed's own device: its build for the host needs neither CUDA's nor CANN's headers.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    path = os.environ.get("PATH", "")
    # Where pip puts ninja, should there be no other. (Another ninja than before compiles anew.)
    os.environ["PATH"] = os.pathsep.join([path, os.path.dirname(sys.executable)])
    try:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        return CPUAdamBuilder().load(verbose=False)
    finally:
        os.environ["PATH"] = path
