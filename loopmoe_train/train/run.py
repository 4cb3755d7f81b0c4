"""One run on this rank: build -> restore -> loop -> close."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config

from loopmoe_train.checkpoint.load import load, load_newest
from loopmoe_train.checkpoint.manifest import newest, retire_after
from loopmoe_train.checkpoint.save import Saver
from loopmoe_train.checkpoint.state import Trained, capture
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Batch, context_slice, rank_slice
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.errors import TrainingStopped
from loopmoe_train.evaluation.perplexity import validate
from loopmoe_train.evaluation.probe import probe
from loopmoe_train.evaluation.sample import sample_text
from loopmoe_train.model.build import build_model, layer_names
from loopmoe_train.moe.balance import finalize_model_grads
from loopmoe_train.moe.dispatch import traffic
from loopmoe_train.optim.build import build_optimizer, schedule
from loopmoe_train.parallel import groups
from loopmoe_train.spec.batch import global_batch, micro_batches
from loopmoe_train.train import faults, heartbeat
from loopmoe_train.train.gradients import describe_non_finite
from loopmoe_train.train.preflight import identity
from loopmoe_train.train.profile import Capture
from loopmoe_train.train.recorder import Recorder
from loopmoe_train.train.step import TrainState, train_step
from loopmoe_train.train.stop import StopRequest
from loopmoe_train.train.text import Text, open_text
from loopmoe_train.train.undo import remember


def train(run: RunConfig) -> None:
    """Train until ``run.steps`` or a stop request; leaves a complete run folder.

    Raises:
        TrainingStopped: a gradient was not finite.
        Refused: the checkpoint or dataset does not fit this run.
    """
    stop = StopRequest()
    select(run.cluster.device)
    groups.join(run)
    try:
        text = open_text(run)
        state = build(run, text.vocab_size, text.train.batch)
        restored = restore(state, text, _print_once)
        _retire_later(state, restored)
        recorder = Recorder(state, text, restored)
        saver = Saver(checkpoints(run), run.checkpoint.keep, 60 * run.launcher.timeout_minutes)
        saver.last_step = state.step
        capture = Capture(run, dist.get_rank(), _say_from(recorder))
        with recorder.ending():
            _loop(state, text, recorder, stop, saver, capture)
            _finish(state, text, recorder, saver)
            capture.finish()
    finally:
        groups.leave()


def _print_once(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def build(run: RunConfig, vocab_size: int, batch: Callable[[int, int], Batch]) -> TrainState:
    """Model, optimizer and schedule of this run, at step 0.

    Args:
        batch: (first sample, count) -> those samples of the global order.
    """
    describe: Callable[[List[Any]], str] = describe_non_finite
    if run.engine == "deepspeed":
        from loopmoe_train.optim.zero import build_zero  # an extra that need not be installed

        model, optimizer = build_zero(run, vocab_size)
        scheduler = schedule(run, optimizer)
        describe = partial(describe_non_finite, gradient_of=optimizer.gradient_of)
    else:
        model = build_model(run, vocab_size)
        optimizer, scheduler = build_optimizer(run, model)
    config = get_model_config(model[0])
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if run.parallel.overlap_grad_reduce:
        waits = [chunk.no_sync for chunk in model]
        config.no_sync_func = waits if len(model) > 1 else waits[0]

    def for_chunks(consumed: int) -> Any:
        each = _micro_batches(run, consumed, batch)
        # Every chunk of a stage reads them at its own pace.
        return each if len(model) == 1 else list(itertools.tee(each, len(model)))

    return TrainState(
        run=run,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        forward_backward=get_forward_backward_func(),
        micro_batches=for_chunks,
        describe_gradients=describe,
    )


def _micro_batches(
    run: RunConfig, consumed: int, batch: Callable[[int, int], Batch]
) -> Iterator[Batch]:
    """This rank's part of the global batch that begins with sample ``consumed``."""
    for index in range(micro_batches(run, global_batch(run, consumed))):
        mine = rank_slice(consumed, index, run.micro_batch_size, *groups.data_place())
        whole = batch(mine.start, len(mine))
        yield context_slice(whole, *groups.context_place()).to(accel.current_device())


def restore(
    state: TrainState,
    text: Text,
    note: Callable[[str], None] = print,
    saved_by: Optional[RunConfig] = None,
) -> Optional[Path]:
    """Continue from a checkpoint if ``checkpoint.resume`` says so and there is one.

    Args:
        saved_by: the run that saved it, if ``state`` was built with another number of iterations.

    Raises:
        Refused: it is damaged, or of other settings.
    """
    run, root = state.run, checkpoints(state.run)
    about, layout = identity(saved_by or run, text.mixture), _layout(run)
    wish, position = run.checkpoint.resume, {}
    if wish == "none" or (wish == "auto" and newest(root) is None):
        return None
    if wish == "auto":
        folder, position = load_newest(root, _trained(state), about, layout, note)
    else:
        folder = Path(wish)
        position = load(folder, _trained(state), about, layout)
    state.step, state.consumed = position["step"], position["consumed"]
    return folder


def _retire_later(state: TrainState, restored: Optional[Path]) -> None:
    """What was saved after the step that this run continues from is no longer its past."""
    if restored is not None and dist.get_rank() == 0:
        for folder in retire_after(checkpoints(state.run), state.step):
            print(f"{folder.stem} is kept as {folder}", flush=True)
    dist.barrier()


def save(state: TrainState, text: Text, saver: Saver) -> None:
    """Begin a checkpoint of the present step (a collective call)."""
    heartbeat.at("save", state.step)
    faults.at("save", state.step, state)
    position = {"step": state.step, "consumed": state.consumed}
    shards, common = capture(_trained(state), position)
    saver.start(state.step, shards, common, identity(state.run, text.mixture), _layout(state.run))


def checkpoints(run: RunConfig) -> Path:
    """Folder of a run's checkpoints."""
    return run_dir(run) / "checkpoints"


def _trained(state: TrainState) -> Trained:
    return Trained(state.model, state.optimizer, state.scheduler, layer_names(state.run))


def _layout(run: RunConfig) -> Dict[str, Any]:
    """What may differ; random states are restored where it does not."""
    return dict(parallel=asdict(run.parallel), devices=run.cluster.devices)


def _say_from(recorder: Recorder) -> Callable[[str], None]:
    """Rank 0 says it on the console, others in their log."""
    return recorder.note if recorder.main else lambda line: print(line, flush=True)


def _loop(
    state: TrainState,
    text: Text,
    recorder: Recorder,
    stop: StopRequest,
    saver: Saver,
    capture: Capture,
) -> None:
    run = state.run
    while state.step < run.steps:
        heartbeat.at("step", state.step)
        faults.at("step", state.step + 1, state)
        started = time.perf_counter()
        undo = remember(state.model)
        try:
            with capture.step(state.step + 1):
                result = train_step(state, bool(stop))
        except TrainingStopped:
            undo()
            _save_last(state, text, recorder, saver)
            raise
        recorder.train(result, time.perf_counter() - started)
        _note_saved(recorder, saver.poll())
        if run.eval_interval and state.step % run.eval_interval == 0 and state.step < run.steps:
            evaluate(state, text, recorder)
        if run.checkpoint.interval and state.step % run.checkpoint.interval == 0:
            save(state, text, saver)
            if not run.checkpoint.background:
                _note_saved(recorder, saver.finish())
        if result.stop:
            recorder.stopped_by(stop.signal_name)
            return


def evaluate(state: TrainState, text: Text, recorder: Recorder) -> None:
    """Validation loss, bits per byte, and the routing probe."""
    heartbeat.at("evaluate", state.step)
    with traffic.uncounted():  # it is told of steps
        result = validate(state.run, state.model, text.valid, text.token_bytes)
        routing, gates = probe(state.run, state.model, text.probe, state.step)
    recorder.validation(result, routing, gates)


def _finish(state: TrainState, text: Text, recorder: Recorder, saver: Saver) -> None:
    """Last checkpoint, validation, sampled text."""
    heartbeat.at("finish", state.step)
    _save_last(state, text, recorder, saver)
    if recorder.stop_signal is not None:
        recorder.note(
            f"stopped by {recorder.stop_signal} after step {state.step}; the same command"
            f"{'' if state.run.checkpoint.resume == 'auto' else ' with checkpoint.resume=auto'} "
            "continues from there"
        )
        return
    evaluate(state, text, recorder)
    heartbeat.at("finish", state.step)
    recorder.sample(sample_text(state.run, state.model, text.tokenizer))


def _save_last(state: TrainState, text: Text, recorder: Recorder, saver: Saver) -> None:
    if saver.last_step != state.step:
        save(state, text, saver)
    _note_saved(recorder, saver.finish())
    dist.barrier()  # rank 0 has committed it


def _note_saved(recorder: Recorder, folder: Optional[Path]) -> None:
    if folder is not None:
        recorder.note(f"saved {folder}")
