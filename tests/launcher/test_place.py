"""Who a rank is and where it meets the others, by the environment of what started it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loopmoe_train.errors import Refused
from loopmoe_train.launcher import wrapped
from loopmoe_train.parallel import rendezvous
from loopmoe_train.parallel.addresses import interface_of
from loopmoe_train.parallel.environment import Place, place

OPEN_MPI = dict(
    OMPI_COMM_WORLD_RANK="3", OMPI_COMM_WORLD_SIZE="4",
    OMPI_COMM_WORLD_LOCAL_RANK="1", OMPI_COMM_WORLD_LOCAL_SIZE="2",
)  # fmt: skip
TORCHRUN = dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
MPICH = dict(PMI_RANK="3", PMI_SIZE="4", MPI_LOCALRANKID="1", MPI_LOCALNRANKS="2")


@pytest.mark.parametrize("variables", [OPEN_MPI, TORCHRUN, MPICH])
def test_every_starter_is_understood(variables: dict[str, str]) -> None:
    found = place(variables)
    assert found == Place(rank=3, world=4, local_rank=1, local_world=2)
    assert not found.one_machine


def test_alone_without_a_starter() -> None:
    assert place({}) == Place(0, 1, 0, 1)
    assert place({"RANK": "1", "WORLD_SIZE": "2"}) == Place(1, 2, 1, 2)


@pytest.mark.parametrize(
    "variables, says",
    [
        ({"RANK": "1"}, "only one is set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "is not a rank of"),
        ({"PMI_RANK": "one", "PMI_SIZE": "2"}, "PMI_RANK='one': must be a whole number"),
    ],
)
def test_nonsense_is_refused(variables: dict[str, str], says: str) -> None:
    with pytest.raises(Refused, match=says):
        place(variables)


def _clean(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("LOOPMOE_RENDEZVOUS", "MASTER_ADDR", "MASTER_PORT", *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rendezvous.store.cache_clear()


def test_ranks_on_several_machines_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    _clean(monkeypatch, **OPEN_MPI)
    with pytest.raises(Refused, match="no MASTER_ADDR"):
        rendezvous.store()


@pytest.mark.parametrize("kind", ["open mpi", "mpich"])
def test_ranks_of_one_mpirun_meet_in_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _clean(monkeypatch, **{**MPICH, "PMI_RANK": "1", "PMI_SIZE": "2"})
    if kind == "open mpi":
        session = tmp_path / "session"
        session.mkdir()
        monkeypatch.setenv("PMIX_SERVER_TMPDIR", str(session))
        monkeypatch.setenv("PMIX_NAMESPACE", "prterun-host-7@1")
    first = rendezvous.store()
    first.set("key", "value")
    rendezvous.store.cache_clear()
    second = rendezvous.store()  # what the other rank opens
    assert second is not first and second.get("key") == b"value"
    (used,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    if kind == "open mpi":
        assert used == session / "loopmoe-prterun-host-7@1"
    else:
        assert used.parent.stat().st_mode & 0o077 == 0
        used.parent.chmod(0o755)
        rendezvous.store.cache_clear()
        with pytest.raises(Refused, match="belongs to somebody else"):
            rendezvous.store()
    rendezvous.store.cache_clear()


def test_several_machines_meet_over_the_interface_that_leads_to_rank_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _clean(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    several = Place(rank=1, world=4, local_rank=1, local_world=2)
    for given, found in (("eth9", "eth9"), (None, "lo")):
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        if given:
            monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
        rendezvous.choose_interface(several)
        assert os.environ["GLOO_SOCKET_IFNAME"] == found
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(rendezvous, "interface_of", lambda address: "seen " + address)
    rendezvous.choose_interface(several)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "seen 127.0.0.1"
    assert interface_of("203.0.113.9") is None


TORCHRUN_SAYS = """\
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_11:00:00
  exitcode  : -9 (pid: 4334)
"""
TORCHRUN_WARNS = (
    "E1125 11:00:00.000000 4300 torch/distributed/elastic/multiprocessing/api.py:984] "
    "failed (exitcode: -9) local_rank: 1 (pid: 4334) of binary: /usr/bin/python3\n"
)
OPEN_MPI_SAYS = (
    "prterun noticed that process rank 1 with PID 4334 on node host exited on\nsignal 9 (Killed).\n"
)


@pytest.mark.parametrize("said", [TORCHRUN_SAYS, TORCHRUN_WARNS, OPEN_MPI_SAYS])
def test_a_signal_is_read_from_the_launchers_log(tmp_path: Path, said: str) -> None:
    (tmp_path / "log").write_text(said)
    assert wrapped.how_ended(tmp_path / "log", 1, 4334) == -9
    assert wrapped.how_ended(tmp_path / "log", 1, 4335) is None
    assert wrapped.how_ended(tmp_path / "none", 1, 4334) is None
    # Of a rank on another machine no process is known; Open MPI names it.
    afar = -9 if said == OPEN_MPI_SAYS else None
    assert wrapped.how_ended(tmp_path / "log", 1, None) == afar
    assert wrapped.how_ended(tmp_path / "log", 0, None) is None
