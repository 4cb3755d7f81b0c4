"""What a run leaves behind: metrics, console, summary. Files are written by rank 0 alone."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterator, List, Optional

import torch
import torch.distributed as dist

from loopmoe_train.config import run_file
from loopmoe_train.device.accelerator import accel
from loopmoe_train.errors import LoopMoEError
from loopmoe_train.evaluation.perplexity import Validations, gzip_bits_per_byte
from loopmoe_train.evaluation.probe import training_mtp_losses, training_routing
from loopmoe_train.files import write_text
from loopmoe_train.moe.dispatch import levels, traffic
from loopmoe_train.observe.jsonl import last_steps
from loopmoe_train.observe.metrics import CROSS_NODE_KEY, set_key
from loopmoe_train.observe.progress import Progress
from loopmoe_train.observe.routing import RoutingProbe, write_probe
from loopmoe_train.observe.sinks import JsonlSink, MultiSink, Sink, WandbSink
from loopmoe_train.observe.tensorboard import TensorBoardSink
from loopmoe_train.parallel.reduce import max_over_ranks, sum_over_ranks
from loopmoe_train.redact import redact
from loopmoe_train.spec.arithmetic import parameters, train_flops_per_token
from loopmoe_train.spec.batch import micro_batches, total_samples
from loopmoe_train.train.peak import peak_flops
from loopmoe_train.train.step import StepResult, TrainState
from loopmoe_train.train.text import Text

# A run that was started by hand with torchrun has no command start time to count from.
START_VARIABLE = "LOOPMOE_STARTED"


class Recorder:
    """Counts, prints and stores; never decides.

    Args:
        restored: folder of the checkpoint that the run continues from.
    """

    def __init__(self, state: TrainState, text: Text, restored: Optional[Path]) -> None:
        run = state.run
        self.state = state
        self.text = text
        self.folder = run_file.run_dir(run)
        self.main = dist.get_rank() == 0
        self.stop_signal: Optional[str] = None
        self.speeds: List[float] = []
        self.started = time.perf_counter()
        self.first_step_s: Optional[float] = None
        self.peak_memory: Optional[float] = None
        self.micro_batches = 0  # since the last line of metrics
        self.flops_per_token = train_flops_per_token(
            run.model, text.vocab_size, run.sequence_length
        )
        self.peak = peak_flops(run)
        self.bytes_per_token = text.bytes_per_token
        self.summary: Dict[str, Any] = {
            "status": "running",
            "parameters": parameters(run.model, text.vocab_size)["total"],
            "active_parameters": parameters(run.model, text.vocab_size)["active"],
        }
        previous = self._previous_elapsed() if restored else 0.0
        self.elapsed_before = previous
        self.progress = Progress(run.steps)
        self.sinks: Sink = MultiSink([])
        self.routing: Optional[JsonlSink] = None
        if self.main:
            self._open(restored)

    def _open(self, restored: Optional[Path]) -> None:
        run, keep = self.state.run, self.state.step if restored else -1
        metrics = self.folder / "metrics.jsonl"
        sent = last_steps(metrics) if restored else None
        sinks: List[Sink] = [JsonlSink(metrics, keep_until_step=keep)]
        if run.observe.tensorboard:
            sinks.append(TensorBoardSink(self.folder / "tensorboard", keep + 1))
        if run.observe.wandb != "off":
            from dataclasses import asdict

            sinks.append(WandbSink(run.observe.wandb, run.observe.wandb_project, run.name,
                                   self.folder, asdict(run), sent))  # fmt: skip
        self.sinks = MultiSink(sinks)
        self.routing = JsonlSink(self.folder / "routing.jsonl", keep_until_step=keep)
        self.summary["gzip9_bits_per_byte"] = gzip_bits_per_byte(
            run, self.text.valid, self.text.tokenizer
        )
        self.summary["dataset"] = self.text.mixture.identity
        self.progress.start()
        total = self.summary["parameters"] / 1e6
        active = self.summary["active_parameters"] / 1e6
        self.note(
            f"{run.model.name}: {total:.2f}M parameters, {active:.2f}M used per token, "
            f"{self.flops_per_token / 1e6:.1f} MFLOPs per training token"
        )
        for line in self.text.mixture.describe(total_samples(run), run.sequence_length):
            self.note(line)
        if restored:
            self.note(f"continues from {restored} (step {self.state.step})")

    def _previous_elapsed(self) -> float:
        """Training time of the run before this start, from its last metrics line."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
            times = [json.loads(line) for line in lines if line.endswith("}")]
            return max((t.get("elapsed_s", 0.0) for t in times
                        if t.get("step", 0) <= self.state.step), default=0.0)  # fmt: skip
        except (OSError, ValueError):
            return 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far, evaluations included, over all starts of the run."""
        return self.elapsed_before + time.perf_counter() - self.started

    def train(self, result: StepResult, step_s: float) -> None:
        """Record one step. Every rank calls it: the routing statistics are summed."""
        run, step = self.state.run, self.state.step
        if self.first_step_s is None and START_VARIABLE in os.environ:
            self.first_step_s = time.time() - float(os.environ[START_VARIABLE])
        tokens = result.samples * run.sequence_length
        crossed = traffic.take()
        self.speeds.append(tokens / step_s)
        self.micro_batches += micro_batches(run, result.samples)
        if step % run.observe.log_interval and step != run.steps:
            return
        routing = training_routing(self.state.model)
        heads = training_mtp_losses(self.micro_batches) if run.model.mtp_layers else []
        self.micro_batches = 0
        exchanged = {}
        if levels.current().spanning:
            ranks = dist.get_world_size()
            total = sum_over_ranks(torch.tensor([float(crossed)]))[0]
            exchanged = {CROSS_NODE_KEY: total / ranks / 2**20}
        if not self.main:
            return
        record = dict(
            step=step,
            tokens=self.state.consumed * run.sequence_length,
            loss=result.loss,
            bits_per_byte=result.loss / math.log(2) / self.bytes_per_token,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens_per_s=tokens / step_s,
            step_s=step_s,
            elapsed_s=self.elapsed_s,
            mfu=self._flops(result.iterations) * tokens / step_s / self.peak,
        )
        if run.model.loop.min_iterations is not None:
            record["iterations"] = result.iterations
        ahead = {f"mtp_loss/{head}": loss for head, loss in enumerate(heads, start=1)}
        self.sinks.write({**record, **ahead, **exchanged, **routing})
        self.progress.train(record)

    def _flops(self, iterations: int) -> float:
        """FLOPs per training token of a step with so many iterations of the loop."""
        run = self.state.run
        if iterations == run.model.loop.iterations:
            return self.flops_per_token
        return train_flops_per_token(
            run.model, self.text.vocab_size, run.sequence_length, iterations
        )

    def validation(
        self, result: Validations, routing: RoutingProbe, gates: Dict[str, float]
    ) -> None:
        """Record one validation and its probe."""
        self.summary["val_loss"] = result.whole.loss
        self.summary["val_bits_per_byte"] = result.whole.bits_per_byte
        if not self.main:
            return
        record = dict(
            step=self.state.step,
            elapsed_s=self.elapsed_s,
            val_loss=result.whole.loss,
            val_bits_per_byte=result.whole.bits_per_byte,
        )
        for name, one in result.sets.items():
            record[set_key(name, "loss")] = one.loss
            record[set_key(name, "bits_per_byte")] = one.bits_per_byte
        self.sinks.write({**record, **gates})
        if self.routing is not None:
            write_probe(self.routing, routing)
        self.progress.validation(record)

    def sample(self, text: str) -> None:
        """Store sampled text."""
        if self.main:
            (self.folder / "sample.txt").write_text(text + "\n", encoding="utf-8")

    def note(self, text: str) -> None:
        """One line on the console."""
        if self.main:
            self.progress.note(text)

    def stopped_by(self, signal_name: Optional[str]) -> None:
        """Remember why the loop left early (another rank may have got the signal)."""
        self.stop_signal = signal_name or "a signal on another rank"

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Close the sinks and write the summary however the run ends."""
        status = "failed"
        try:
            yield
            # Of the fullest rank; after a failure the others may be gone, and rank 0's is told.
            self.peak_memory = max_over_ranks(torch.tensor([accel.peak_memory_bytes()]))[0]
            status = "stopped" if self.stop_signal else "done"
        except LoopMoEError as error:
            status = str(error)
            raise
        finally:
            self._close(status)

    def _close(self, status: str) -> None:
        self.progress.close()
        if not self.main:
            return
        self.sinks.close(status)
        if self.routing is not None:
            self.routing.close(status)
        self.summary |= dict(
            status=redact(status),
            step=self.state.step,
            tokens=self.state.consumed * self.state.run.sequence_length,
            tokens_per_s=median(self.speeds) if self.speeds else None,
            wall_s=self.elapsed_s,
            first_step_s=self.first_step_s,
            peak_memory_gib=(self.peak_memory or accel.peak_memory_bytes()) / 2**30,
            peak_tflops_per_device=self.peak / self.state.run.cluster.devices / 1e12,
        )
        write_text(self.folder / "summary.json", json.dumps(self.summary, indent=1))
