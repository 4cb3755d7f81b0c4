"""What all ranks do together: meet, compare what they are, talk in every group, measure."""

from __future__ import annotations

import hashlib
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist

from loopmoe_train.config.run_file import dump
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.dataset import load_dataset
from loopmoe_train.device.accelerator import accel
from loopmoe_train.doctor import device, links, node, rates, versions
from loopmoe_train.doctor.check import Check, failed, look, parse, passed, report, warned
from loopmoe_train.doctor.meeting import START, Meeting, Missing
from loopmoe_train.errors import Refused
from loopmoe_train.parallel.environment import Place
from loopmoe_train.parallel.rendezvous import default_to_loopback
from loopmoe_train.spec.grid import ATTENTION, EXPERTS, Grid, grid_of

_SKEW_S = 1.0
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
        try:
            self._meet()
            self._compare()
            self._clocks()
            self._join()
            self._groups()
            self._links()
            self._rates()
        except Missing as missing:
            name = "cluster/meeting" if not self.checks_of("cluster/meeting") else "cluster/groups"
            self.checks.append(failed(name, missing.what, missing.fix))
            raise

    def checks_of(self, name: str) -> List[Check]:
        """Results so far under a name."""
        return [one for one in self.checks if one.name == name]

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
            count = len(set(hosts))
            what = f"{self.here.world} ranks of {count} {'host' if count == 1 else 'hosts'} came"
            self.checks.append(passed("cluster/meeting", what))
        self.say(START)

    def _compare(self) -> None:
        """Software, settings and data of all; what one rank of every host finds there."""
        own: List[Check] = []
        if not self.here.local_rank:
            machine = node.machine_of(self.run, self.here.local_world)
            own = node.of_host(self.run, machine)
        told = self._all("facts", facts(self.run) | {"checks": report(own)["checks"]})
        if told:
            found = compared(told, self.hosts)
            self.checks = [*merged(told, self.hosts), *self.checks, *found]
        self.say("facts")

    def _clocks(self) -> None:
        """Each host's first rank against rank 0, as network clocks do it: half a round trip."""
        firsts = self._firsts()
        if self.here.rank == 0:
            for rank in firsts[1:]:
                for ping in range(_PINGS):
                    self.meeting.told(f"ping {ping}", rank)
                    self.store.set(f"pong {ping}/{rank}", repr(self.now()))
        elif self.here.rank in firsts:
            trips = []
            for ping in range(_PINGS):
                sent = self.now()
                self.meeting.tell(f"ping {ping}", True)
                answered = float(self.store.get(f"pong {ping}/{self.here.rank}"))
                back = self.now()
                trips.append((back - sent, (sent + back) / 2 - answered))
            self.meeting.tell("clock", min(trips))
        self.meeting.come("clocks", self.everybody)
        if self.here.rank == 0:
            offsets = {self.hosts[rank]: self.meeting.told("clock", rank) for rank in firsts[1:]}
            self.checks.append(clocks(offsets, self.host))
        self.say("clocks")

    def _firsts(self) -> List[int]:
        """The first rank of every host, by the names that all told."""
        if self.here.rank == 0:
            first: Dict[str, int] = {}
            for rank, host in enumerate(self.hosts):
                first.setdefault(host, rank)
            self.meeting.tell("firsts", sorted(first.values()))
        found: List[int] = self.meeting.told("firsts", 0)
        return found

    def _join(self) -> None:
        """The device, then the default group."""
        there = look("device/present", lambda: [device.present(self.run, self.here.local_rank)])
        told = self._all("device", report(there)["checks"])
        if told:
            found = [(self.hosts[rank], Check(**one)) for rank, ones in enumerate(told) for one in ones]
            self.checks += folded(found)
        if there[0].fix:
            raise Refused(there[0].reason, there[0].fix)
        default_to_loopback(self.here)
        self.meeting.come("join", self.everybody)
        with self._together("join", self.everybody):
            dist.init_process_group(
                accel.communication_backend,
                store=dist.PrefixStore("groups", self.store),
                rank=self.here.rank, world_size=self.here.world,
                timeout=timedelta(seconds=self.meeting.patience_s),
            )  # fmt: skip
            self._sum(None, self.everybody)
        self.say("join")

    def _groups(self) -> None:
        """One sum in each group of the layout, axis by axis."""
        grid = grid_of(self.run)
        done = [f"world {self.here.world}"]
        for axis, size in axes(grid):
            ranks = grid.group(self.here.rank, axis)
            stage = f"group {axis}"
            self.meeting.come(stage, ranks)
            with self._together(stage, ranks):
                self._sum(self._group(ranks), ranks)
            done.append(f"{axis} {size}")
            self.say(stage)
        self.meeting.come("groups", self.everybody)
        if not self.here.rank:
            what = f"right sums in the groups of {', '.join(done)}"
            self.checks.append(passed("cluster/groups", what))

    def _together(self, stage: str, ranks: Sequence[int]) -> "_Together":
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
        self.say("links")

    def _rates(self) -> None:
        """All at once, as in training: ranks of one machine share it."""
        self.meeting.come("matmul", self.everybody)
        told = self._all("matmul rate", rates.matmul(self.run.precision))
        if told:
            self.checks += links.slow_ranks(told, self.hosts, self.run.cluster.device)
        self.say("ranks")


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


def facts(run: RunConfig) -> Dict[str, Any]:
    """What must be alike everywhere: versions, a hash of the settings, the dataset."""
    import os
    import sys

    software = versions.installed(sys.path)
    software["cann"] = versions.cann_version(os.environ)
    # Names and places may differ; what is trained may not.
    settings = asdict(run)
    del settings["name"], settings["runs_dir"], settings["launcher"]
    text = dump(run) if not settings else repr(settings)
    folders = [m.path for m in run.data.mixture] or [run.data.path]
    data = [load_dataset(Path(folder)) for folder in (*folders, *run.data.validation)]
    return {
        "software": {name: version for name, version in software.items() if version},
        "settings": hashlib.sha256(text.encode()).hexdigest()[:16],
        "data": [one.fingerprint[:16] if one else "not prepared" for one in data],
    }


def compared(told: Sequence[Dict[str, Any]], hosts: Sequence[str]) -> List[Check]:
    """What of the facts differs between ranks; who differs from most is named."""
    fixes = {
        "software": "install the same everywhere: start all nodes from one image, or pip install "
        "-c constraints.txt",
        "settings": "use the same checkout and the same command on every node: git rev-parse HEAD",
        "data": "copy the dataset's folder of the first rank to those hosts: rsync -a",
    }
    found = []
    for name, fix in fixes.items():
        texts = [repr(one[name]) for one in told]
        usual = Counter(texts).most_common(1)[0][0]
        others = {hosts[rank]: one[name] for rank, one in enumerate(told) if texts[rank] != usual}
        shown = told[texts.index(usual)][name]
        if not others:
            found.append(passed(f"cluster/{name}", f"alike on {len(set(hosts))} hosts: {_words(shown)}"))
            continue
        differ = "; ".join(f"{host}: {_difference(one, shown)}" for host, one in others.items())
        found.append(failed(f"cluster/{name}", differ[:400], fix))
    return found


def _words(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name} {version}" for name, version in fact.items())
    return ", ".join(fact) if isinstance(fact, list) else str(fact)


def _difference(fact: Any, usual: Any) -> str:
    if isinstance(fact, dict):
        names = [name for name in sorted({*fact, *usual}) if fact.get(name) != usual.get(name)]
        return ", ".join(f"{n} {fact.get(n)} (elsewhere {usual.get(n)})" for n in names)
    return f"{_words(fact)} (elsewhere {_words(usual)})"


def clocks(offsets: Dict[str, Sequence[float]], first: str) -> Check:
    """Offsets by host, as (round trip, offset) in seconds, against the first rank's host."""
    if not offsets:
        return passed("cluster/clocks", f"one host, {first}")
    off = {host: skew for host, (trip, skew) in offsets.items() if abs(skew) - trip / 2 > _SKEW_S}
    if off:
        told = ", ".join(f"{host} is {skew:+.1f} s" for host, skew in off.items())
        return warned(
            "cluster/clocks", f"{told} off {first}: logs cannot be put in order",
            f"sudo chronyc makestep on {', '.join(off)}",
        )  # fmt: skip
    most = max(abs(skew) for _, skew in offsets.values())
    return passed("cluster/clocks", f"{len(offsets) + 1} hosts within {most:.2f} s")


def merged(told: Sequence[Dict[str, Any]], hosts: Sequence[str]) -> List[Check]:
    """What one rank of every host found there, each finding once."""
    pairs = [
        (hosts[rank], one)
        for rank, said in enumerate(told)
        for one in parse({"checks": said["checks"]})
    ]
    return folded(pairs)


def folded(pairs: Sequence[Tuple[str, Check]]) -> List[Check]:
    """Checks of many hosts: one line for what all passed, each finding with its hosts."""
    found: List[Check] = []
    for name in dict.fromkeys(check.name for _, check in pairs):
        wrong: Dict[Check, List[str]] = {}
        for host, check in pairs:
            if check.name == name and check.fix:
                wrong.setdefault(check, []).append(host)
        for check, where in wrong.items():
            on = ", ".join(dict.fromkeys(where))
            found.append(Check(name, check.status, f"{on}: {check.reason}", check.fix))
        if not wrong:
            first = next(check for _, check in pairs if check.name == name)
            hosts = dict.fromkeys(host for host, _ in pairs)
            more = f" (and on {len(hosts) - 1} more hosts)" if len(hosts) > 1 else ""
            found.append(passed(name, first.reason + more))
    return found
