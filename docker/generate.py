"""Write the Dockerfiles and compose files from the version matrix.

python docker/generate.py            writes docker/<image>/
python docker/generate.py --check    exits with 1 if one is not what it would write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

import yaml

from loopmoe_train.config.launcher_rules import PORT
from loopmoe_train.device.matrix import Image, load
from loopmoe_train.doctor.driver import MANAGERS, MOUNT

HERE = Path(__file__).parent
_NOTE = "# Written by docker/generate.py: change that.\n"
# What the driver of an Ascend host brings; the image has everything else.
_DRIVER = (
    str(MOUNT),
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/etc/ascend_install.info",
    "/etc/hccn.conf",
)


def files() -> Dict[Path, str]:
    """Every generated file and its text."""
    made = {}
    for image in load().images.values():
        folder = HERE / image.name
        made[folder / "Dockerfile"] = dockerfile(image)
        made[folder / "compose.yaml"] = _NOTE + _one_node_note(image) + _dump(one_node(image))
        made[folder / "compose.two-nodes.yaml"] = (
            _NOTE + _two_nodes_note(image) + _dump(two_nodes(image))
        )
    return made


def dockerfile(image: Image) -> str:
    """The Dockerfile of an image."""
    npu = f" torch_npu=={image.torch_npu}" if image.torch_npu else ""
    # Of the chip, and of sizes that go together.
    doctor = ["loopmoe", "doctor", "--quick", f"cluster={image.cluster}", *_sizes(image.devices)]
    filled = {
        "doctor": json.dumps(doctor),
        "name": image.name,
        "base": image.base,
        # CANN's own Python packages stay visible.
        "venv": "--system-site-packages " if image.cann else "",
        "torch": f"torch=={image.torch}{npu}",
    }
    text = (HERE / "Dockerfile.template").read_text()
    for key, value in filled.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def one_node(image: Image) -> Dict[str, Any]:
    """A compose file that trains on this machine."""
    words = ["loopmoe", "train", f"cluster={image.cluster}", *_sizes(image.devices)]
    return {"services": {"train": _service(image) | {"command": words}}}


def two_nodes(image: Image) -> Dict[str, Any]:
    """Two containers on one machine for the cpu; one of two machines for an accelerator."""
    words = ["loopmoe", "train", f"cluster={image.cluster}", "launcher=torchrun",
             "launcher.nodes=2"]  # fmt: skip
    if image.devices:
        words += [
            *_sizes(2 * image.devices),
            f"launcher.endpoint=${{LOOPMOE_FIRST_NODE:?address of the first node}}:{PORT}",
        ]
        service = _service(image) | {"command": words, "network_mode": "host"}
        return {"services": {"train": service}}
    words += ["cluster.devices=2", "cluster.devices_per_node=1",
              f"launcher.endpoint=node-0:{PORT}"]  # fmt: skip
    nodes = {}
    for name in ("node-0", "node-1"):
        nodes[name] = _service(image) | {
            "command": words,
            "hostname": name,
            "environment": {"HOME": "/tmp", "GLOO_SOCKET_IFNAME": "eth0"},
        }
    return {"services": nodes}


def _sizes(devices: int) -> List[str]:
    """Settings for so many accelerators; the quickstart's are for two processes of a cpu."""
    if not devices:
        return []
    return [f"cluster.devices={devices}", f"global_batch_size={4 * devices}", "precision=bf16"]


def _service(image: Image) -> Dict[str, Any]:
    """What every container of an image needs; nothing is privileged."""
    service: Dict[str, Any] = {
        "image": f"loopmoe-train:{image.name}",
        "build": {"context": "../..", "dockerfile": f"docker/{image.name}/Dockerfile"},
        "init": True,
        "user": "${LOOPMOE_UID:-1000}:${LOOPMOE_GID:-1000}",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "environment": {"HOME": "/tmp"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "shm_size": "16gb" if image.devices else "2gb",
        "ulimits": {"memlock": -1, "nofile": 65536},
        "stop_grace_period": "10m",  # it finishes the step and saves
        "volumes": ["${LOOPMOE_WORK:?folder for datasets and runs}:/work"],
    }
    if image.devices:
        named = [f"davinci{index}" for index in range(image.devices)]
        service["devices"] = [f"/dev/{name}:/dev/{name}" for name in (*named, *MANAGERS)]
        service["group_add"] = ["${ASCEND_GROUP:-1000}"]
        service["volumes"] += [f"{path}:{path}:ro" for path in _DRIVER]
    return service


def _one_node_note(image: Image) -> str:
    lines = [
        f"# docker compose -f docker/{image.name}/compose.yaml up",
        "# LOOPMOE_WORK: folder for datasets/ and runs/; LOOPMOE_UID, LOOPMOE_GID: who owns it.",
    ]
    if image.devices:
        lines.append("# ASCEND_GROUP: group of /dev/davinci0, `stat --format=%g /dev/davinci0`.")
    return "\n".join(lines) + "\n"


def _two_nodes_note(image: Image) -> str:
    command = f"docker compose -f docker/{image.name}/compose.two-nodes.yaml up"
    if not image.devices:
        return f"# Two containers as two nodes, to try it out:\n# {command}\n"
    return (
        "# On each of the two machines, with /work on storage that both see:\n"
        f"# LOOPMOE_FIRST_NODE=10.0.0.1 LOOPMOE_WORK=/shared {command}\n"
    )


def _dump(content: Dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=100)


def main(words: list[str]) -> int:
    """Write, or with --check compare; returns the exit code."""
    stale = [path for path, text in files().items() if not _holds(path, text)]
    if words == ["--check"]:
        for path in stale:
            print(f"{path}: not what docker/generate.py writes -> python docker/generate.py")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files()[path])
        print(path)
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
