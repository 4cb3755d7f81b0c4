"""Runs a check of Triton kernels: on the GPU of this machine, or under Triton's interpreter.

The interpreter is chosen when a kernel is decorated, for the whole process, and torch.compile and
the ahead-of-time tests need the compiler: so it has a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

ROOT = str(Path(__file__).parents[2])
NATIVE = torch.cuda.is_available()
DEVICE = "cuda" if NATIVE else "cpu"
# Steps of the interpreter take a millisecond: cases for machines with a GPU are left to those.
ROWS = 1 << 30 if NATIVE else 48

Run = Callable[..., None]


def _prepare() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run_triton() -> Iterator[Run]:
    """``run_triton(check, *arguments)``: a module's function, in the place where kernels run."""
    if NATIVE:
        yield lambda check, *arguments: check(*arguments)
        return
    before = os.environ.get("TRITON_INTERPRET")
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare
    ) as pool:
        os.environ["TRITON_INTERPRET"] = "1"
        sys.path.append(ROOT)  # a bare `pytest` has not got it
        try:
            pool.submit(_prepare).result()  # starts the process, which inherits both
        finally:
            sys.path.remove(ROOT)
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before

        def run(check: Callable[..., Any], *arguments: Any) -> None:
            pool.submit(check, *arguments).result()

        yield run
