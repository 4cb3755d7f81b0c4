"""Rules of ``profile``: which steps are recorded."""

from __future__ import annotations

import re
from typing import Callable, Iterator, Optional, Sequence

from loopmoe_train.config.schema import RunConfig


def profiled_steps(words: Optional[str]) -> Optional[range]:
    """Steps of "10-12" or "10"; None for None.

    Raises:
        ValueError: it is neither.
    """
    if words is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", words.strip())
    if found is None:
        raise ValueError(f"profile.steps={words}: write 10-12, or one step")
    first = int(found[1])
    return range(first, int(found[2] or first) + 1)


def _steps(config: RunConfig) -> Iterator[str]:
    wanted = config.profile
    try:
        steps = profiled_steps(wanted.steps)
    except ValueError as error:
        yield str(error)
        return
    if steps is not None and (not steps or steps[0] < 1 or steps[-1] > config.steps):
        yield (
            f"profile.steps={wanted.steps}: must be steps of the run, in order: 1 to "
            f"{config.steps} (steps={config.steps})"
        )
    outside = [rank for rank in wanted.ranks if not 0 <= rank < config.cluster.devices]
    if outside:
        yield (
            f"profile.ranks={wanted.ranks}: there are ranks 0 to {config.cluster.devices - 1} "
            f"(cluster.devices={config.cluster.devices})"
        )
    if steps is not None and not wanted.ranks:
        yield "profile.steps needs a rank: set profile.ranks=[0]"


RULES: Sequence[Callable[[RunConfig], Iterator[str]]] = (_steps,)
