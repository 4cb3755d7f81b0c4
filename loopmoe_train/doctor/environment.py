"""The environment of this process and the rank table it names, as `device/` judges them."""

from __future__ import annotations

from pathlib import Path
from typing import List, Mapping

from loopmoe_train.config.schema import ClusterConfig
from loopmoe_train.device import environment as table
from loopmoe_train.doctor.check import Check, of_problem, passed


def variables(environment: Mapping[str, str], device: str) -> List[Check]:
    """Every complaint of the environment table; one PASS if there is none."""
    found = table.problems(environment, device)
    if found:
        return [of_problem("environment/variables", one) for one in found]
    return [passed("environment/variables", "nothing misspelt, malformed or contradictory")]
