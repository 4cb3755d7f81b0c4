"""What a token touches: distinct experts over the loop, and attention against FFN.

arXiv 2606.04438, capacity balancing (facts/loopmoe.md, section 4): rho = A_attn / A_ffn. Both
count weights, not uses: attention is the same K times over, while a shared layer's router may
choose other experts in every iteration, so A_ffn counts the distinct ones.
"""

from __future__ import annotations

from typing import Callable

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.errors import Refused
from loopmoe_train.spec.arithmetic import layer_parameters
from loopmoe_train.spec.visits import visits

# (routed experts, top_k, iterations) -> distinct routed experts that one token is sent to
UniqueExperts = Callable[[float, float, int], float]


def independent(experts: float, top_k: float, iterations: int) -> float:
    """E (1 - (1 - k/E)^K). Assumes that every iteration routes uniformly and anew.

    An upper estimate: measured iterations overlap more than that.
    """
    return experts * (1 - (1 - top_k / experts) ** iterations)


def overlapping(jaccard: float) -> UniqueExperts:
    """From the mean Jaccard overlap |A & B| / |A | B| of two iterations' expert sets.

    Assumes that a token has a core of experts which every iteration takes, and draws the rest
    independently from the others; the size of the core (not whole) gives ``jaccard``.

    Raises:
        Refused: outside 0..1; when called, less than independent routing gives by chance.
    """
    if not 0 <= jaccard <= 1:
        raise Refused(f"Jaccard overlap {jaccard}: must be from 0 to 1", "e.g. 0.5")

    def unique(experts: float, top_k: float, iterations: int) -> float:
        if experts == top_k or jaccard == 1:
            return top_k

        def overlap(core: float) -> float:
            shared = core + (top_k - core) ** 2 / (experts - core)
            return shared / (2 * top_k - shared)

        if jaccard < overlap(0.0):
            raise Refused(
                f"Jaccard overlap {jaccard} is below that of chance, {overlap(0.0):.3f} "
                f"(top {top_k} of {experts})",
                "raise it, or leave it out for independent routing",
            )
        low, high = 0.0, float(top_k)
        for _ in range(60):  # the overlap grows with the core
            middle = (low + high) / 2
            low, high = (middle, high) if overlap(middle) < jaccard else (low, middle)
        return low + independent(experts - low, top_k - low, iterations)

    return unique


def measured(count: float) -> UniqueExperts:
    """A count taken from a trained model's routing.

    Raises:
        Refused: when called, ``count`` is impossible: below top_k, or above K * top_k or E.
    """

    def unique(experts: float, top_k: float, iterations: int) -> float:
        most = min(experts, top_k * iterations)
        if not top_k <= count <= most:
            raise Refused(
                f"{count:g} distinct experts cannot be: top {top_k} of {experts}, {iterations} "
                f"times, is {top_k} to {most}",
                "give the mean count of one layer and token",
            )
        return count

    return unique


def unique_experts(model: ModelConfig, unique: UniqueExperts = independent) -> float:
    """Distinct routed experts a token is sent to by one body layer over its iterations."""
    moe, iterations = model.moe, model.loop.iterations
    return float(moe.top_k) if iterations == 1 else unique(moe.num_experts, moe.top_k, iterations)


def attention_ffn_ratio(model: ModelConfig, unique: UniqueExperts = independent) -> float:
    """rho = A_attn / A_ffn over all layers that own weights.

    A_attn: attention projections. A_ffn: dense FFN, shared experts and the routed experts that
    a token is sent to, each counted once however often the layer is visited.
    """
    attention = ffn = 0.0
    for visit in visits(model):
        if not visit.owns_weights:
            continue
        layer = layer_parameters(model, visit.dense, visit.looped)
        attention += layer.attention
        ffn += layer.ffn_active + layer.shared_experts
        if visit.looped and not visit.dense:
            # ffn_active holds the top_k of one visit
            ffn += layer.ffn_active * (unique_experts(model, unique) / model.moe.top_k - 1)
    return attention / ffn
