"""What must be alike on all hosts, and findings of many hosts put together."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.dataset import load_dataset
from loopmoe_train.doctor import versions
from loopmoe_train.doctor.check import Check, failed, parse, passed, warned

_SKEW_S = 1.0


def facts(run: RunConfig) -> Dict[str, Any]:
    """What must be alike everywhere: versions, a hash of the settings, the dataset."""
    software = versions.installed(sys.path)
    software["cann"] = versions.cann_version(os.environ)
    # Names and places may differ; what is trained may not.
    settings = asdict(run)
    del settings["name"], settings["runs_dir"], settings["launcher"]
    del settings["data"]["path"], settings["data"]["source"], settings["tokenizer"]["path"]
    folders = [m.path for m in run.data.mixture] or [run.data.path]
    data = [load_dataset(Path(folder)) for folder in (*folders, *run.data.validation)]
    return {
        "software": {name: version for name, version in software.items() if version},
        "settings": hashlib.sha256(repr(settings).encode()).hexdigest()[:16],
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
            found.append(passed(f"cluster/{name}", f"alike on {count(hosts)}: {_words(shown)}"))
            continue
        differ = "; ".join(f"{host}: {_difference(one, shown)}" for host, one in others.items())
        found.append(failed(f"cluster/{name}", differ[:400], fix))
    return found


def count(hosts: Sequence[str]) -> str:
    number = len(set(hosts))
    return f"{number} {'host' if number == 1 else 'hosts'}"


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
            more = f" (and on {len(hosts) - 1} more)" if len(hosts) > 1 else ""
            found.append(passed(name, first.reason + more))
    return found
