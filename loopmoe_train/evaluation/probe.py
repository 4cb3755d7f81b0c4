"""What routing and gates do on one fixed batch of held-out text.

Kept off the training path: a probe runs one forward pass without gradients and asks every
visit for its routing map and its modulation.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from torch import Tensor

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Loader
from loopmoe_train.evaluation.forward import outputs
from loopmoe_train.model.build import layers
from loopmoe_train.model.iter_adaln import IterAdaLN
from loopmoe_train.observe.metrics import gate_key, load_stats, routing_key
from loopmoe_train.observe.routing import LayerRouting, RoutingProbe
from loopmoe_train.parallel.groups import data_place
from loopmoe_train.parallel.reduce import of_all_stages, sum_over_ranks, token_group


def training_routing(model: List[Any]) -> Dict[str, float]:
    """Routing metrics of the training tokens since the last call, over all ranks; resets."""
    routers = [(layer.visit, layer.mlp.router) for layer in layers(model) if layer.is_moe_layer]
    record: Dict[str, float] = {}
    if routers:
        counts = torch.stack([torch.stack([router.load, router.dropped]) for _, router in routers])
        dist.all_reduce(counts, group=token_group())
        for (visit, router), (load, dropped) in zip(routers, counts.tolist()):
            router.reset_statistics()
            if not any(load):
                continue  # a visit that has not run since
            for stat, value in load_stats(load).items():
                record[routing_key(visit.layer, visit.iteration, stat)] = value
            if router.config.loopmoe.moe.capacity_factor is not None:
                share = sum(dropped) / sum(load)
                record[routing_key(visit.layer, visit.iteration, "dropped")] = share
    return _in_order(of_all_stages(record))


def training_mtp_losses(micro_batches: int) -> List[float]:
    """Mean loss of each MTP head since the last call, over all ranks (a collective call); resets.

    Args:
        micro_batches: how many this rank has run since then.
    """
    kept = MTPLossLoggingHelper.tracker.get("values")
    means: List[float] = []
    if kept is not None:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        sums = sum_over_ranks(kept, group)
        kept.zero_()
        means = [total / (group.size() * max(1, micro_batches)) for total in sums]
    # The heads are on the last stage.
    found: List[float] = of_all_stages(means)[-1]
    return found


def probe(
    run: RunConfig, model: List[Any], loader: Loader, step: int
) -> Tuple[RoutingProbe, Dict[str, float]]:
    """Load and overlap of expert sets per looped layer, and gate statistics.

    Every rank runs it on windows of its own; loads and overlaps are means over ranks.
    """
    rank, _ = data_place()
    batch = loader.batch(rank * run.micro_batch_size, run.micro_batch_size)
    with torch.no_grad(), _watching(model) as gates:
        outputs(model, [batch], losses=True)
        found = _routing(model)
    stages = of_all_stages((found, _averaged(gates)))
    everywhere = [layer for routing, _ in stages for layer in routing]
    return (
        RoutingProbe(step, sorted(everywhere, key=lambda layer: layer.layer)),
        _in_order([values for _, values in stages]),
    )


def _in_order(stages: List[Dict[str, float]]) -> Dict[str, float]:
    """One record of the metrics ``name/<layer>/<iteration>/stat`` of all stages, by layer."""
    record = {key: value for stage in stages for key, value in stage.items()}
    return dict(sorted(record.items(), key=lambda item: [int(n) for n in item[0].split("/")[1:3]]))


@contextmanager
def _watching(model: List[Any]) -> Iterator[Dict[str, Tensor]]:
    """Keep routing maps and read modulations during one forward pass."""
    gates: Dict[str, Tensor] = {}
    handles = []
    for layer in layers(model):
        if layer.is_moe_layer:
            layer.mlp.router.keep_routing_map = True
        for branch, norm in (("attn", layer.input_layernorm), ("moe", layer.pre_mlp_layernorm)):
            if isinstance(norm, IterAdaLN):
                handles.append(norm.register_forward_hook(_reader(gates, layer.visit, branch)))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers(model):
            if layer.is_moe_layer:
                layer.mlp.router.keep_routing_map = False
                layer.mlp.router.last_routing_map = None


def _reader(gates: Dict[str, Tensor], visit: Any, branch: str) -> Any:
    def read(norm: IterAdaLN, inputs: Tuple[Tensor], output: Tensor) -> None:
        gamma, beta, alpha = norm.modulate(inputs[0])

        def put(stat: str, value: Tensor) -> None:
            gates[gate_key(visit.layer, visit.iteration, stat)] = value.float()

        put(f"gamma_{branch}_mean", gamma.mean())
        put(f"gamma_{branch}_abs", gamma.abs().mean())
        put(f"beta_{branch}_abs", beta.abs().mean())
        if alpha is not None:
            put("alpha_mean", alpha.mean())
            put("alpha_abs", alpha.abs().mean())
            # Over tokens, of the channel mean: the paper's tok_std.
            put("alpha_token_std", alpha.float().mean(-1).std())

    return read


def _routing(model: List[Any]) -> List[LayerRouting]:
    maps: Dict[int, List[Tuple[int, Tensor]]] = defaultdict(list)
    for layer in layers(model):
        if layer.is_moe_layer:
            routing_map = layer.mlp.router.last_routing_map
            maps[layer.visit.layer].append((layer.visit.iteration, routing_map))
    result = []
    group = token_group()
    for index, visits in sorted(maps.items()):
        stacked = torch.stack([routing_map for _, routing_map in visits]).float()  # [K, T, E]
        load = stacked.mean(1)
        both = torch.einsum("kte,lte->klt", stacked, stacked)
        either = stacked.sum(-1).unsqueeze(1) + stacked.sum(-1).unsqueeze(0) - both
        overlap = (both / either.clamp_min(1)).mean(-1)
        for tensor in (load, overlap):
            dist.all_reduce(tensor, group=group)
        result.append(
            LayerRouting(
                layer=index,
                iterations=[iteration for iteration, _ in visits],
                load=_array(load / load.sum(-1, keepdim=True)),
                overlap=_array(overlap / group.size()) if len(visits) > 1 else None,
            )
        )
    return result


def _averaged(gates: Dict[str, Tensor]) -> Dict[str, float]:
    """Mean over ranks of each statistic."""
    if not gates:
        return {}
    sums = sum_over_ranks(torch.stack(list(gates.values())), token_group())
    return {name: value / token_group().size() for name, value in zip(gates, sums)}


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().double().numpy()
