"""Documents to token ids in parallel processes, results in the order of the documents."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Deque, Iterable, Iterator, List, NamedTuple, Optional

import numpy as np

from loopmoe_train.data.indexed import token_dtype
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.errors import RunFailed

_TASK_BYTES = 256 * 1024  # enough text that sending it costs nothing beside the work
_TASKS_AHEAD = 4  # per worker: bounds the memory, keeps everyone busy


class Work(NamedTuple):
    """A document to tokenise; ``held_out`` ones are also compressed, for the yardstick."""

    text: str
    size: int  # utf-8 bytes
    held_out: bool


class Tokens(NamedTuple):
    """The outcome for one :class:`Work`."""

    ids: np.ndarray  # [n] in the dataset's dtype, ends with the end-of-document token
    size: int  # utf-8 bytes
    held_out: bool
    gzip_size: int  # bytes of `gzip -9`; 0 unless held out


_tokenizer: Optional[Tokenizer] = None  # of a worker process


def tokenise(works: Iterable[Work], model: Path, workers: int) -> Iterator[Tokens]:
    """Tokenise with ``workers`` processes (1: in this one).

    Raises:
        RunFailed: a worker process died.
    """
    if workers <= 1:
        _open_tokenizer(model)
        for work in works:
            yield from _tokenise_task([work])
        return
    # spawn: a fork of a process that runs threads (torch, rich) can deadlock
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (model,)
    )
    try:
        pending: Deque[Future[List[Tokens]]] = deque()
        for task in _tasks(works):
            pending.append(_submit(pool, task))
            if len(pending) >= _TASKS_AHEAD * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise RunFailed(
            "a process that tokenises was killed (out of memory?)", "try data.workers=1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: List[Work]) -> Future[List[Tokens]]:
    """Submitting starts workers. They inherit a mask without SIGINT, from their first line on:
    Ctrl-C reaches the whole terminal, and only the parent speaks about it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(_tokenise_task, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tasks(works: Iterable[Work]) -> Iterator[List[Work]]:
    task: List[Work] = []
    size = 0
    for work in works:
        task.append(work)
        size += work.size
        if size >= _TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _start_worker(model: Path) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _open_tokenizer(model)


def _leave_with_parent() -> None:
    """A killed parent closes no queue, so its workers would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _open_tokenizer(model: Path) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(model)


def _tokenise_task(task: List[Work]) -> List[Tokens]:
    assert _tokenizer is not None
    return [_tokenise_one(_tokenizer, work) for work in task]


def _tokenise_one(tokenizer: Tokenizer, work: Work) -> Tokens:
    ids = tokenizer.encode(work.text)
    ids.append(tokenizer.eod_id)
    packed = np.array(ids, dtype=token_dtype(tokenizer.vocab_size))
    gzip_size = len(gzip.compress(work.text.encode("utf-8"), 9, mtime=0)) if work.held_out else 0
    return Tokens(packed, work.size, work.held_out, gzip_size)
