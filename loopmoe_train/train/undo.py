"""Take back what a step changes before its gradient is known to be finite."""

from __future__ import annotations

from typing import Any, Callable, List

from loopmoe_train.checkpoint.state import random_states, set_random_states


def remember(model: List[Any]) -> Callable[[], None]:
    """Copy the random states and what balances the routers; the result puts them back.

    Biases and loads move while the gradients are finished. Weights, optimizer and schedule move
    only after the check.
    """
    random = random_states()
    balance = [
        (buffer, buffer.clone())
        for chunk in model
        for name, buffer in chunk.named_buffers()
        if name.endswith((".expert_bias", ".last_load"))
    ]

    def put_back() -> None:
        set_random_states(random)
        for buffer, before in balance:
            buffer.copy_(before)

    return put_back
