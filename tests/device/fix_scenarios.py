"""Run scenarios that need a fix of megatron.core, with the fix and without it.

    python -m tests.device.fix_scenarios [SCENARIO[:FIX_TO_LEAVE_OUT] ...]

prints one JSON object, {"SCENARIO:FIX": "ok" | "ErrorType: message"}. Each scenario checks its own
numbers. All run in forked children of one process that has imported megatron.core and started
no thread, so that a scenario costs little.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["LOOPMOE_DEVICE"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import torch

from loopmoe_train.device import fixes

torch.set_num_threads(1)
_LIMIT_S = 30.0


def _compare_gradients(model: Any, reference: Path, tolerance: float = 1e-4) -> None:
    from tests.device import tiny

    full: dict[str, torch.Tensor] = torch.load(reference)
    wrong = {}
    for name, parameter in model.parameters():
        wanted = tiny.shard(name, full[name], parameter)
        error = float((parameter.main_grad - wanted).norm() / (wanted.norm() + 1e-12))
        if not error < tolerance:
            wrong[name] = round(error, 4)
    assert not wrong, f"gradients are off: {wrong}"


def _save_gradients(model: Any, file: Path) -> None:
    torch.save({name: p.main_grad.clone() for name, p in model.parameters()}, file)


def moe_reference(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 1, store)
    model = tiny.build(tiny.make_config(num_moe_experts=4), experts=4)
    model.run()
    _save_gradients(model, folder / "moe.pt")


def moe_tp2_sp(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    sizes = {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 1}
    tiny.start(rank, 2, store, **sizes)
    model = tiny.build(
        tiny.make_config(num_moe_experts=4, sequence_parallel=True, **sizes), experts=4
    )
    model.run()
    _compare_gradients(model, folder / "moe.pt")


def mla_reference(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 1, store)
    model = tiny.build(tiny.make_config(mla=True))
    model.run()
    _save_gradients(model, folder / "mla.pt")


def mla_tp2(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 2, store, tensor_model_parallel_size=2)
    model = tiny.build(tiny.make_config(mla=True, tensor_model_parallel_size=2))
    model.run()
    _compare_gradients(model, folder / "mla.pt")


def mla_tp2_sp(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 2, store, tensor_model_parallel_size=2)
    model = tiny.build(
        tiny.make_config(mla=True, tensor_model_parallel_size=2, sequence_parallel=True)
    )
    model.run()
    _compare_gradients(model, folder / "mla.pt")


_LAYERS = {"num_layers": 4}


def pipeline_reference(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 1, store)
    model = tiny.build(tiny.make_config(**_LAYERS))
    model.run(4)
    _save_gradients(model, folder / "pipeline.pt")


def pipeline_pp2_vpp2(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    sizes = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    tiny.start(rank, 2, store, **sizes)
    model = tiny.build(tiny.make_config(**_LAYERS, **sizes))
    model.run(4)
    _compare_gradients(model, folder / "pipeline.pt")


def recompute_without_fp8(rank: int, folder: Path, store: str) -> None:
    from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

    from tests.device import tiny

    tiny.start(rank, 1, store)
    x = torch.randn(4, requires_grad=True)
    checkpoint = CheckpointWithoutOutput()
    hidden = checkpoint.checkpoint(lambda t: t.sin(), x)
    output = hidden * hidden
    checkpoint.discard_output_and_register_recompute(output)
    output.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach().sin() * x.detach().cos())


def router_counts(rank: int, folder: Path, store: str) -> None:
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.moe.router import TopKRouter

    from tests.device import tiny

    tiny.start(rank, 1, store)
    config = tiny.make_config(
        num_moe_experts=4,
        bf16=True,
        params_dtype=torch.bfloat16,
        moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
    )
    from megatron.core.process_groups_config import ProcessGroupCollection

    router = TopKRouter(config, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    Float16Module(config, router)
    exact = torch.zeros(4)
    for step in range(3):
        tokens = torch.randn(301, 1, 32, generator=torch.Generator().manual_seed(step)).bfloat16()
        exact += router(tokens)[1].sum(dim=0)
    assert torch.equal(router.local_tokens_per_expert.float(), exact), (
        f"counted {router.local_tokens_per_expert.tolist()} instead of {exact.tolist()}"
    )


def sequence_loss(rank: int, folder: Path, store: str) -> None:
    """Two sequences together weigh as much as each alone, summed: the loss is one per token."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.router import TopKRouter

    from tests.device import tiny

    tiny.start(rank, 1, store)
    config = tiny.make_config(
        num_moe_experts=4,
        calculate_per_token_loss=True,
        moe_router_load_balancing_type="seq_aux_loss",
        moe_aux_loss_coeff=0.1,
    )
    router = TopKRouter(config, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    router.set_layer_number(1)
    tokens = torch.randn(9, 2, 32, generator=torch.Generator().manual_seed(1))

    def gradient(part: torch.Tensor) -> torch.Tensor:
        router.weight.grad = None
        (router(part)[0].sum() * 0).backward()
        assert router.weight.grad is not None
        return router.weight.grad.clone()

    together = gradient(tokens)
    apart = gradient(tokens[:, :1]) + gradient(tokens[:, 1:])
    factor = float(apart.norm() / together.norm())
    assert abs(factor - 1) < 1e-5, f"off by a factor of {factor}"
    torch.testing.assert_close(together, apart)


def uneven_gather(rank: int, folder: Path, store: str) -> None:
    """Ranks with 3 and 0 rows: each gets all; of the gradients each gets the sum of its own."""
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

    from tests.device import tiny

    tiny.start(rank, 2, store, tensor_model_parallel_size=2)
    group, sizes = torch.distributed.group.WORLD, [3, 0]
    mine = torch.full((sizes[rank], 2), 1.0 + rank, requires_grad=True)
    whole = gather_from_sequence_parallel_region(mine, group=group, output_split_sizes=sizes)
    assert torch.equal(whole, torch.ones(3, 2)), f"gathered {whole}"
    (whole * (rank + 1)).sum().backward()
    assert torch.equal(mine.grad, torch.full_like(mine, 3.0)), f"gradient {mine.grad}"


def balance_of_ranks(rank: int, folder: Path, store: str) -> None:
    """Two tensor-parallel ranks with half of the tokens each: their gradients add up to those
    of one rank with all of them (the loads of the losses are the group's)."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe import router as core

    from tests.device import tiny

    tiny.start(rank, 2, store, tensor_model_parallel_size=2)
    alone = [torch.distributed.new_group([member]) for member in range(2)][rank]
    groups = ProcessGroupCollection.use_mpu_process_groups()
    tokens = torch.randn(10, 2, 32, generator=torch.Generator().manual_seed(1))

    def gradient(part: torch.Tensor, group: Any, **balance: Any) -> torch.Tensor:
        config = tiny.make_config(num_moe_experts=4, calculate_per_token_loss=True, **balance)
        router = core.TopKRouter(config, pg_collection=groups)
        router.tp_cp_group = group
        router.set_layer_number(1)
        weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
        router.weight.data.copy_(weight)
        (router(part)[0].sum() * 0).backward()
        assert router.weight.grad is not None
        return router.weight.grad

    for balance in (
        {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1},
        {"moe_router_load_balancing_type": "seq_aux_loss", "moe_aux_loss_coeff": 0.1},
        {"moe_z_loss_coeff": 0.1},
    ):
        together = gradient(tokens, alone, **balance)
        half = gradient(tokens.chunk(2)[rank].contiguous(), groups.tp_cp, **balance)
        torch.distributed.all_reduce(half)
        factor = float(together.norm() / half.norm())
        assert abs(factor - 1) < 1e-5, f"off by a factor of {factor}"
        torch.testing.assert_close(half, together)


def _optimizer(model: Any) -> Any:
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    settings = OptimizerConfig(
        optimizer="adam", lr=1e-2, weight_decay=0.1, use_distributed_optimizer=True
    )
    return get_megatron_optimizer(settings, model.chunks)


def _sharded(model: Any, optimizer: Any, is_loading: bool = False) -> dict[str, Any]:
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    metadata |= {"chained_optim_avoid_prefix": True}  # type: ignore[dict-item]
    weights = model.chunks[0].module.sharded_state_dict(metadata=metadata)
    moments = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata)
    return {"model": weights, "optimizer": moments}


def resume(rank: int, folder: Path, store: str) -> None:
    from megatron.core import dist_checkpointing

    from tests.device import tiny

    tiny.start(rank, 1, store)
    checkpoint = Path(store + "-checkpoint")
    checkpoint.mkdir()

    def train(model: Any, optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            model.run()
            optimizer.step()

    first = tiny.build(tiny.make_config(), use_distributed_optimizer=True)
    optimizer = _optimizer(first)
    train(first, optimizer, 2)
    dist_checkpointing.save(_sharded(first, optimizer), str(checkpoint))
    train(first, optimizer, 3)

    second = tiny.build(tiny.make_config(), use_distributed_optimizer=True)
    again = _optimizer(second)
    loaded = dist_checkpointing.load(_sharded(second, again, is_loading=True), str(checkpoint))
    second.chunks[0].module.load_state_dict(loaded["model"])
    again.load_state_dict(loaded["optimizer"])
    train(second, again, 3)
    for (name, wanted), (_, found) in zip(first.parameters(), second.parameters(), strict=True):
        error = float((found - wanted).abs().max())
        assert error < 1e-6, f"{name} is off by {error:.2e} after resuming"


def state_before_first_step(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 1, store)
    model = tiny.build(tiny.make_config(), use_distributed_optimizer=True)
    optimizer = _optimizer(model)
    before = [parameter.detach().clone() for _, parameter in model.parameters()]
    saved = optimizer.state_dict()
    groups = saved["optimizer"]["param_groups"]
    assert {group["step"] for group in groups} == {0.0}, "saving counted as a step"
    for old, (name, new) in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new), f"saving changed {name}"


def offloaded_optimizer(rank: int, folder: Path, store: str) -> None:
    from megatron.core.optimizer import OptimizerConfig

    config = OptimizerConfig(
        optimizer="adam",
        use_distributed_optimizer=True,
        use_precision_aware_optimizer=True,
        optimizer_cpu_offload=True,
    )
    assert config.use_precision_aware_optimizer_no_fp8_or_ds_fp8


def stage_without_experts(rank: int, folder: Path, store: str) -> None:
    from tests.device import tiny

    tiny.start(rank, 2, store, pipeline_model_parallel_size=2)
    config = tiny.make_config(
        num_layers=2, num_moe_experts=4, moe_layer_freq=[0, 1], pipeline_model_parallel_size=2
    )
    model = tiny.build(config, experts=4, use_distributed_optimizer=True)
    optimizer = _optimizer(model)
    for _ in range(2):
        model.run(2)
        optimizer.step()
    described = _sharded(model, optimizer)["optimizer"]
    steps = [group["step"] for part in described.values() for group in _groups_of(part)]
    assert steps and set(steps) == {2.0}, f"stage {rank} tells the steps {steps}"


def _groups_of(part: dict[str, Any]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = part["optimizer"]["param_groups"]
    return groups


def settings_of_core(rank: int, folder: Path, store: str) -> None:
    import logging

    import megatron.core.jit as jit
    from megatron.core.tensor_parallel import random

    from tests.device import tiny

    assert jit.jit_fuser is jit.noop_decorator, "jit_fuser is not switched off"
    seen: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(listener)
    tiny.start(rank, 1, store)
    with random.get_cuda_rng_tracker().fork():
        torch.rand(1)
    assert not seen, f"logged: {seen}"


#: name -> (function, ranks). The references come first: they write what others compare with.
SCENARIOS: dict[str, tuple[Callable[[int, Path, str], None], int]] = {
    "moe_reference": (moe_reference, 1),
    "mla_reference": (mla_reference, 1),
    "pipeline_reference": (pipeline_reference, 1),
    "moe_tp2_sp": (moe_tp2_sp, 2),
    "mla_tp2": (mla_tp2, 2),
    "mla_tp2_sp": (mla_tp2_sp, 2),
    "pipeline_pp2_vpp2": (pipeline_pp2_vpp2, 2),
    "recompute_without_fp8": (recompute_without_fp8, 1),
    "router_counts": (router_counts, 1),
    "sequence_loss": (sequence_loss, 1),
    "balance_of_ranks": (balance_of_ranks, 2),
    "uneven_gather": (uneven_gather, 2),
    "resume": (resume, 1),
    "state_before_first_step": (state_before_first_step, 1),
    "offloaded_optimizer": (offloaded_optimizer, 1),
    "stage_without_experts": (stage_without_experts, 2),
    "settings_of_core": (settings_of_core, 1),
}


def _child(name: str, without: str, rank: int, folder: Path, store: str, outcome: Any) -> None:
    os.setpgid(0, 0)  # one group, so that helpers it starts can be ended with it
    try:
        if without:
            fixes.disable_fix(without)
        SCENARIOS[name][0](rank, folder, store)
        text = "ok"
    except BaseException as error:
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[0] if lines else ''}"
        if os.environ.get("LOOPMOE_TRACE"):
            traceback.print_exc()
    outcome.put((rank, text))
    outcome.close()
    outcome.join_thread()
    os._exit(0)  # gloo threads of a failed peer must not hold this process back


def run(name: str, without: str, folder: Path) -> str:
    """Run one scenario in fresh processes; returns "ok" or the first failing rank's error."""
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    store = str(folder / f"store-{name}-{without}")
    children = [
        context.Process(target=_child, args=(name, without, rank, folder, store, outcome))
        for rank in range(SCENARIOS[name][1])
    ]
    for child in children:
        child.start()
    texts = []
    try:
        for _ in children:
            texts.append(outcome.get(timeout=_LIMIT_S)[1])
            if texts[-1] != "ok":
                break
    except Exception:
        texts.append("TimeoutError: no answer")
    for child in children:
        if child.pid:  # also when all went well: core's checkpoint writer leaves a helper running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.join()
    return next((text for text in texts if text != "ok"), "ok")


def run_all(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Run (scenario, fix to leave out) pairs, two at a time, the references before all others."""
    # imported here, once, for all children; its modules bring the fixes
    from megatron.core import dist_checkpointing, optimizer  # noqa: F401

    from tests.device import tiny  # noqa: F401

    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)

        def run_pair(pair: tuple[str, str]) -> str:
            return run(*pair, folder)

        first = [pair for pair in pairs if pair[0].endswith("_reference")]
        rest = [pair for pair in pairs if pair not in first]
        outcomes = [*pool.map(run_pair, first), *pool.map(run_pair, rest)]
    return {f"{n}:{w}": text for (n, w), text in zip(first + rest, outcomes, strict=True)}


def main(wanted: list[str]) -> None:
    pairs = [(name, "") for name in SCENARIOS]
    if wanted:
        pairs = [(item.partition(":")[0], item.partition(":")[2]) for item in wanted]
    print(json.dumps(run_all(pairs), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
