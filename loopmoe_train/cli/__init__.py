"""Front door: ``loopmoe VERB ...``, one verb per file, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import List, Optional

from loopmoe_train.errors import LoopMoEError
from loopmoe_train.interrupts import interruptible

VERBS = {
    "plan": "parameters and FLOPs of models; the looped model that equals a vanilla one",
    "train": "prepare the data if needed, train, evaluate, write the report",
    "evaluate": "loss and bits per byte of trained runs on held-out text; tasks",
    "data": "tokenise a corpus into Megatron .bin/.idx files",
    "tokenizer": "train a SentencePiece tokenizer on a corpus",
    "study": "train several models with several seeds and compare them",
    "report": "draw a run folder, or compare several",
    "doctor": "what is wrong with this machine, the cluster, a run; and the fix",
    "bench": "measure: against megatron-core's model, faults, saves, the cost of IterAdaLN",
}

HELP = """loopmoe: pretrain looped Mixture-of-Experts language models on megatron-core

usage: loopmoe VERB [setting=value ...]

{verbs}

Settings are Hydra overrides: `loopmoe train model=vanilla_tiny steps=100 optim.lr=2e-3`.
`loopmoe VERB --help` tells more. Exit codes: 0 done, 1 failed, 2 refused input,
3 training stopped itself, 4 a rank was lost or hung, 130 or 143 interrupted outside training.
"""


def main(argv: Optional[List[str]] = None) -> int:
    """Run one verb; returns the exit code. Expected failures end in one line on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {k:<{width}}  {v}" for k, v in VERBS.items())))
        return 0 if args else 2
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean `loopmoe {near[0]}`?" if near else "see `loopmoe --help`"
        print(f"loopmoe: {verb}: there is no such verb -> {hint}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"loopmoe_train.cli.{verb}")
        if any(word in ("-h", "--help") for word in rest) and not hasattr(module, "OWN_HELP"):
            print(module.__doc__)
            return 0
        with interruptible():
            return int(module.run(rest))
    except LoopMoEError as error:
        print(f"loopmoe {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if os.environ.get("LOOPMOE_TRACEBACK"):
            raise
        where = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        hint = "set LOOPMOE_TRACEBACK=1 to see where"
        print(f"loopmoe {verb}: unexpected {where} -> {hint}", file=sys.stderr)
        return 1
