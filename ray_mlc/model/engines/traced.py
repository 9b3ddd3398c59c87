"""A model as exporters see it: tensors in, one tensor out."""

from __future__ import annotations

from typing import Any

import torch


class TracedLogits(torch.nn.Module):
    """Logits of a batch, of a model whose output is a structure."""

    def __init__(self, model: Any) -> None:
        """Take over a model of a folder."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits, shape [B, L], of ids and mask, both [B, T]."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits
