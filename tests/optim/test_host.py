"""AdamW with its states on the host: the same updates, the same runs, the same checkpoints."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused
from loopmoe_train.optim.host import HostAdamW, TorchUpdate
from tests.dist import ranks

pytestmark = pytest.mark.timeout(900)  # the operator may have to be compiled

SIZES = (1, 7, 63, 1025, 4099)
NUMBERS: Dict[str, Any] = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs deepspeed: pip install -e '.[deepspeed]' (make deepspeed)",
)


def _deepspeed() -> Any:
    from loopmoe_train.optim.deepspeed_adam import DeepSpeedUpdate

    return DeepSpeedUpdate()


BOTH = [
    pytest.param(TorchUpdate, id="torch"),
    pytest.param(_deepspeed, id="deepspeed", marks=needs_deepspeed),
]


def _weights(dtype: torch.dtype) -> List[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator).to(dtype) for size in SIZES]


def _gradients(step: int) -> List[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(size, generator=generator) * 10.0 ** (step % 5 - 3) for size in SIZES]


def _host(weights: List[torch.Tensor], update: Any) -> HostAdamW:
    # Biases without decay are a group of their own.
    groups = [dict(params=weights[:2], weight_decay=0.0), dict(params=weights[2:])]
    return HostAdamW(groups, update, **NUMBERS)


def _train(optimizer: HostAdamW, weights: List[torch.Tensor], steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = NUMBERS["lr"] * (1 + step % 3)
        for weight, gradient in zip(weights, _gradients(step)):
            weight.decoupled_grad = gradient  # type: ignore[attr-defined]
        optimizer.step()


def _float64(steps: int, start: List[torch.Tensor]) -> List[torch.Tensor]:
    weights = [torch.nn.Parameter(weight.double()) for weight in start]
    groups = [dict(params=weights[:2], weight_decay=0.0), dict(params=weights[2:])]
    optimizer = torch.optim.AdamW(groups, **NUMBERS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = NUMBERS["lr"] * (1 + step % 3)
        for weight, gradient in zip(weights, _gradients(step)):
            weight.grad = gradient.double()
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("update", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_those_of_adamw_in_float64(
    update: Callable[[], Any], dtype: torch.dtype
) -> None:
    weights = _weights(dtype)
    wanted = _float64(20, weights)
    optimizer = _host(weights, update())
    _train(optimizer, weights, range(20))
    for weight, right in zip(weights, wanted):
        master = optimizer.state_of(weight)["master_param"]
        assert master.dtype == torch.float32
        torch.testing.assert_close(master.double(), right, rtol=2e-6, atol=2e-7)
        assert torch.equal(weight, master.to(dtype))  # what the model computes with
        assert (master.data_ptr() == weight.data_ptr()) == (dtype == torch.float32)


@needs_deepspeed
def test_the_operator_does_what_deepspeeds_own_optimizer_does() -> None:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    weights, theirs = _weights(torch.float32), _weights(torch.float32)
    groups = [dict(params=theirs[:2], weight_decay=0.0), dict(params=theirs[2:])]
    peer = DeepSpeedCPUAdam(groups, adamw_mode=True, **NUMBERS)
    _train(_host(weights, _deepspeed()), weights, range(6))
    for step in range(6):
        for group in peer.param_groups:
            group["lr"] = NUMBERS["lr"] * (1 + step % 3)
        for weight, gradient in zip(theirs, _gradients(step)):
            weight.grad = gradient
        peer.step()
    for weight, other in zip(weights, theirs):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("update", BOTH)
def test_continued_is_bitwise_straight(update: Callable[[], Any]) -> None:
    weights = _weights(torch.bfloat16)
    optimizer = _host(weights, update())
    _train(optimizer, weights, range(11))
    saved = copy.deepcopy(optimizer.state_dict())
    later = [weight.clone() for weight in weights]
    _train(optimizer, weights, range(11, 40))
    other = _host(later, update())
    other.load_state_dict(saved)
    _train(other, later, range(11, 40))
    for weight, again in zip(weights, later):
        for name, value in optimizer.state_of(weight).items():
            assert torch.equal(value, other.state_of(again)[name]), name
        assert torch.equal(weight, again)


OFF = ["optim.offload=cpu"]
BY_DEEPSPEED = [*OFF, "optim.offload_update=deepspeed"]
BF16 = ["precision=bf16", "model.moe.expert_hidden_size=32"]
LAYOUTS = {
    "EP2": ["parallel=expert"],
    "EP2 bf16": ["parallel=expert", *BF16],
    "EP2 host": ["parallel=expert", *OFF],
    "EP2 bf16 host": ["parallel=expert", *BF16, *OFF],
    "DP2 overlapped host": ["parallel=data", "parallel.overlap_grad_reduce=true",
                            "parallel.overlap_param_gather=true", *OFF],
    "EP2 deepspeed": ["parallel=expert", *BY_DEEPSPEED],
    "EP2 bf16 deepspeed": ["parallel=expert", *BF16, *BY_DEEPSPEED],
}  # fmt: skip
CONTINUED = [
    ("EP2 host", "EP2 host"), ("EP2 bf16 host", "EP2 bf16 host"), ("EP2", "EP2 host"),
    ("EP2 host", "EP2"), ("EP2 host", "DP2 overlapped host"), ("EP2 deepspeed", "EP2 host"),
    ("EP2 bf16 deepspeed", "EP2 bf16 deepspeed"),
]  # fmt: skip
STEPS = 3


def _possible(name: str) -> bool:
    return "deepspeed" not in name or importlib.util.find_spec("deepspeed") is not None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """Everything on two ranks, in two launches."""
    root = str(tmp_path_factory.mktemp("checkpoints"))
    cases = [dict(name=name, overrides=LAYOUTS[name]) for name in LAYOUTS if _possible(name)]
    saved = ranks.run("tests.checkpoint.worker:train_and_save", 2, cases, root, STEPS)[0]
    cases = [
        dict(name=f"{before} -> {name}", saved=before, overrides=LAYOUTS[name])
        for before, name in CONTINUED
        if _possible(before)
    ]
    return {
        "saved": saved,
        "continued": ranks.run("tests.checkpoint.worker:load_and_train", 2, cases, root, STEPS)[0],
    }


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "host" in name or "deep" in name])
def test_losses_are_those_of_the_optimizer_on_the_device(trained: Any, name: str) -> None:
    if not _possible(name):
        pytest.skip("needs deepspeed (make deepspeed)")
    precision = " bf16" if "bf16" in name else ""
    # The last bit of an update decides how a weight is rounded to bf16.
    wanted = pytest.approx(trained["saved"]["EP2" + precision], rel=1e-2 if precision else 1e-6)
    assert trained["saved"][name] == wanted


@pytest.mark.parametrize("pair", CONTINUED, ids=lambda pair: " -> ".join(pair))
def test_checkpoints_go_on_here_and_there(trained: Any, pair: Any) -> None:
    before, name = pair
    if not _possible(before):
        pytest.skip("needs deepspeed (make deepspeed)")
    straight = trained["saved"][before][STEPS:]
    found = trained["continued"][" -> ".join(pair)]["losses"]
    if before == name:
        assert found == straight  # bitwise
    assert found == pytest.approx(straight, rel=1e-2 if "bf16" in name else 1e-6)


@pytest.mark.parametrize(
    "words, said",
    [
        (["optim=muon", *OFF], "optim.kind=adamw"),
        ([*OFF, "parallel.distributed_optimizer=false"], "distributed_optimizer=true"),
        (["optim.offload_update=deepspeed"], "set optim.offload=cpu"),
        (["optim.offload=nvme"], "none, cpu"),
    ],
)
def test_what_does_not_go_together_is_refused(words: List[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        compose(words)


@needs_deepspeed
def test_loading_names_no_device_to_what_is_started_later() -> None:
    from loopmoe_train.optim.deepspeed_adam import operator

    before = dict(os.environ)
    operator()
    assert dict(os.environ) == before


@needs_deepspeed
def test_no_compiler_is_one_line(tmp_path: Path) -> None:
    code = "from loopmoe_train.optim.deepspeed_adam import operator; operator()"
    environment = dict(os.environ, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="no-such-compiler")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "Refused" in last and "cannot be built here" in last and "g++" in last, done.stderr
