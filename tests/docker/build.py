"""Execute a Dockerfile's steps without a Docker engine, in an overlay over this machine's root.

For a Debian machine with Python standing in for the base image: FROM is not fetched. Everything
else is done as Docker does it: RUN in the shell of SHELL with the ENV and ARG so far, in WORKDIR,
COPY from the context, the entrypoint as USER. Needs root and Linux (mount namespaces, overlay).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Tuple


@dataclass
class Image:
    """State while the steps are executed; ``root`` is what the image would contain."""

    root: Path
    env: Dict[str, str] = field(default_factory=dict)
    build_only: Dict[str, str] = field(default_factory=dict)  # ARG
    workdir: str = "/"
    user: str = "0"
    shell: List[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    entrypoint: List[str] = field(default_factory=list)
    command: List[str] = field(default_factory=list)

    def run(self, words: List[str], **more: str) -> subprocess.CompletedProcess[str]:
        """Run ``words`` inside as the image's user, with the image's environment."""
        env = {"PATH": os.environ["PATH"], "HOME": "/root", **self.env, **more}
        as_user = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        inside = ["chroot", str(self.root), "env", f"--chdir={self.workdir}", "-i"]
        inside += [f"{key}={value}" for key, value in env.items()]
        inside += ([] if self.user == "0" else as_user) + words
        return subprocess.run(inside, capture_output=True, text=True, check=False)

    def start(self, command: List[str], **more: str) -> subprocess.CompletedProcess[str]:
        """`docker run image command`."""
        return self.run([*self.entrypoint, *(command or self.command)], **more)


def steps(dockerfile: str) -> List[Tuple[str, str]]:
    """(instruction, rest) of a Dockerfile; comments left out, continuation lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def build(dockerfile: Path, context: Path, root: Path, **extra: str) -> Image:
    """Execute every step of ``dockerfile`` in ``root``.

    Args:
        extra: environment of RUN alone, as build arguments are.

    Raises:
        AssertionError: a step failed; its output.
    """
    image = Image(root)
    for instruction, rest in steps(dockerfile.read_text()):
        if instruction == "RUN":
            done = image.run([*image.shell, rest], **image.build_only, **extra)
            assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        elif instruction == "COPY":
            _copy(image, context, rest)
        elif instruction in ("ENV", "ARG"):
            kept = image.env if instruction == "ENV" else image.build_only
            for word in shlex.split(rest):
                key, _, value = word.partition("=")
                kept[key] = _expanded(value, {"PATH": os.environ["PATH"], **image.env})
        elif instruction == "WORKDIR":
            image.workdir = rest
            (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction in ("SHELL", "ENTRYPOINT", "CMD"):
            names = {"SHELL": "shell", "ENTRYPOINT": "entrypoint", "CMD": "command"}
            setattr(image, names[instruction], json.loads(rest))
        elif instruction == "USER":
            image.user = rest
        else:
            assert instruction == "FROM", f"{instruction}: the test does not know it"
    return image


def _copy(image: Image, context: Path, rest: str) -> None:
    *sources, target = rest.split()
    place = image.root / os.path.join(image.workdir, target).lstrip("/")
    for source in sources:
        path = context / source
        assert path.exists(), f"COPY {source}: not in the context"
        if path.is_dir():
            shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__"))
        elif target.endswith("/"):
            shutil.copy(path, place / path.name)
        else:
            shutil.copy(path, place)


def _expanded(value: str, env: Dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: env.get(match[1], ""), value)
