"""mpirun over machines: hostfiles as they are read, and what stands on its command line."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.device.environment_table import SETTINGS
from loopmoe_train.errors import Refused
from loopmoe_train.launcher import hosts, wrapped
from loopmoe_train.launcher.hosts import Host

FOUR = ["launcher=mpirun", "cluster.devices=4", "global_batch_size=16"]


def test_a_hostfile_with_all_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(
        "# the rack\n\n  node1   slots=8  # the first\nnode2 slots = 4 max_slots=8\nnode-3.lan\n"
    )
    assert hosts.read(tmp_path / "hosts") == [
        Host("node1", 8), Host("node2", 4), Host("node-3.lan", 1)
    ]  # fmt: skip


REFUSED = {
    "": "names no host",
    "# nothing": "names no host",
    "a slots=0": "line 1: 'a slots=0' is no host",
    "a slots=two": "line 1: 'a slots=two' is no host",
    "a\nb:4": "line 2: 'b:4' is no host",
    "a slots=1 b slots=1": "is no host",
    "a slots=2\n#\na": "line 3: a is there twice",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_hostfile_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(Refused) as caught:
        hosts.read(tmp_path / "hosts")
    assert REFUSED[text] in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read \\(No such file"):
        hosts.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a slots=2\nb slots=1", "b has 1 slots for 2 ranks -> raise slots= there"),
        ("a slots=9\nb slots=9\nc slots=9", "3 hosts: cluster.devices=4 is not 3 x cluster"),
    ],
)
def test_a_hostfile_that_does_not_hold_the_ranks(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(Refused) as caught:
        hosts.of(compose([*FOUR, f"launcher.hostfile={tmp_path}/hosts"]))
    assert says in str(caught.value)


def line(words: List[str], **env: str) -> List[str]:
    run = compose([*FOUR, *words])
    env |= hosts.variables(run)
    return wrapped.command(run, ["python", "-m", "x"], env)


def test_names_of_variables_are_handed_on_and_no_value() -> None:
    secret = dict(WANDB_API_KEY="canary-0001", HCCL_CONNECT_TIMEOUT="900", LOOPMOE_ATTEMPT="0",
                  HOME="/root", SSH_AUTH_SOCK="/tmp/x")  # fmt: skip
    words = line(["launcher.hosts=[a,b]", "launcher.arguments=['--tag-output']"], **secret)
    assert words[words.index("-H") + 1] == "a:2,b:2"
    assert words[words.index("--map-by") + 1] == "ppr:2:node:OVERSUBSCRIBE"
    named = [word for before, word in zip(words, words[1:]) if before == "-x"]
    assert named == [
        "HCCL_CONNECT_TIMEOUT", "LOOPMOE_ATTEMPT", "MASTER_ADDR", "MASTER_PORT", "WANDB_API_KEY"
    ]  # fmt: skip
    assert words[-4:] == ["--tag-output", "python", "-m", "x"] and "canary" not in " ".join(words)


def test_all_that_the_table_gives_ranks_is_handed_on() -> None:
    """Also names that begin like nothing else, such as A3's number of streams."""
    for device in ("cpu", "cuda", "npu"):
        given = [one.name for one in SETTINGS if device in one.devices]
        words = line(["launcher.hosts=[a,b]"], **dict.fromkeys(given, "1"))
        named = {word for before, word in zip(words, words[1:]) if before == "-x"}
        assert set(given) <= named, set(given) - named


def test_the_first_host_is_where_all_meet_unless_told(tmp_path: Path) -> None:
    run = compose([*FOUR, "launcher.hosts=[a,b]"])
    assert hosts.variables(run) == dict(MASTER_ADDR="a", MASTER_PORT="29500")
    (tmp_path / "hosts").write_text("n1 slots=2\nn2 slots=2\n")
    run = compose([*FOUR, f"launcher.hostfile={tmp_path}/hosts"])
    assert hosts.variables(run) == dict(MASTER_ADDR="n1", MASTER_PORT="29500")
    words = line([f"launcher.hostfile={tmp_path}/hosts", "launcher.endpoint=10.0.0.1:777"])
    assert words[words.index("--hostfile") + 1] == f"{tmp_path}/hosts" and "-H" not in words
    run = compose([*FOUR, "launcher.hosts=[a,b]", "launcher.endpoint='[fd00::1]:777'"])
    assert hosts.variables(run) == dict(MASTER_ADDR="fd00::1", MASTER_PORT="777")


def test_one_machine_needs_no_address() -> None:
    assert hosts.variables(compose(FOUR)) == {}
    words = line([], HCCL_CONNECT_TIMEOUT="900")
    assert "--oversubscribe" in words and "-x" not in words and "-H" not in words
