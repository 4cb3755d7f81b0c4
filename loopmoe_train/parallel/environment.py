"""Which rank this process is, read from the environment of whatever started it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Mapping, Optional

from loopmoe_train.errors import Refused

# Rank, ranks in all, rank on this machine, ranks on this machine.
_STARTERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun and our own launcher
    (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """This process among the others; ``local`` counts those of its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def one_machine(self) -> bool:
        """Whether all ranks of the job are on this machine."""
        return self.local_world == self.world


def place(variables: Optional[Mapping[str, str]] = None) -> Place:
    """Where this process stands; alone if nothing says otherwise.

    Raises:
        Refused: half of the variables, or a value that is no rank of that size.
    """
    env = os.environ if variables is None else variables
    for rank, world, local_rank, local_world in _STARTERS:
        if rank not in env and world not in env:
            continue
        if rank not in env or world not in env:
            raise Refused(
                f"of {rank} and {world} only one is set", "set both, or start with torchrun"
            )
        found = Place(
            rank=_number(env, rank),
            world=_number(env, world),
            local_rank=_number(env, local_rank if local_rank in env else rank),
            local_world=_number(env, local_world if local_world in env else world),
        )
        if not 0 <= found.rank < found.world:
            raise Refused(f"{rank}={found.rank} is not a rank of {world}={found.world}")
        return found
    return Place()


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise Refused(f"{name}={env[name]!r}: must be a whole number") from None


def restart_count() -> int:
    """How often torchrun has restarted this job."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
