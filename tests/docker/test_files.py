"""docker/: generated files are up to date and sound, the entrypoint refuses what cannot work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loopmoe_train.device.matrix import load
from tests.docker.build import steps

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
IMAGES = sorted(load().images)
HADOLINT = Path(sys.executable).with_name("hadolint")


def test_files_are_what_the_generator_writes():
    done = subprocess.run(
        [sys.executable, DOCKER / "generate.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_stale_file_is_named(tmp_path):
    copied = tmp_path / "docker"
    shutil.copytree(DOCKER, copied)
    with open(copied / "cpu/Dockerfile", "a") as stream:
        stream.write("RUN true\n")
    check = [sys.executable, copied / "generate.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 1 and "cpu/Dockerfile" in done.stdout
    subprocess.run([sys.executable, copied / "generate.py"], check=True, capture_output=True)
    assert subprocess.run(check, capture_output=True).returncode == 0


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint has no wheel for this machine")
def test_hadolint_finds_nothing(image, tmp_path):
    text = (DOCKER / image / "Dockerfile").read_text()
    found = _hadolint(DOCKER / image / "Dockerfile")
    assert found.returncode == 0 and not found.stdout, found.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text(text.replace("--no-install-recommends ", "").replace("USER 1000", "USER root"))
    said = _hadolint(worse)
    assert said.returncode and "DL3015" in said.stdout and "DL3002" in said.stdout


def _hadolint(path):
    return subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True)


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_exists_and_is_not_ignored(image):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for instruction, rest in steps((DOCKER / image / "Dockerfile").read_text()):
        if instruction == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and source not in ignored, source


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("file", ["compose.yaml", "compose.two-nodes.yaml"])
def test_no_container_is_privileged_and_commands_compose(image, file):
    services = yaml.safe_load((DOCKER / image / file).read_text())["services"]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"] and "privileged" not in service
        assert service["read_only"] and service["user"].startswith("${LOOPMOE_UID:-1000}")
        about = load().images[image]
        assert len(service.get("devices", [])) == (about.devices + 3 if about.devices else 0)
        words = [word.replace("${LOOPMOE_FIRST_NODE:?address of the first node}", "10.0.0.1")
                 for word in service["command"]]  # fmt: skip
        _composes(words)


def _composes(words):
    """The settings of a command are of this package; nothing is started."""
    from loopmoe_train.config.compose import compose

    assert words[:2] == ["loopmoe", "train"]
    compose(words[2:])


# -- the entrypoint, in mount namespaces of its own ----------------------------------------------
namespaces = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None,
    reason="mounting a /dev of one's own needs root and unshare",
)


def _enter(prepare, command="echo started", **env):
    """Run the entrypoint where `prepare` (shell lines) has made /dev and /usr/local."""
    script = f"""set -e
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/dev /mnt/dev/shm /mnt/local
        for name in null tty urandom; do
            touch /mnt/dev/$name; mount --bind /dev/$name /mnt/dev/$name
        done
        mount -t tmpfs -o size=2g tmpfs /mnt/dev/shm
        {prepare}
        mount --rbind /mnt/local /usr/local
        mount --rbind /mnt/dev /dev
        exec setpriv --reuid=1234 --regid=1234 --clear-groups {DOCKER}/entrypoint.sh {command}"""
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        capture_output=True, text=True, env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                                             **env},
    )  # fmt: skip


NPUS = """
    for name in davinci0 davinci1 davinci_manager devmm_svm hisi_hdc; do
        touch /mnt/dev/$name; chmod 666 /mnt/dev/$name
    done
    toolkit=/mnt/local/Ascend/ascend-toolkit
    mkdir -p /mnt/local/Ascend/driver/lib64 $toolkit /mnt/local/bin
    echo 'export CANN_WAS_SOURCED=yes; : $UNSET_VARIABLE' > $toolkit/set_env.sh
    printf '#!/bin/sh\\n' > /mnt/local/bin/npu-smi; chmod +x /mnt/local/bin/npu-smi
"""


@namespaces
def test_entrypoint_sources_cann_and_becomes_the_command():
    done = _enter(NPUS, "printenv CANN_WAS_SOURCED", LOOPMOE_IMAGE="ascend-a2")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "yes", "")
    assert _enter("", "sh -c 'exit 7'", LOOPMOE_IMAGE="cpu").returncode == 7


@namespaces
@pytest.mark.parametrize(
    "spoil, said, fix",
    [
        ("rm /mnt/dev/davinci0 /mnt/dev/davinci1", "no NPU is visible", "--device=/dev/davinci0"),
        ("rm /mnt/dev/hisi_hdc", "/dev/hisi_hdc is missing", "--device=/dev/hisi_hdc"),
        ("chmod 600 /mnt/dev/davinci1", "may not use /dev/davinci1", "--group-add 0"),
        ("rm -r /mnt/local/Ascend/driver", "driver of the host", "--volume=/usr/local/Ascend"),
    ],
)
def test_entrypoint_names_what_is_missing(spoil, said, fix):
    done = _enter(NPUS + spoil, LOOPMOE_IMAGE="ascend-a2")
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and fix in done.stderr and done.stderr.count("\n") == 1
    # without the devices it starts where none are wanted
    assert _enter(NPUS + spoil, LOOPMOE_IMAGE="ascend-a2", LOOPMOE_DEVICE="cpu").returncode == 0


@namespaces
def test_entrypoint_warns_of_a_small_shm_and_goes_on():
    small = "umount /mnt/dev/shm; mount -t tmpfs -o size=64m tmpfs /mnt/dev/shm"
    done = _enter(small, LOOPMOE_IMAGE="cpu")
    assert done.returncode == 0 and done.stdout == "started\n"
    assert "64 MiB -> docker run --shm-size" in done.stderr
