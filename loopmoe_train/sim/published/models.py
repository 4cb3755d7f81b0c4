"""What a published row leaves out of its model's sizes, as the models' own papers and
configurations state it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Known:
    """Sizes that rows lack.

    Attributes:
        words: a model of this kind has one of them in its name (lower case).
        head_dim: width of an attention head, where it is not hidden / heads.
        dense_layers: first layers without experts.
        latent: MLA: query rank, key/value rank, unrotated, rotated and value width of a head.
        vocab: where the row has none.
        gated: SwiGLU or the like.
        tied: input embedding and head are one.
        passes: over the FFN's inner values that the activation takes, where it is not fused.
    """

    words: Tuple[str, ...]
    head_dim: Optional[int] = None
    dense_layers: int = 0
    latent: Optional[Tuple[Optional[int], int, int, int, int]] = None
    vocab: Optional[int] = None
    gated: Optional[bool] = None
    tied: bool = False
    passes: float = 1.0


_DEEPSEEK = (1536, 512, 128, 64, 128)
KNOWN: Tuple[Known, ...] = (
    Known(("deepseekv3", "deepseek_v3", "deepseek-v3", "deepseekv3_proxy", "deepseek3"),
          dense_layers=3, latent=_DEEPSEEK, vocab=129280),
    Known(("deepseek32", "deepseek_v32"), dense_layers=3, latent=_DEEPSEEK, vocab=129280),
    Known(("deepseekv2_lite", "deepseek_v2_lite", "deepseek-v2-lite", "deepseek2_lite"),
          dense_layers=1, latent=(None, 512, 128, 64, 128), vocab=102400),
    Known(("deepseekv2", "deepseek_v2", "deepseek-v2", "deepseek2"),
          dense_layers=1, latent=_DEEPSEEK, vocab=102400),
    Known(("kimi",), dense_layers=1, latent=_DEEPSEEK, vocab=163840),
    Known(("longcat",), latent=(1536, 512, 128, 64, 128), vocab=131072),
    Known(("pangu ultra moe",), dense_layers=3, latent=_DEEPSEEK, vocab=153600),
    Known(("qwen3_8b",), vocab=151936),
    Known(("huyuan3", "hunyuan3"), head_dim=128, vocab=120832),
    Known(("qwen3",), head_dim=128, vocab=151936),
    Known(("gpt oss", "gpt_oss"), head_dim=64, vocab=201088, passes=4.0),
    Known(("gemma2", "gemma-2b", "gemma_2b", "gemma-7b", "gemma_7b"), head_dim=256, vocab=256000,
          tied=True),
    Known(("qwen1.5-0.5b", "qwen2-0.5b", "qwen2-1.5b", "qwen2_0.5b", "minicpm"), tied=True),
    Known(("chatglm3", "glm3"), vocab=65024),
    Known(("bloom",), vocab=250880, gated=False, tied=True),
    Known(("baichuan2",), vocab=125696),
    Known(("baichuan",), vocab=64000),
    Known(("mixtral", "mistral"), vocab=32000),
    Known(("llama2", "llama-2", "codellama", "llama-7b", "llama-13b", "llama-33b", "llama-65b"),
          vocab=32000),
    Known(("llama3", "llama-3"), vocab=128256),
    Known(("internlm2",), vocab=92544),
    Known(("internlm",), vocab=103168),
    Known(("aquila",), vocab=100008),
    Known(("yi-", "yi_"), vocab=64000),
    Known(("qwen-", "qwen_", "qwen1.5", "qwen2"), vocab=151936),
    Known(("mpt",), vocab=50368, gated=False, tied=True),
    Known(("gpt3_15b",), vocab=256000, gated=False),
    Known(("gpt", "megatron", "turing"), vocab=51200, gated=False, tied=True),
    Known(("phi35", "phi3"), vocab=32064),
    Known(("grok",), vocab=131072),
)  # fmt: skip
OTHER = Known(())


def known(model: str) -> Known:
    """What is known of a model by its name."""
    name = model.lower()
    for one in KNOWN:
        if any(word in name for word in one.words):
            return one
    return OTHER
