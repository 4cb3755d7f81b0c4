"""What all ranks do together: meet, compare what they are, talk in every group, measure."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.doctor import alike, device, links, node, rates
from loopmoe_train.doctor.check import Check, failed, look, passed, report
from loopmoe_train.doctor.meeting import START, Meeting, Missing
from loopmoe_train.parallel.environment import Place
from loopmoe_train.parallel.rendezvous import choose_interface
from loopmoe_train.spec.grid import ATTENTION, EXPERTS, Grid, grid_of

_PINGS = 5
Say = Callable[[str], None]


@dataclass
class Examination:
    """One rank's part of it.

    Attributes:
        checks: so far; whole on the rank that reports.
        host: name of this machine; ``now`` its clock.
        say: told of every stage that is passed.
    """

    run: RunConfig
    here: Place
    store: dist.Store
    checks: List[Check]
    host: str = ""
    now: Callable[[], float] = time.time
    say: Say = lambda text: None

    def __post_init__(self) -> None:
        self.host = self.host or socket.gethostname()
        patience = 60 * self.run.launcher.timeout_minutes
        self.meeting = Meeting(self.store, self.here, self.host, patience)
        self.everybody = list(range(self.here.world))

    def examine(self) -> None:
        """All stages; ``checks`` of rank 0 then holds the results.

        Raises:
            Missing: ranks did not come; ``checks`` of its reporter says so too.
        """
        stages = (
            ("cluster/meeting", self._meet),
            ("cluster/software", self._compare),
            ("cluster/clocks", self._clocks),
            ("device/present", self._devices),
            ("cluster/groups", self._groups),
            ("cluster/links", self._links),
            ("cluster/ranks", self._rates),
            ("device/ops", self._ops),
        )
        absent = 0
        try:
            for name, stage in stages:
                try:
                    stage()
                except Missing as missing:
                    self.checks.append(failed(name, missing.what, missing.fix))
                    absent = len(missing.ranks)
                    raise
                self.say(name)
        except _Over:
            return
        finally:
            self.meeting.leave(absent)

    def _all(self, stage: str, content: Any) -> List[Any]:
        """What every rank says, by rank; of ranks other than 0 only their own is sent."""
        self.meeting.tell(stage, content)
        self.meeting.come(f"{stage} told", self.everybody)
        if self.here.rank:
            return []
        return [self.meeting.told(stage, rank) for rank in self.everybody]

    def _meet(self) -> None:
        self.meeting.come(START, self.everybody)
        hosts = self._all("host", self.host)
        self.hosts: List[str] = hosts
        if not self.here.rank:
            what = f"{self.here.world} ranks of {alike.count(hosts)} came"
            self.checks.append(passed("cluster/meeting", what))

    def _compare(self) -> None:
        """Software, settings and data of all; what one rank of every host finds there."""
        own: List[Check] = []
        if not self.here.local_rank:
            machine = node.machine_of(self.run, self.here.local_world)
            own = node.of_host(self.run, machine)
        told = self._all("facts", alike.facts(self.run) | {"checks": report(own)["checks"]})
        if told:
            found = alike.compared(told, self.hosts)
            self.checks = [*alike.merged(told, self.hosts), *self.checks, *found]

    def _clocks(self) -> None:
        """Each host's first rank against rank 0, as network clocks do it: half a round trip."""
        firsts = self._firsts()
        if self.here.rank == 0:
            for rank in firsts[1:]:
                for ping in range(_PINGS):
                    self.meeting.told(f"ping {ping}", rank)
                    self.meeting.tell(f"pong {ping} for {rank}", self.now())
        elif self.here.rank in firsts:
            trips = []
            for ping in range(_PINGS):
                sent = self.now()
                self.meeting.tell(f"ping {ping}", True)
                answered = self.meeting.told(f"pong {ping} for {self.here.rank}", 0)
                back = self.now()
                trips.append((back - sent, (sent + back) / 2 - answered))
            self.meeting.tell("clock", min(trips))
        self.meeting.come("clocks", self.everybody)
        if self.here.rank == 0:
            offsets = {self.hosts[rank]: self.meeting.told("clock", rank) for rank in firsts[1:]}
            self.checks.append(alike.clocks(offsets, self.host))

    def _firsts(self) -> List[int]:
        """The first rank of every host, by the names that all told."""
        if self.here.rank == 0:
            first: Dict[str, int] = {}
            for rank, host in enumerate(self.hosts):
                first.setdefault(host, rank)
            self.meeting.tell("firsts", sorted(first.values()))
        found: List[int] = self.meeting.told("firsts", 0)
        return found

    def _devices(self) -> None:
        """Each rank's own device."""
        there = look("device/present", lambda: [device.present(self.run, self.here.local_rank)])
        told = self._all("device", report(there)["checks"])
        if told:
            self.checks += alike.merged([{"checks": one} for one in told], self.hosts)
            self.meeting.tell("all computes", not any(one[0]["fix"] for one in told))
        if not self.meeting.told("all computes", 0):
            raise _Over  # what stays to be seen needs the devices of all

    def _groups(self) -> None:
        """The default group, then one sum in each group of the layout, axis by axis."""
        choose_interface(self.here)
        self.meeting.come("join", self.everybody)
        with self._together("join", self.everybody):
            dist.init_process_group(
                accel.communication_backend,
                store=dist.PrefixStore("groups", self.store),
                rank=self.here.rank, world_size=self.here.world,
                timeout=timedelta(seconds=self.meeting.patience_s),
            )  # fmt: skip
            self._sum(None, self.everybody)
        grid = grid_of(self.run)
        done = [f"world {self.here.world}"]
        for axis, size in axes(grid):
            ranks = grid.group(self.here.rank, axis)
            stage = f"group {axis}"
            self.meeting.come(stage, ranks)
            with self._together(stage, ranks):
                self._sum(self._group(ranks), ranks)
            done.append(f"{axis} {size}")
        self.meeting.come("groups", self.everybody)
        if not self.here.rank:
            what = f"right sums in the groups of {', '.join(done)}"
            self.checks.append(passed("cluster/groups", what))

    def _together(self, stage: str, ranks: Sequence[int]) -> _Together:
        return _Together(self.meeting, stage, ranks)

    def _group(self, ranks: Sequence[int]) -> dist.ProcessGroup:
        return dist.new_group(  # type: ignore[return-value]
            list(ranks), timeout=timedelta(seconds=self.meeting.patience_s),
            use_local_synchronization=True,
        )  # fmt: skip

    def _sum(self, group: Optional[dist.ProcessGroup], ranks: Sequence[int]) -> None:
        """A sum that is right only if exactly these ranks take part."""
        value = torch.tensor([float(self.here.rank + 1)], device=accel.current_device())
        dist.all_reduce(value, group=group)
        wanted = float(sum(ranks) + len(ranks))
        if float(value) != wanted:
            raise RuntimeError(f"ranks {list(ranks)} add up to {float(value):g}, not {wanted:g}")

    def _links(self) -> None:
        for tier in links.tiers(self.run.cluster, self.here.world):
            mine = next((ranks for ranks in tier.ranks if self.here.rank in ranks), None)
            found: Optional[Tuple[float, float]] = None
            if mine is not None:
                stage = f"link {tier.name}"
                self.meeting.come(stage, mine)
                with self._together(stage, mine):
                    found = links.measure(self._group(mine), len(mine))
            told = self._all(f"rates {tier.name}", found)
            if told:
                by_rank = {rank: one for rank, one in enumerate(told) if one is not None}
                name = self.run.cluster.name
                self.checks.append(links.judged(tier, by_rank, self.hosts, name))

    def _rates(self) -> None:
        """All at once, as in training: ranks of one machine share it."""
        self.meeting.come("matmul", self.everybody)
        told = self._all("matmul rate", rates.matmul(self.run.precision))
        if told:
            self.checks += links.slow_ranks(told, self.hosts, self.run.cluster.device)

    def _ops(self) -> None:
        """Each device by itself: do its ops compute what they should, twice the same."""
        told = self._all("ops", report(device.operators())["checks"])
        if told:
            self.checks += alike.merged([{"checks": one} for one in told], self.hosts)


class _Over(Exception):
    """There is nothing left that could be examined."""


class _Together:
    """A collective of some ranks: told when it is passed, examined when it fails."""

    def __init__(self, meeting: Meeting, stage: str, ranks: Sequence[int]) -> None:
        self.meeting, self.stage, self.ranks = meeting, stage, ranks

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        if error is None:
            self.meeting.passed(self.stage)
        elif isinstance(error, RuntimeError):
            raise self.meeting.failed(self.stage, self.ranks, error) from error


def axes(grid: Grid) -> List[Tuple[str, int]]:
    """Axes of more than one rank; of two with the same groups the first."""
    found: Dict[Tuple[int, ...], Tuple[str, int]] = {}
    for axis in dict.fromkeys((*ATTENTION, *EXPERTS)):
        ranks = tuple(grid.group(0, axis))
        if len(ranks) > 1:
            found.setdefault(ranks, (axis, len(ranks)))
    return list(found.values())
