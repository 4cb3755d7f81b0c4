"""AdamW with its fp32 weights and moments in host memory, updated there.

Core's distributed optimizer knows an Adam that holds the fp32 weights itself and reads gradients
of another dtype (its "precision-aware" form, TransformerEngine's FusedAdam). :class:`HostAdamW`
is one: weights stay on the device in the model's dtype, gradients come down and weights go up,
each on a stream of its own, parameter by parameter, while the host computes.

Core has an optimizer of its own for this, HybridDeviceOptimizer. Not used: it needs an accelerator
and 16-bit weights (it looks up copies that fp32 weights do not have), holds the whole model in
host memory before it is sharded, puts classes into the state that a checkpoint stores, and takes
torch's Adam only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from megatron.core import optimizer as core
from torch import Tensor
from torch.optim.adamw import adamw

from loopmoe_train.device.accelerator import accel

#: What a state holds beside ``step``: fp32, flat, on the host, of this rank's part of a parameter.
MASTER, MOMENTS = "master_param", ("exp_avg", "exp_avg_sq")
State = Dict[str, Tensor]


class TorchUpdate:
    """torch's fused AdamW."""

    def begin(self) -> None:
        """A step begins."""

    def update(self, group: Dict[str, Any], state: State, gradient: Tensor) -> None:
        """One step of one parameter: weights and moments in place, ``step`` counted.

        Args:
            group: ``lr``, ``betas``, ``eps``, ``weight_decay`` (decoupled).
            gradient: fp32, contiguous, on the host.
        """
        adamw(
            [state[MASTER]], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [],
            [state["step"]], fused=True, amsgrad=False, maximize=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"],
        )  # fmt: skip


class HostAdamW(torch.optim.AdamW):
    """AdamW over parts of parameters on any device, with states and arithmetic on the host.

    Host memory, bytes per element of this rank's part: 12 for the states, 4 for the gradient.
    fp32 weights that are on the host themselves are their own master, and nothing is copied.

    Args:
        groups: of parameters; core replaces them by this rank's parts of theirs.
        update: :class:`TorchUpdate` or one with its methods.
    """

    def __init__(
        self,
        groups: List[Dict[str, Any]],
        update: Any,
        lr: float,
        betas: Tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._update = update
        self._gradients: Dict[Tensor, Tensor] = {}  # where those from a device arrive
        self._down, self._up = accel.Stream(), accel.Stream()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient (``decoupled_grad``, as core sets it)."""
        arriving = list(self._fetch())
        self._update.begin()
        for group, parameter, gradient, arrived in arriving:
            arrived.synchronize()
            state = self.state[parameter]
            self._update.update(group, state, gradient)
            if state[MASTER].data_ptr() != parameter.data_ptr():
                with accel.stream(self._up):
                    parameter.data.copy_(state[MASTER], non_blocking=True)
        accel.current_stream().wait_stream(self._up)

    def _fetch(self) -> Iterator[Tuple[Dict[str, Any], Tensor, Tensor, Any]]:
        """Start all gradients on their way; each with the event of its arrival."""
        self._down.wait_stream(accel.current_stream())
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = getattr(parameter, "decoupled_grad", None)
                if gradient is None:
                    continue
                self.state_of(parameter)
                with accel.stream(self._down):
                    if not _ready(gradient):
                        here = self._gradients.setdefault(parameter, _host_like(parameter))
                        gradient = here.copy_(gradient, non_blocking=True)
                    yield group, parameter, gradient, self._down.record_event()

    def state_of(self, parameter: Tensor) -> State:
        """The parameter's state, made at first use: the weight as it is, zero moments, step 0."""
        state: State = self.state[parameter]
        if not state:
            whole = parameter.detach()
            state["step"] = torch.tensor(0.0)
            state[MASTER] = whole if _ready(whole) else _host_like(whole).copy_(whole)
            for name in MOMENTS:
                state[name] = _host_like(whole).zero_()
        return state

    # -- what core's distributed optimizer asks of such an Adam ------------------------------
    def get_unscaled_state(self, parameter: Tensor, name: str) -> Tensor:
        """A state as it is: nothing is stored in less than fp32 here."""
        return self.state_of(parameter)[name]

    def set_scaled_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Take a state from a checkpoint."""
        self.state_of(parameter)[name].copy_(value)

    # -- as any torch optimizer, but that states keep their place and dtype ------------------
    def state_dict(self) -> Dict[str, Any]:
        """States of all parameters, made where there are none yet."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state_of(parameter)
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Copy settings and states; torch's own would give them the weight's device and dtype."""
        for group, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for place, parameter in zip(loaded["params"], group["params"], strict=True):
                state = self.state_of(parameter)
                for name, value in state_dict["state"].get(place, {}).items():
                    state[name].copy_(torch.as_tensor(value))
            group.update({name: v for name, v in loaded.items() if name != "params"})


def _ready(tensor: Tensor) -> bool:
    """The host can work on it where it is."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _host_like(tensor: Tensor) -> Tensor:
    """Uninitialised fp32 of its shape on the host, pinned where there is a device to pin for."""
    pinned = accel.may_pin(True)
    return torch.empty(tensor.shape, dtype=torch.float32, device="cpu", pin_memory=pinned)


@contextmanager
def in_place_of_cores(update: Callable[[], Any]) -> Iterator[None]:
    """What core builds inside as an offloaded optimizer is a :class:`HostAdamW`.

    Core names the class in its module and offers no other way to choose it. What it passes beside
    Adam's numbers (fractions, classes, pinning) is for its own.
    """

    def make(
        groups: Any, *, lr: float, betas: Any, eps: float, weight_decay: float, **of_cores: Any
    ) -> HostAdamW:
        return HostAdamW(groups, update(), lr, betas, eps, weight_decay)

    own, core.HybridDeviceOptimizer = core.HybridDeviceOptimizer, make
    try:
        yield
    finally:
        core.HybridDeviceOptimizer = own
