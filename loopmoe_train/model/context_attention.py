"""Multi-head latent attention over the tokens of all context-parallel ranks."""

from __future__ import annotations

from typing import Any, Tuple

import torch
from megatron.core.models.common.embeddings import apply_rotary_pos_emb
from megatron.core.tensor_parallel import CheckpointWithoutOutput
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor

from loopmoe_train.model.context import gather_sequence


class ContextMLASelfAttention(MLASelfAttention):
    """Core's MLA; with the context scheme ``gather`` ranks exchange latents.

    The output of the kv down projection (kv_lora_rank + rope dim numbers per token) is gathered,
    a small part of the keys and values, which each rank projects up for all tokens. It is
    gathered before anything else is done to it: as each tensor-parallel rank still holds its own
    columns, none is sent twice, and what follows (scatter over tensor-parallel ranks, norm, up
    projection) is core's, on a whole sequence in natural order. Core's own function has one
    rotary table for queries and keys and cannot do that.

    Where context size is 1 or the scheme is another, this is core's class.
    """

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Any = None,
        position_ids: Any = None,
        packed_seq_params: Any = None,
        inference_context: Any = None,
        **more: Any,
    ) -> Tuple[Tensor, ...]:
        """Queries of this rank's tokens, keys and values of all.

        Args:
            hidden_states: [l, b, h]: this rank's tokens; its tensor-parallel share of them
                with sequence parallelism.

        Returns:
            query [s / size, b, heads, d_qk], key [s, b, heads, d_qk], value [s, b, heads, d_v]
            (heads of this tensor-parallel rank), and the compressed queries and keys.
        """
        config, group = self.config, self.pg_collection.cp
        if group.size() == 1 or config.context_kind != "gather":
            given = (key_value_states, position_ids, packed_seq_params, inference_context)
            return super().get_query_key_value_tensors(hidden_states, *given, **more)  # type: ignore[no-any-return]
        if packed_seq_params is not None or inference_context is not None:
            raise ValueError("packed sequences and inference are not taken under context gather")
        if config.rope_type != "rope":
            raise ValueError(f"rope_type {config.rope_type} is not taken under context gather")
        length = self.rotary_pos_emb.get_rotary_seq_len(None, None, hidden_states, config)
        mine, whole = (self.rotary_pos_emb(length, packed_seq=packed) for packed in (False, True))
        latent_q = self._compressed_query(hidden_states)
        latent_kv, _ = self.linear_kv_down_proj(hidden_states)
        inputs = latent_q, latent_kv, mine, whole
        if self.recompute_up_proj:
            # The gather is done again too: what is kept is this rank's part.
            self.qkv_up_checkpoint = CheckpointWithoutOutput(fp8=config.fp8 or config.fp4)
            query, key, value = self.qkv_up_checkpoint.checkpoint(self._project_up, *inputs)
        else:
            query, key, value = self._project_up(*inputs)
        return query, key, value, latent_q, latent_kv

    def _compressed_query(self, hidden_states: Tensor) -> Tensor:
        """What the query projection takes: [l, b, q_lora_rank], or the states themselves."""
        if self.config.q_lora_rank is None:
            return hidden_states
        latent, _ = self.linear_q_down_proj(hidden_states)
        latent = gather_from_tensor_model_parallel_region(latent)
        return self.q_layernorm(self._scatter(latent))  # type: ignore[no-any-return]

    def _project_up(
        self, latent_q: Tensor, latent_kv: Tensor, mine: Tensor, whole: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Query, key and value from the outputs of the down projections.

        Args:
            latent_kv: [s / size, b, (kv_lora_rank + rope dim) / TP].
            mine, whole: rotary tables of this rank's tokens and of the sequence.
        """
        config, heads = self.config, self.num_attention_heads_per_partition
        compressed = config.q_lora_rank is not None
        query, _ = (self.linear_q_up_proj if compressed else self.linear_q_proj)(latent_q)
        query = query.unflatten(-1, (heads, self.q_head_dim))
        q_plain, q_rope = query.split([config.qk_head_dim, config.qk_pos_emb_head_dim], dim=-1)

        latent_kv = gather_sequence(latent_kv, self.pg_collection.cp)
        latent_kv = gather_from_tensor_model_parallel_region(latent_kv)
        latent, k_rope = latent_kv.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], dim=-1)
        # Each rank's heads add to its gradient (device/fixes/layers.py: mla-shared-rope-key).
        k_rope = copy_to_tensor_model_parallel_region(k_rope).unsqueeze(-2)
        kv, _ = self.linear_kv_up_proj(self.kv_layernorm(self._scatter(latent)))
        kv = kv.unflatten(-1, (heads, config.qk_head_dim + config.v_head_dim))
        k_plain, value = kv.split([config.qk_head_dim, config.v_head_dim], dim=-1)

        cp = self.pg_collection.cp
        q_rope = apply_rotary_pos_emb(q_rope, mine, config, cp_group=cp)
        k_rope = apply_rotary_pos_emb(k_rope, whole, config, cp_group=cp)
        key = torch.cat([k_plain, k_rope.expand(-1, -1, heads, -1)], dim=-1)
        return torch.cat([q_plain, q_rope], dim=-1), key, value.contiguous()

    def _scatter(self, latent: Tensor) -> Tensor:
        """This tensor-parallel rank's share of the tokens, with sequence parallelism."""
        if self.config.sequence_parallel:
            return scatter_to_sequence_parallel_region(latent)  # type: ignore[no-any-return]
        return latent
