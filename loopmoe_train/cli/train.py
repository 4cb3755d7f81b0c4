"""Prepare the data if needed, train, evaluate, write the report.

usage: loopmoe train [GROUP=PRESET ...] [setting=value ...]

  loopmoe train                                   the quickstart: loopmoe_tiny, 2 processes
  loopmoe train model=vanilla_tiny name=twin      its non-looped twin
  loopmoe train experiment=smoke                  a minute, to see that everything works
  loopmoe train data.source=$HOME/texts data.path=datasets/texts name=texts
  loopmoe train parallel=auto                     the simulator chooses the layout, see
                                                  `loopmoe plan`
  loopmoe train launcher=torchrun                 or launcher=mpirun; launcher.dry_run=true
                                                  prints the command
  loopmoe train launcher=torchrun launcher.nodes=2 launcher.endpoint=HOST:PORT cluster.devices=16
                                                  typed on both nodes
  loopmoe train launcher=mpirun launcher.hosts=[a,b] cluster.devices=16
  loopmoe train launcher=slurm launcher.nodes=2   or launcher=volcano: a job for a scheduler
  loopmoe train -m model=loopmoe_tiny,vanilla_tiny optim.lr=2e-3,4e-3 name=rates
                                                  a Hydra sweep: four runs in runs/rates, one
                                                  after another, and a comparison
  loopmoe train profile.steps=10-12               traces, operators and shares of idling and
                                                  collectives in the run folder's profile/
  loopmoe train 'data.mixture=[{path:datasets/web,weight:3},{path:datasets/code,weight:1}]'

Groups: model parallel cluster data tokenizer optim memory checkpoint observe launcher
experiment. The composed run is written to runs/<name>/run.yaml; the same command continues
a run that was stopped. Ctrl-C finishes the step and saves; a second one kills. A rank that is
killed, stopped or hangs is named; the job is restarted from its last checkpoint (up to
launcher.max_restarts times without getting further).
"""

from __future__ import annotations

import os
import signal
import time
from typing import List

from loopmoe_train.errors import Interrupted, Refused


def run(argv: List[str]) -> int:
    """Compose, check, prepare, launch, report; returns the exit code."""
    os.environ["LOOPMOE_STARTED"] = str(time.time())
    from loopmoe_train.cli.auto import AUTO, compare, resolve
    from loopmoe_train.config.run_file import run_dir
    from loopmoe_train.launcher import batch
    from loopmoe_train.launcher.supervise import launch, shown
    from loopmoe_train.train.preflight import prepare

    words = [word for word in argv if word not in ("-m", "--multirun")]
    if len(words) < len(argv):
        if AUTO in words:
            raise Refused(f"{AUTO} is for one run, not for a sweep", "see `loopmoe plan` first")
        return _sweep(words)
    argv, choice = resolve(argv)
    config, _ = prepare(argv, print)
    if config.launcher.dry_run:
        print(shown(config, argv))
        return 0
    if config.launcher.kind in batch.KINDS:
        print(batch.submit(config, argv))
        return 0
    if not launch(config, overrides=argv):
        return 0  # the command on rank 0's node draws the report

    from loopmoe_train.cli.report import show

    try:
        show([run_dir(config)])
        if choice is not None:
            compare(choice, run_dir(config))
    except KeyboardInterrupt:
        done = f"it is trained and saved: draw the report with `loopmoe report {run_dir(config)}`"
        raise Interrupted(signal.SIGINT, done) from None
    return 0


def _sweep(words: List[str]) -> int:
    """Train every combination of a Hydra sweep that is not done, then compare them."""
    from loopmoe_train.cli.report import show
    from loopmoe_train.cli.several import say_what_is_left, train_several
    from loopmoe_train.config.compose import expand
    from loopmoe_train.train.claim import claim_folder
    from loopmoe_train.train.planned import plan_sweep

    planned = plan_sweep(expand(words))
    place = planned[0].folder.parent
    claim_folder(place)
    done = sum(one.is_done() for one in planned)
    print(f"{place}: {len(planned)} runs, {done} done", flush=True)
    codes = train_several(planned, side_by_side=1)
    trained = [one.folder for one in planned if one.is_done()]
    if trained:
        show(trained, place)
    say_what_is_left(planned, codes, stopped=False)
    return 0
