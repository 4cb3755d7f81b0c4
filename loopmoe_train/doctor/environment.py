"""The environment of this process and the rank table it names, as `device/` judges them."""

from __future__ import annotations

from pathlib import Path
from typing import List, Mapping, Optional

from loopmoe_train.config.schema import ClusterConfig, RunConfig
from loopmoe_train.device import environment as table
from loopmoe_train.device import rank_table as ranks
from loopmoe_train.doctor.check import Check, of_problem, passed


def variables(
    environment: Mapping[str, str], device: str, run: Optional[RunConfig] = None
) -> List[Check]:
    """Every complaint of the environment table; one PASS if there is none."""
    found = [
        one for one in table.problems(_of_ranks(environment, run), device, run)
        if one.name != "ASCEND_HOME_PATH"  # cann/environment tells of it
    ]  # fmt: skip
    if found:
        return [of_problem("environment/variables", one) for one in found]
    return [passed("environment/variables", "nothing misspelt, malformed or contradictory")]


def _of_ranks(environment: Mapping[str, str], run: Optional[RunConfig]) -> Mapping[str, str]:
    """What the ranks will get: a setting of the run counts more than what is set here."""
    return environment if run is None else {**environment, **table.for_ranks(run, environment)}


def rank_table(environment: Mapping[str, str], cluster: ClusterConfig) -> List[Check]:
    """Every complaint about the rank table that HCCL would read."""
    named = environment.get(ranks.VARIABLE)
    if not named:
        return [passed("environment/rank-table", "none is named: HCCL finds ranks by the store")]
    found = ranks.problems(Path(named), cluster)
    if found:
        return [of_problem("environment/rank-table", one) for one in found]
    return [passed("environment/rank-table", f"{named} fits {cluster.devices} devices")]
