"""The cpu image's steps, executed: it installs, starts as nobody in particular, and trains.

What stands in for the base image is this machine, a Debian with Python; everything after FROM is
executed as written. Minutes, most of them pip's: `make docker`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def _can_overlay() -> bool:
    """Whether this process may lay a folder over the root of this machine."""
    if os.getuid() or shutil.which("unshare") is None or shutil.which("apt-get") is None:
        return False
    tried = """mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work /mnt/root &&
        mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root"""
    words = ["unshare", "--mount", "sh", "-c", tried]
    return subprocess.run(words, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not _can_overlay(), reason="needs root, a Debian, and to mount an overlay of its root"
    ),
]


def test_steps_of_the_cpu_image(tmp_path):
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-m", "tests.docker.build_cpu", tmp_path],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    code, said, warned = told["started"]
    assert code == 0 and "PASS" in said, told["started"]
    assert warned == ""
    assert told["trained"][0] == 0, told["trained"]
    assert "val" in told["trained"][1]
    assert told["where"][1].startswith("/opt/loopmoe/lib/")
    assert told["who"][1].strip() == "1000"
