"""The command on one node of two, with ranks that have no model (fake_rank)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from loopmoe_train.config.compose import compose
from loopmoe_train.errors import LoopMoEError
from loopmoe_train.launcher import nodes, supervise

FAKE = "tests.launcher.fake_rank"


def main(file: str, lost_s: str, *words: str) -> int:
    """Launch on this node; the exit code. What happens is told as by the front door."""
    nodes._LOST_S = float(lost_s)
    supervise.TRAIN = FAKE
    place = json.loads(Path(file).read_text())
    run = compose([*place["settings"], *words])
    try:
        # Rank 0 would make the run of settings; these ranks read one that is there.
        supervise.launch(run, module=FAKE, overrides=[place["run"]])
        return 0
    except LoopMoEError as error:
        print(f"node: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
