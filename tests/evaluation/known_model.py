"""A model whose every output is known, as core's schedule takes models."""

from __future__ import annotations

from typing import Any, Callable

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class KnownModel(nn.Module):
    """Answers with ``answer(tokens, labels)``; counts its calls."""

    def __init__(self, answer: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.calls = 0
        self.model_type = ModelType.encoder_or_decoder
        self.config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)

    def set_input_tensor(self, _: Any) -> None:
        """Core hands over what another pipeline stage sent: there is none."""

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Any, labels: Any, **_: Any
    ) -> Tensor:
        assert positions.shape == tokens.shape
        assert not torch.is_grad_enabled() and not self.training
        self.calls += 1
        return self.answer(tokens, labels)
