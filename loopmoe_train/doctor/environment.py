"""The environment of this process, as `device/` judges it."""

from __future__ import annotations

from typing import List, Mapping, Optional

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device import environment as table
from loopmoe_train.doctor.check import Check, of_problem, passed


def variables(
    environment: Mapping[str, str], device: str, run: Optional[RunConfig] = None
) -> List[Check]:
    """Every complaint of the environment table; one PASS if there is none."""
    found = [
        one for one in table.problems(environment, device, run)
        if one.name != "ASCEND_HOME_PATH"  # cann/environment tells of it
    ]  # fmt: skip
    if found:
        return [of_problem("environment/variables", one) for one in found]
    return [passed("environment/variables", "nothing misspelt, malformed or contradictory")]
