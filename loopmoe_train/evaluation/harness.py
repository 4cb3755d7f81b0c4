"""lm-evaluation-harness on a trained model: its tasks, our forward pass.

All ranks ask the harness for the same requests in the same order and share the windows among
them, so experts that are spread over ranks are always called together. Needs the extra ``eval``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from megatron.core import parallel_state
from torch import Tensor

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Batch, context_slice
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.evaluation.forward import next_token, outputs
from loopmoe_train.evaluation.wish import TaskRequest, task_manager
from loopmoe_train.parallel.groups import context_place, data_place
from loopmoe_train.parallel.reduce import sum_over_tokens

BOOTSTRAPS = 1000  # of the standard errors that have no formula
NEW_TOKENS = 256  # where a task does not say how many


def score_tasks(
    run: RunConfig, model: List[Any], tokenizer: Tokenizer, asked: TaskRequest
) -> Dict[str, Dict[str, float]]:
    """Metrics of each task by the harness's names (``acc,none``), on rank 0; {} elsewhere. A
    collective call."""
    found = simple_evaluate(
        Scorer(run, model, tokenizer),
        tasks=asked.tasks,
        num_fewshot=asked.shots,
        limit=asked.limit,
        task_manager=task_manager(asked),
        bootstrap_iters=BOOTSTRAPS,
        log_samples=False,
        random_seed=run.seed,
        numpy_random_seed=run.seed,
        torch_random_seed=run.seed,
        fewshot_random_seed=run.seed,
    )
    if found is None:
        return {}
    return {
        task: {name: float(value) for name, value in figures.items() if _is_number(value)}
        for task, figures in found["results"].items()
    }


@dataclass
class Window:
    """Tokens of which the last ``counted`` are to be predicted, for request ``request``."""

    request: int
    tokens: List[int]
    counted: int


class Scorer(LM):
    """The harness's view of a model.

    A context begins with an end-of-document token, as documents do in training. Context and
    continuation are tokenised apart: the tokenizer's pieces may cross words, so a joint encoding
    could have none that ends where the context does.
    """

    def __init__(self, run: RunConfig, model: List[Any], tokenizer: Tokenizer) -> None:
        super().__init__()
        self.run, self.model, self.tokenizer = run, model, tokenizer

    # -- what the harness asks for ---------------------------------------------------------
    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> List[Tuple[float, bool]]:
        """Of each (context, continuation): log probability in nats, and whether it is greedy."""
        encode, start = self.tokenizer.encode, [self.tokenizer.eod_id]
        pairs = [(start + encode(context), encode(more)) for context, more in _arguments(requests)]
        return self._score(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> List[float]:
        """Log probability of each whole text."""
        start = [self.tokenizer.eod_id]
        pairs = [(start, self.tokenizer.encode(text)) for (text,) in _arguments(requests)]
        return [score for score, _ in self._score(pairs)]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> List[str]:
        """Greedy continuation of each context up to the first stop text (without it)."""
        return [self._generate(context, wish) for context, wish in _arguments(requests)]

    # -- how ---------------------------------------------------------------------------------
    def _score(self, pairs: Sequence[Tuple[List[int], List[int]]]) -> List[Tuple[float, bool]]:
        length, rows = self.run.sequence_length, self.run.micro_batch_size
        windows = [
            window
            for request, (context, more) in enumerate(pairs)
            for window in _windows(request, context, more, length)
        ]
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i].tokens))
        batches = [order[i : i + rows] for i in range(0, len(order), rows)]
        rank, ranks = data_place()
        # Tensor and context parallelism cut a sequence in equal parts.
        whole_rows = parallel_state.get_tensor_model_parallel_world_size()
        _, context = context_place()
        whole_rows *= 2 * context if context > 1 else 1
        scores = torch.zeros(len(windows), 2, dtype=torch.float64)
        for first in range(0, len(batches), ranks):
            longest = len(windows[batches[first][0]].tokens) - 1
            longest = -(-longest // whole_rows) * whole_rows
            mine = batches[first + rank] if first + rank < len(batches) else []
            # A rank without a batch computes an empty one: others may need its experts.
            scores[mine] = self._predict([windows[i] for i in mine], longest)
        whole = torch.tensor(sum_over_tokens(scores.flatten()), dtype=torch.float64).view(-1, 2)
        totals, misses = [0.0] * len(pairs), [0.0] * len(pairs)
        for window, (score, missed) in zip(windows, whole.tolist()):
            totals[window.request] += score
            misses[window.request] += missed
        return [(total, missed == 0) for total, missed in zip(totals, misses)]

    def _predict(self, windows: Sequence[Window], longest: int) -> Tensor:
        """Log probability and number of tokens that are not the most probable: [windows, 2]."""
        tokens = torch.zeros(self.run.micro_batch_size, longest + 1, dtype=torch.int64)
        counted = torch.zeros(self.run.micro_batch_size, longest, dtype=torch.bool)
        for row, window in enumerate(windows):
            end = len(window.tokens)
            tokens[row, :end] = torch.tensor(window.tokens)
            counted[row, end - 1 - window.counted : end - 1] = True
        positions = torch.arange(longest).expand(len(tokens), -1)
        batch = Batch(
            tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), counted, positions, None
        )
        both = torch.zeros(len(tokens), 2, dtype=torch.float64)
        for logits in outputs(self.model, [batch], losses=False):
            mine = context_slice(batch, *context_place())
            labels, counts = mine.labels.to(logits.device), mine.loss_mask
            found = logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
            missed = (logits.argmax(-1) != labels).cpu() & counts
            both[:, 0] = (found.cpu().double() * counts).sum(1)
            both[:, 1] = missed.sum(1).double()
        return both[: len(windows)]

    def _generate(self, context: str, wish: Dict[str, Any]) -> str:
        if wish.get("do_sample") and wish.get("temperature", 1.0) > 0:
            raise ValueError("sampled generation is not offered: the task must be greedy")
        stops = wish.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        ids = [self.tokenizer.eod_id] + self.tokenizer.encode(context)
        begin, length, text = len(ids), self.run.sequence_length, ""
        for _ in range(int(wish.get("max_gen_toks") or NEW_TOKENS)):
            window = ids[-length:]
            best = next_token(self.model, window, length, lambda logits: int(logits.argmax()))
            if best == self.tokenizer.eod_id:
                break
            ids.append(best)
            text = self.tokenizer.decode(ids[begin:])
            if any(stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0]
        return text


def _windows(request: int, context: List[int], more: List[int], length: int) -> List[Window]:
    """Cut ``more`` into pieces that fit, each behind as much of what precedes it as fits too."""
    windows = []
    for start in range(0, len(more), length):
        piece = more[start : start + length]
        before = (context + more[:start])[-(length + 1 - len(piece)) :]
        windows.append(Window(request, before + piece, len(piece)))
    return windows


def _arguments(requests: Sequence[Any]) -> List[Tuple[Any, ...]]:
    return [request.args for request in requests]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
