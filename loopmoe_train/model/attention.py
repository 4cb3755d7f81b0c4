"""Core attention where TransformerEngine is absent (model/attend.py), and its two schemes of
context parallelism."""

from __future__ import annotations

from typing import Any, Optional

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from loopmoe_train.model.attend import attend
from loopmoe_train.model.context import gather_sequence, to_heads, to_sequence
from loopmoe_train.spec.context import chunks_of


class ScaledDotProductAttention(MegatronModule):
    """Fits core's ``core_attention`` slot for MLA (query/key and value dims differ) and GQA.

    With context parallelism the tokens are this rank's (model/context.py), and
    ``config.context_kind`` says how they meet the others:

        gather   its queries attend to the keys of all ranks, which are gathered here (GQA) or
                 come whole (MLA: model/context_attention.py)
        ulysses  ranks exchange heads for tokens, so each attends all of its share of the heads

    Args:
        softmax_scale: factor on the scores; None: 1 / sqrt(head dim).
        attention_dropout: None: that of the configuration.
        pg_collection: has the context-parallel group ``cp``.

    Raises:
        ValueError: ulysses with fewer heads or groups than it can share out, or another scheme.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: Optional[float] = None,
        softmax_scale: Optional[float] = None,
        pg_collection: Any = None,
        **_unused: Any,  # k_channels, v_channels, cp_comm_type: seen in the tensors
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.context_kind = config.context_kind if config.context_parallel_size > 1 else "none"
        if self.context_kind not in ("none", "gather", "ulysses"):
            raise ValueError(f"context_kind {self.context_kind}: choose gather or ulysses")
        self.context_group = pg_collection.cp if self.context_kind != "none" else None

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
            query: [s, b, heads, d_qk]; s: this rank's tokens.
            key: [s, b, groups, d_qk]; under gather perhaps those of the whole sequence.
            value: [s, b, groups, d_v], as the keys.
            attention_mask: None for causal, else bool [b, 1, S, S] of the whole sequence, True =
                not attended; the future is.

        Returns:
            [s, b, heads * d_v].

        Raises:
            ValueError: ulysses, and the heads or groups are not a multiple of the context size.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("attention_bias and packed sequences are not taken by this attention")
        if self.context_kind == "gather":
            return self._gathered(query, key, value, attention_mask)
        if self.context_kind == "ulysses":
            size = self.context_group.size()
            if query.shape[2] % size or key.shape[2] % size:
                raise ValueError(
                    f"context ulysses shares out heads: {query.shape[2]} heads in {key.shape[2]} "
                    f"groups per rank, context size {size}; choose gather"
                )
            parts = to_heads([query, key, value], self.context_group)
            return to_sequence(self._attend(*parts, attention_mask), self.context_group)
        return self._attend(query, key, value, attention_mask)

    def _gathered(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor]
    ) -> Tensor:
        """Each of this rank's two chunks attends to the keys up to its end."""
        if key.shape[0] == query.shape[0]:
            key, value = (gather_sequence(x, self.context_group) for x in (key, value))
        rank, size = self.context_group.rank(), self.context_group.size()
        chunk = key.shape[0] // (2 * size)
        outputs = []
        for part, number in zip(query.chunk(2), chunks_of(rank, size)):
            first, seen = number * chunk, (number + 1) * chunk
            rows = None if mask is None else mask[:, :, first:seen, :seen]
            outputs.append(self._attend(part, key[:seen], value[:seen], rows))
        return torch.cat(outputs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor]) -> Tensor:
        """:func:`attend` with this layer's dropout and scale."""
        dropout = self.dropout if self.training else 0.0
        return attend(query, key, value, mask, dropout, self.softmax_scale)
