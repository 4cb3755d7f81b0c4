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

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("apt-get") is None,
        reason="an overlay of the root needs root, unshare and a Debian",
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
