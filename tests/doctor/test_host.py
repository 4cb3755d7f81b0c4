"""The machine: small mounts, low limits, files of another time, planted for real."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

import pytest

from loopmoe_train.doctor import disk, host, limits
from tests.doctor.found import assert_finds, assert_passes

Mount = Callable[[str], Path]
HERE = limits.here()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a small file system in memory; unmounts it at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    places = []

    def mount(size: str) -> Path:
        place = tmp_path / f"mount-{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"this container may not mount: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_too_little_shared_memory(mounted: Mount) -> None:
    assert_passes(host.shm(mounted("2g"), 2), "host/shm")
    small = host.shm(mounted("64m"), 2)
    assert_finds(small, "host/shm", "FAIL", "64 MiB", "--shm-size=16g")
    assert_finds(host.shm(mounted("512m"), 2), "host/shm", "WARN", "512 MiB", "--shm-size=16g")
    gone = host.shm(Path("/nowhere"), 2)
    assert_finds(gone, "host/shm", "FAIL", "No such file", "mount -t tmpfs")


def in_a_process(preexec: Callable[[], None], code: str) -> str:
    """What ``code`` prints in a process whose limits ``preexec`` sets."""
    lines = "from loopmoe_train.doctor import host, limits; bounds = limits.here()\n"
    done = subprocess.run(
        [sys.executable, "-c", lines + code], preexec_fn=preexec, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def test_few_open_files() -> None:
    code = "print(host.open_files(bounds, 64))"

    def soft() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))

    def hard() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    def enough() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))

    low = in_a_process(soft, code)
    assert (
        "'host/open-files', status='FAIL'" in low
        and "256 open files" in low
        and "ulimit -n 4096" in low
    )
    lowest = in_a_process(hard, code)
    assert "the hard limit is 256" in lowest and "--ulimit nofile=" in lowest
    assert "PASS" in in_a_process(enough, code)


def test_little_locked_memory_between_nodes() -> None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

    said = in_a_process(low, "print(host.locked_memory(bounds, 'npu', 4))")
    assert "'host/locked-memory', status='WARN'" in said and "--ulimit memlock=-1" in said
    assert "PASS" in in_a_process(low, "print(host.locked_memory(bounds, 'npu', 1))")


def test_a_small_share_of_the_processors(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    bounds = limits.here(tmp_path)
    assert bounds.processors == 1.5 and bounds.memory == 2**30
    few = host.processors(bounds, 8, 1, "npu")
    assert_finds(few, "host/processors", "WARN", "1.5 processors for 8 ranks of 2", "--cpus=16")
    little = host.memory(bounds, 8)
    assert_finds(little, "host/memory", "WARN", "1.0 GiB for 8 ranks", "--memory=16g")
    wide = replace(bounds, processors=16.0, memory=2.0**40)
    assert_passes(host.processors(wide, 8, 1, "npu"), "host/processors")
    assert_passes(host.memory(wide, 8), "host/memory")


def test_the_cgroup_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**31}\n")
    assert limits.cgroup_processors(tmp_path) == 0.5 and limits.cgroup_memory(tmp_path) == 2**31
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert limits.cgroup_processors(tmp_path) is None and limits.cgroup_memory(tmp_path) is None


def test_threads_of_all_ranks() -> None:
    bounds = replace(HERE, processors=8.0)
    assert_passes(host.threads({"OMP_NUM_THREADS": "2"}, bounds, 4), "host/threads")
    many = host.threads({"OMP_NUM_THREADS": "32"}, bounds, 4)
    assert_finds(many, "host/threads", "WARN", "of 4 ranks on 8", "export OMP_NUM_THREADS=2")
    word = host.threads({"OMP_NUM_THREADS": "all"}, bounds, 4)
    assert_finds(word, "host/threads", "FAIL", "not a number", "export OMP_NUM_THREADS=2")


def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    installed = tmp_path / "installed.py"
    installed.touch()
    now = time.time()
    assert_passes(host.clock(tmp_path, installed, now), "host/clock")
    os.utime(installed, (now + 86400 * 30, now + 86400 * 30))
    behind = host.clock(tmp_path, installed, now)
    assert_finds(behind, "host/clock", "FAIL", "30 days behind", "chronyc makestep")


def test_a_lock_that_a_killed_build_left(tmp_path: Path) -> None:
    folders = host.extension_folders({"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    lock = tmp_path / "py311_cpu" / "fused" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    now = time.time()
    assert_passes(host.build_locks(folders, now), "host/build-locks")  # a build that runs
    os.utime(lock, (now - 7200, now - 7200))
    stale = host.build_locks(folders, now)
    assert_finds(stale, "host/build-locks", "FAIL", "2 hours old", f"rm {lock}")


def test_a_full_disk(mounted: Mount) -> None:
    place = mounted("8m")
    full = disk.write_speed(place / "runs" / "mine")
    assert_finds(full, "disk/write-speed", "FAIL", "No space left", "runs_dir=FOLDER")
    assert not list(place.iterdir())
    assert_passes(disk.write_speed(mounted("64m")), "disk/write-speed")
    small = disk.run_folder(place, 20e6, 2)
    assert_finds(small, "disk/run-folder", "FAIL", "0.0 GiB free", "free space")
    some = disk.run_folder(mounted("50m"), 20e6, 2)
    assert_finds(some, "disk/run-folder", "WARN", "2 of them are kept", "checkpoint.keep=1")
    assert_passes(disk.run_folder(mounted("100m"), 20e6, 2), "disk/run-folder")
    assert_finds(disk.data(place, False), "disk/data", "WARN", "GiB free", "data.path=FOLDER")
    assert_passes(disk.data(place, True), "disk/data")


def test_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.2)
        sync(handle)

    assert_passes(disk.write_speed(tmp_path, 2**20), "disk/write-speed")
    monkeypatch.setattr(os, "fsync", slow)
    found = disk.write_speed(tmp_path, 2**20)
    assert_finds(found, "disk/write-speed", "WARN", "MB/s", "a faster disk")
