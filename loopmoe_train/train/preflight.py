"""What can be known to be wrong before a process is started."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.config.launcher_rules import spans_nodes
from loopmoe_train.config.run_file import run_dir, save
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.mixture import Mixture, ensure_mixture
from loopmoe_train.device import environment, rank_table
from loopmoe_train.device.problem import Problem
from loopmoe_train.errors import Refused
from loopmoe_train.parallel.addresses import interface_problems
from loopmoe_train.train.claim import claim

if TYPE_CHECKING:
    from loopmoe_train.checkpoint.manifest import Manifest


def prepare(
    overrides: Sequence[str],
    say: Callable[[str], None],
    devices_here: Optional[int] = None,
    again: bool = False,
) -> Tuple[RunConfig, Optional[Mixture]]:
    """From a command line to a run that can start: composed, checked, data there, run.yaml written.

    With ``launcher.dry_run`` it is composed and checked; machine, data, run folder are left alone.
    So it is by the command that starts ranks on other machines: there rank 0 prepares.

    Args:
        say: receives plain lines about the progress.
        devices_here: processes on this machine, told by a rank; None: this is the command.
        again: a job that goes on after a fault has checkpoints, perhaps its last one.

    Raises:
        Refused: anything that is known to be wrong beforehand.
    """
    from loopmoe_train.config.compose import compose

    run = compose(overrides)
    anchor(run)
    if devices_here is None:
        starts = 0 if run.launcher.dry_run else _started_here(run)
    else:
        starts = devices_here
    doubts = check_environment(run, here=starts > 0)
    if devices_here is not None:  # this process is a rank, and nothing has prepared its environment
        set_environment(run)
    check_machine(run, starts)
    for doubt in doubts:  # to stderr: what a dry run prints is to be piped
        print(f"warning: {doubt}", file=sys.stderr, flush=True)
    if run.launcher.dry_run or (devices_here is None and not starts_here(run)):
        return run, None  # decides, and leaves nothing behind
    claim(run)
    if not again:
        check_run_folder(run)
    build_operators(run, say)
    text = ensure_mixture(run, say)
    check_text(run, text)
    check_same_run(run, text)
    save(run, run_dir(run) / "run.yaml")
    return run, text


def starts_here(run: RunConfig) -> bool:
    """Whether all ranks of the run are started on the machine of the command."""
    here = run.launcher.kind in ("local", "torchrun", "mpirun")
    return here and not spans_nodes(run.launcher)


def _started_here(run: RunConfig) -> int:
    """Ranks that the command starts on its own machine, as far as it knows."""
    if starts_here(run):
        return run.cluster.devices
    return run.cluster.devices // run.launcher.nodes if run.launcher.kind == "torchrun" else 0


def anchor(run: RunConfig) -> None:
    """Make the places of datasets absolute, so that run.yaml means the same from every folder."""
    data = run.data
    data.path = os.path.abspath(data.path)
    data.validation = [os.path.abspath(path) for path in data.validation]
    for member in data.mixture:
        member.path = os.path.abspath(member.path)
    if run.tokenizer.path is not None:
        run.tokenizer.path = os.path.abspath(run.tokenizer.path)


def check_environment(run: RunConfig, here: bool) -> List[Problem]:
    """Refuse environment variables under which the ranks cannot work; returns doubtful ones.

    Args:
        here: ranks run on this machine, so what the variables name must be here too.

    Raises:
        Refused: what cannot work.
    """
    ranks = {**os.environ, **environment.for_ranks(run, os.environ)}
    found = environment.problems(ranks, run.cluster.device, run)
    if here:
        found += rank_table.named_in(os.environ, run.cluster)
        # Several nodes may be commands on one machine, to try it out: there lo is right.
        found += interface_problems(os.environ, several=False)
    wrong = [str(problem) for problem in found if problem.status == "FAIL"]
    if wrong:
        more = f" (and {len(wrong) - 4} more)" if len(wrong) > 4 else ""
        raise Refused("; ".join(wrong[:4]) + more)
    return found


def set_environment(run: RunConfig) -> None:
    """Give this process the variables that a launcher would have given it.

    What its libraries have read already stays as it was: torch its number of threads.
    """
    os.environ.update(environment.for_ranks(run, os.environ))


def check_machine(run: RunConfig, devices_here: int) -> None:
    """Refuse a device or package that this machine does not have.

    Args:
        devices_here: devices needed on this machine.

    Raises:
        Refused: torch, tensorboard or the device's driver is missing, there are too few devices,
            or another loopmoe_train is here.
    """
    if not devices_here:
        return
    _check_package()
    if importlib.util.find_spec("torch") is None:
        raise Refused("torch is not installed", "run `make setup`, or pip install loopmoe-train")
    if run.observe.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise Refused(
            "observe.tensorboard=true but the package tensorboard is not installed",
            "pip install 'loopmoe-train[tensorboard]', or set it to false",
        )
    if run.engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise Refused(
            "engine=deepspeed but the package deepspeed is not installed",
            "pip install 'loopmoe-train[deepspeed]', or use engine=megatron",
        )
    if run.cluster.device == "cpu":
        return
    from loopmoe_train.device.accelerator import select

    backend = select(run.cluster.device)
    found = backend.device_count() if backend.is_available() else 0
    if found < devices_here:
        raise Refused(
            f"{devices_here} {run.cluster.device} devices are needed here (cluster.devices="
            f"{run.cluster.devices}) but this machine has {found}",
            "lower cluster.devices, or use cluster=cpu",
        )


def _check_package() -> None:
    """Refuse a folder that holds another loopmoe_train: ranks (`python -m`) would import that."""
    other, ours = Path("loopmoe_train"), Path(__file__).parents[1]
    if other.is_dir() and not other.samefile(ours):
        raise Refused(
            f"this folder holds another loopmoe_train ({other.absolute()}) than the one of this "
            f"command ({ours}), and ranks would import that",
            "start it from another folder, or install that one: pip install -e .",
        )


def build_operators(run: RunConfig, say: Callable[[str], None]) -> None:
    """Compile what the run needs compiled on this machine, before its ranks are started.

    Raises:
        Refused: that is not possible here.
    """
    if run.optim.offload_update == "deepspeed":
        from loopmoe_train.optim.deepspeed_adam import operator  # imports torch

        operator(say)


def check_run_folder(run: RunConfig) -> None:
    """Refuse a run folder or a checkpoint that there is no continuing from.

    Raises:
        Refused: no whole checkpoint, one of another folder, or there is nothing left to do.
    """
    folder = run_dir(run)
    wish = run.checkpoint.resume
    if wish not in ("auto", "none") and not (Path(wish) / "manifest.json").is_file():
        raise Refused(
            f"checkpoint.resume={wish}: not a whole checkpoint (it has no manifest.json)",
            "name a folder such as runs/<name>/checkpoints/step-<n>, or use auto or none",
        )
    for name in ("logs", "checkpoints"):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise Refused(f"{folder / name} is no folder", "move it away, or choose another name=")
    manifest = newest_manifest(run)
    if manifest is None:
        return
    own = Path(wish).resolve().parent == (folder / "checkpoints").resolve()
    if wish != "auto" and not own:
        raise Refused(
            f"checkpoint.resume={wish} but {folder} holds checkpoints: a new run would mix with "
            "them",
            "choose another name=, or delete the folder",
        )
    if wish not in ("auto", "none"):
        from loopmoe_train.checkpoint.manifest import read_manifest  # imports torch

        manifest = read_manifest(Path(wish))
    if manifest.step >= run.steps:
        raise Refused(
            f"{folder} is already trained for {manifest.step} steps",
            f"ask for more with steps={2 * manifest.step}, choose another name=, or delete the "
            "folder",
        )


def check_same_run(run: RunConfig, text: Mixture) -> None:
    """Refuse to continue from a checkpoint of other settings.

    Raises:
        Refused: the first differences.
    """
    from loopmoe_train.checkpoint.manifest import differences, read_manifest

    wish = run.checkpoint.resume
    manifest = newest_manifest(run) if wish in ("auto", "none") else read_manifest(Path(wish))
    changed = differences(manifest.about, identity(run, text)) if manifest else []
    if changed:
        raise Refused(
            f"{run_dir(run)} would continue a run with other settings: {'; '.join(changed[:4])}",
            "set it back, or choose another name=",
        )


def identity(run: RunConfig, text: Mixture) -> Dict[str, Any]:
    """What must be the same for a run to be continued.

    All that decides which samples come and what a step makes of them, but for the optimizer's
    numbers and the layout, which a continuation may change. Places and words are no part of it:
    the same text in another folder is the same.
    """
    model = asdict(run.model)
    del model["name"], model["moe"]["dispatcher"], model["moe"]["overlap_shared_experts"]
    model["vocab_size"] = run.model.vocab_size or text.tokenizer_of.vocab_size
    return dict(
        model=model,
        precision=run.precision,
        seed=run.seed,
        sequence_length=run.sequence_length,
        global_batch_size=run.global_batch_size,
        batch_ramp=[run.batch_ramp_from, run.batch_ramp_samples],
        eod_mask_loss=run.data.eod_mask_loss,
        reset_attention_mask=run.data.reset_attention_mask,
        optimizer=run.optim.kind,  # Adam's states are of no use to Muon
        dataset=text.identity,
        tokenizer=text.tokenizer_of.tokenizer_fingerprint,
    )


def newest_manifest(run: RunConfig) -> Optional[Manifest]:
    """That of the newest checkpoint whose manifest is whole (ranks verify the rest), or None.

    Raises:
        Refused: there are checkpoints, none with a whole manifest.
    """
    from loopmoe_train.checkpoint.manifest import committed, read_manifest  # imports torch

    root, problems = run_dir(run) / "checkpoints", []
    for folder in committed(root):
        try:
            return read_manifest(folder)
        except Refused as error:
            problems.append(error.what)
    if problems:
        raise Refused(
            f"{root}: no whole checkpoint: {'; '.join(problems)}",
            "restore one, or choose another name=",
        )
    return None


def check_text(run: RunConfig, text: Mixture) -> None:
    """Refuse prepared datasets that this run cannot be trained or measured on.

    Raises:
        Refused: too little text for one sample, or more token ids than the model has.
    """
    trained = [member.info for member in text.members]
    splits = [("training", info, info.train.tokens) for info in trained]
    splits += [("validation", i, i.valid.tokens) for i in (*trained, *text.extra.values())]
    for name, info, tokens in splits:
        if tokens < run.sequence_length + 1:
            raise Refused(
                f"sequence_length={run.sequence_length} but the {name} split of {info.path} has "
                f"{tokens} tokens",
                "lower sequence_length, or give data.source more text",
            )
    vocab_size = text.tokenizer_of.vocab_size
    if run.model.vocab_size is not None and run.model.vocab_size < vocab_size:
        raise Refused(
            f"model.vocab_size={run.model.vocab_size} is below the tokenizer's {vocab_size}",
            "raise it, or leave it null",
        )
    tensor, size = run.parallel.tensor_parallel_size, run.model.vocab_size or vocab_size
    if size % tensor:
        raise Refused(
            f"the tokenizer of {text.tokenizer_of.path} has {size} pieces, no multiple of "
            f"parallel.tensor_parallel_size={tensor}",
            f"set model.vocab_size={-(-size // tensor) * tensor}, or another tensor_parallel_size",
        )
