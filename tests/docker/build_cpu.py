"""Build the cpu image's steps in an overlay and start it; run inside a mount namespace of its own.

unshare --mount python -m tests.docker.build_cpu FOLDER
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from tests.docker.build import build

ROOT = Path(__file__).parents[2]


def _mount(kind: str, place: Path, options: str = "rw") -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(place)], check=True)


def main(folder: Path) -> None:
    _mount("tmpfs", folder)
    root = folder / "root"
    for name in ("upper", "work", "root"):
        (folder / name).mkdir()
    _mount("overlay", root, f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work")
    _mount("proc", root / "proc")
    _mount("tmpfs", root / "tmp", "mode=1777")
    _mount("tmpfs", root / "dev")
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        os.chmod(root / "dev" / name, 0o666)
    (root / "dev/shm").mkdir()
    _mount("tmpfs", root / "dev/shm", "size=2g,mode=1777")
    # The base image has no ordinary users, and everybody may run its Python.
    passwd = root / "etc/passwd"
    kept = [
        line
        for line in passwd.read_text().splitlines()
        if not 1000 <= int(line.split(":")[2]) < 65000
    ]
    passwd.write_text("\n".join(kept) + "\n")
    os.chmod(root / "root", 0o755)
    image = build(ROOT / "docker/cpu/Dockerfile", ROOT, root)
    results = {
        "started": image.start([]),
        "trained": image.start(["loopmoe", "train", "experiment=smoke"], HOME="/tmp"),
        "where": image.run(["python", "-c", "import loopmoe_train; print(loopmoe_train.__file__)"]),
        "who": image.run(["id", "-u"]),
    }
    told = {name: [done.returncode, done.stdout, done.stderr] for name, done in results.items()}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
