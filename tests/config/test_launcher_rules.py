"""Every setting of the launcher belongs to some launchers, and the others refuse it."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.launcher_rules import KINDS, USED_BY
from loopmoe_train.config.rules import problems
from loopmoe_train.config.schema import LauncherConfig, RunConfig
from loopmoe_train.errors import Refused

VALUES: Dict[str, Any] = {
    "nodes": 2, "endpoint": "a:29500", "hosts": ["a", "b"], "hostfile": "f", "queue": "q",
    "minutes": 5, "image": "i", "volume": "v", "arguments": ["x"],
}  # fmt: skip
# What each launcher needs for that setting to be taken.
WITH: Dict[str, Dict[str, Any]] = {
    "slurm": {"nodes": 2},
    "volcano": {"nodes": 2, "image": "i", "volume": "v"},
    "torchrun nodes": {"endpoint": "a:29500"},
    "torchrun endpoint": {"nodes": 2},
    "mpirun endpoint": {"hosts": ["a", "b"]},
}
TWO = ["cluster.devices_per_node=1"]


@pytest.mark.parametrize("name", USED_BY)
@pytest.mark.parametrize("kind", KINDS)
def test_taken_or_refused(kind: str, name: str) -> None:
    config = RunConfig()
    config.cluster.devices_per_node = 1
    given = {**WITH.get(kind, {}), **WITH.get(f"{kind} {name}", {}), name: VALUES[name]}
    config.launcher = LauncherConfig(kind=kind, **given)
    found = problems(config)
    if kind in USED_BY[name]:
        assert found == []
        return
    told = [problem for problem in found if problem.startswith(f"launcher.{name} is for launcher=")]
    assert len(told) == 1 and f"not for launcher={kind}: leave it out" in told[0]


def test_all_settings_are_sorted() -> None:
    assert set(VALUES) == set(USED_BY)


NODES = ["launcher=torchrun", "launcher.nodes=2", "launcher.endpoint=a:29500"]
REFUSED = [
    (["launcher=torchrun", "launcher.nodes=2", *TWO], "go together: set both"),
    (["launcher=torchrun", "launcher.endpoint=a:1"], "go together: set both"),
    (["launcher=torchrun", "launcher.nodes=0"], "launcher.nodes=0: must be at least 1"),
    ([*NODES[:2], *TWO, "launcher.endpoint=a"], "launcher.endpoint='a': write HOST:PORT"),
    ([*NODES[:2], *TWO, "launcher.endpoint=a:0"], "launcher.endpoint='a:0': write HOST:PORT"),
    ([*NODES[:2], *TWO, "launcher.endpoint=a:65536"], "from 1 to 65535"),
    ([*NODES[:2], *TWO, "launcher.endpoint='a b:1'"], "write HOST:PORT"),
    ([*NODES], "cluster.devices=2 is not 2 nodes x cluster.devices_per_node=2: set cluster"),
    (["launcher=mpirun", "launcher.hosts=[a,b,c]"], "is not 3 nodes x"),
    (["launcher=mpirun", "launcher.hosts=[a,a]", *TWO], "names a twice"),
    (["launcher=mpirun", "launcher.hosts=['a;b',c]", *TWO], "'a;b' is no host name"),
    (["launcher=mpirun", "launcher.hosts=[a,b]", "launcher.hostfile=f", *TWO], "give one of them"),
    (["launcher=mpirun", "launcher.endpoint=a:1"], "needs launcher.hosts or launcher.hostfile"),
    (["launcher=mpirun", "launcher.nodes=2", *TWO], "launcher.hosts or launcher.hostfile names"),
    (["launcher=slurm", "cluster.devices=4", "global_batch_size=16"], "needs launcher.nodes=2"),
    (["launcher=slurm", "launcher.queue='a b'"], "launcher.queue='a b': not such a name"),
    (["launcher=slurm", "launcher.minutes=0"], "launcher.minutes=0: must be above 0"),
    (["launcher=slurm", "launcher.minutes=2"], "launcher.minutes=2: the job is told to save"),
    (["launcher=volcano", "launcher.volume=v"], "launcher=volcano needs launcher.image"),
    (["launcher=volcano", "launcher.image=i"], "launcher=volcano needs launcher.volume"),
    (["launcher=volcano", "launcher.image='i\"'", "launcher.volume=v"], "not such a name"),
    (["launcher.kind=slrm"], "launcher.kind=slrm: did you mean slurm?"),
    (["launcher.nnodes=2"], "did you mean launcher.nodes"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=lambda x: " ".join(x)[:60])
def test_refused_with_the_reason(words: List[str], says: str) -> None:
    with pytest.raises(Refused) as caught:
        compose(words)
    assert says in str(caught.value) and "\n" not in str(caught.value)
