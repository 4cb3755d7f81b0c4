"""Core attention where TransformerEngine is absent: torch's scaled_dot_product_attention, or on
a processor our blocks."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from loopmoe_kernels.causal_attention import MAX_LENGTH, causal_attention


class ScaledDotProductAttention(MegatronModule):
    """Fits core's ``core_attention`` slot for MLA (query/key and value dims differ) and GQA.

    Args:
        softmax_scale: factor on the scores; None: 1 / sqrt(head dim).
        attention_dropout: None: that of the configuration.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: Optional[float] = None,
        softmax_scale: Optional[float] = None,
        **_unused: Any,  # k_channels, v_channels, cp_comm_type, pg_collection: seen in the tensors
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise ValueError("context parallelism needs a ring attention: use context size 1")
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Optional[Tensor],
        attn_mask_type: Optional[AttnMaskType] = None,
        attention_bias: Optional[Tensor] = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, heads, d_qk].
            key: [s, b, groups, d_qk].
            value: [s, b, groups, d_v].
            attention_mask: None for causal, else bool [b, 1, s, s], True = not attended.

        Returns:
            [s, b, heads * d_v].
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("attention_bias and packed sequences are not taken by this attention")
        s, b, heads, _ = query.shape
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        plain = attention_mask is None and not dropout and k.shape[1] == heads
        if q.is_cpu and plain and s <= MAX_LENGTH and q.dtype == torch.float32:
            scale = q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale
            out = causal_attention(*(x.reshape(b * heads, s, -1) for x in (q, k, v)), scale)
            out = out.view(b, heads, s, -1)
        else:
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if attention_mask is None else ~attention_mask,
                dropout_p=dropout,
                is_causal=attention_mask is None,
                scale=self.softmax_scale,
                enable_gqa=k.shape[1] != heads,
            )
        return out.permute(2, 0, 1, 3).reshape(s, b, heads * v.shape[-1])
