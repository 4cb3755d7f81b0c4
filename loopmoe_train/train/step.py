"""One optimizer step, top to bottom.

Shapes: b micro-batch, s sequence length. Everything below runs on every rank; the
collectives are inside ``forward_backward`` (gradients), the gradient norm, and ``_agree``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Batch
from loopmoe_train.errors import TrainingStopped
from loopmoe_train.model.iterations import drawn_iterations, running
from loopmoe_train.parallel.reduce import sum_over_tokens
from loopmoe_train.spec.batch import global_batch, micro_batches


@dataclass
class TrainState:
    """What a step works on.

    Attributes:
        model: chunks of this rank, wrapped by core's DistributedDataParallel, or by ZeRO.
        forward_backward: core's schedule for this layout.
        micro_batches: first sample of a global batch -> this rank's micro-batches of it, as core's
            schedule takes them: an iterator, or one for every chunk.
        describe_gradients: names the parameters with non-finite gradients on all ranks.
        step: optimizer steps done.
        consumed: samples consumed by all ranks.
    """

    run: RunConfig
    model: List[Any]
    optimizer: Any  # core's ChainedOptimizer, or one with its methods (optim/zero.py)
    scheduler: OptimizerParamScheduler
    forward_backward: Callable[..., List[Dict[str, Tensor]]]
    micro_batches: Callable[[int], Any]
    describe_gradients: Callable[[List[Any]], str]
    step: int = 0
    consumed: int = 0


@dataclass
class StepResult:
    """What a step tells: mean loss per token, norm before clipping, rate used, tokens that
    counted, samples of the global batch, iterations of the loop, stop wanted."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    samples: int
    iterations: int
    stop: bool


def train_step(state: TrainState, stop_wanted: bool) -> StepResult:
    """Forward, backward, check, clip, update.

    Args:
        stop_wanted: this rank was asked to stop; the ranks agree on it here, so that all
            leave the loop after the same step.

    Raises:
        TrainingStopped: a gradient is not finite. The weights have not moved.
    """
    run = state.run
    samples = global_batch(run, state.consumed)
    # 1. clear gradients
    for chunk in state.model:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()

    # 2. forward and backward over this rank's micro-batches, with this step's iterations of the
    #    loop; gradients are reduced over ranks, divided by the tokens of the global batch, and
    #    the router biases move
    iterations = drawn_iterations(run.model.loop, run.seed, state.step)
    with running(state.model, iterations, run.model.loop.backprop_iterations):
        outputs = state.forward_backward(
            forward_step_func=forward_step,
            data_iterator=state.micro_batches(state.consumed),
            model=state.model,
            num_microbatches=micro_batches(run, samples),
            seq_length=run.sequence_length,
            micro_batch_size=run.micro_batch_size,
            forward_only=False,
        )

    # 3. a gradient that is not finite must never reach the weights
    state.optimizer.prepare_grads()
    grad_norm = float(state.optimizer.get_grad_norm())
    if not math.isfinite(grad_norm):
        raise TrainingStopped(
            f"step {state.step + 1}: the gradient is not finite "
            f"({state.describe_gradients(state.model)}; samples {state.consumed} to "
            f"{state.consumed + samples - 1}); the weights were not touched",
            f"lower optim.lr and start again: it continues from step {state.step}, which is saved",
        )

    # 4. clip and update
    if run.optim.clip_grad > 0:
        _clip(state.optimizer, run.optim.clip_grad, grad_norm)
    lr = state.optimizer.param_groups[0]["lr"]
    state.optimizer.step_with_ready_grads()
    state.scheduler.step(increment=1)
    state.step += 1
    state.consumed += samples

    # 5. one small reduction for the report
    loss, tokens, stop = _agree(outputs, stop_wanted)
    return StepResult(loss, grad_norm, lr, tokens, samples, iterations, stop)


def forward_step(batches: Iterator[Batch], model: Any) -> Tuple[Tensor, Callable[..., Any]]:
    """Core's forward hook: per-token losses [b, s] of the next micro-batch, and its reduction."""
    batch = next(batches)
    losses = model(
        batch.tokens,
        batch.position_ids,
        batch.attention_mask,
        labels=batch.labels,
        loss_mask=batch.loss_mask,  # for the losses of multi-token prediction; ours is below
    )
    return losses, partial(sum_of_losses, batch.loss_mask)


def sum_of_losses(loss_mask: Tensor, losses: Tensor) -> Tuple[Tensor, Tensor, Dict[str, Tensor]]:
    """Masked sum [], number of tokens that count [] and both for the report."""
    total = torch.sum(losses.float() * loss_mask)
    tokens = loss_mask.sum().to(torch.int64)
    return total, tokens, {"sum": total.detach(), "tokens": tokens}


def _clip(optimizer: Any, max_norm: float, total_norm: float) -> None:
    """Scale all gradients by max_norm / total_norm if that is below 1; experts and the rest
    live in separate optimizers but share one norm."""
    for part in optimizer.chained_optimizers:
        parameters = part.get_parameters()
        if parameters:
            # Where the optimizer holds the fp32 weights, core keeps gradients beside `.grad`.
            beside = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, max_norm, total_norm, beside)


def _agree(outputs: List[Dict[str, Tensor]], stop_wanted: bool) -> Tuple[float, int, bool]:
    """Mean loss per token over all ranks, tokens, and whether any rank wants to stop."""
    loss = sum(float(output["sum"]) for output in outputs)  # of the last stage, else none
    counted = sum(int(output["tokens"]) for output in outputs)
    mine = torch.tensor([loss, counted, stop_wanted], dtype=torch.float64)
    total, tokens, wishes = sum_over_tokens(mine)
    return total / max(tokens, 1.0), int(tokens), wishes > 0
