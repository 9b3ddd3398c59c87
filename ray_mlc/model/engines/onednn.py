"""Linear layers whose weights oneDNN has laid out once, for PyTorch on CPU.

PyTorch's own float32 linear goes to MKL, which takes its slow path on CPUs that are not Intel's;
oneDNN's is about twice as fast there, and saves reordering the weights in every call in bfloat16
too. The operators are those that TorchInductor generates calls of: they are not public, so their
absence means the layers stay as they are.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import nn

PACKED_TYPES = frozenset(
    {
        *("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert"),
        *("mpnet", "roberta", "xlm-roberta"),
    }
)
"""`model_type` of encoders that only call their linear layers; others look into them."""
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"))
"""Linear layer and activation that stand one after the other in BERT's kin, and in DistilBERT."""


def available() -> bool:
    """Whether this PyTorch has the operators."""
    return bool(torch._C._has_mkldnn) and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


class PackedLinear(nn.Module):
    """`y = activation(x Wᵀ + b)`; for inference only, and not to be saved."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        """Lay out the weights of a layer, in its own precision.

        Args:
            linear: The layer.
            gelu: Whether the exact GELU follows: it is then computed on what is in the registers.
        """
        super().__init__()
        weight = linear.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._attribute = "gelu" if gelu else "none"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of shape [..., in] to outputs of shape [..., out]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, self._attribute, [], "none"
        )
        return result


def pack_encoder(model: Any) -> int:
    """As `pack_linears`, for a transformers model: 0 for kinds that are not known to allow it."""
    return pack_linears(model) if model.config.model_type in PACKED_TYPES else 0


def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of a model in evaluation mode, in place.

    Returns:
        Layers replaced: 0 where the operators are absent, or the precision is not theirs.
    """
    if not available():
        return 0
    count = 0
    for module in list(model.modules()):
        for name, activation in _ACTIVATED:
            linear = getattr(module, name, None)
            if _is_packable(linear) and _is_exact_gelu(getattr(module, activation, None)):
                setattr(module, name, PackedLinear(linear, gelu=True))
                setattr(module, activation, nn.Identity())
                count += 1
        for name, child in list(module.named_children()):
            if _is_packable(child):
                setattr(module, name, PackedLinear(child))
                count += 1
    return count


def _is_packable(module: Any) -> TypeGuard[nn.Linear]:
    # a subclass may do more than multiply
    if type(module) is not nn.Linear:
        return False
    bfloat16 = module.weight.dtype == torch.bfloat16
    if bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bfloat16 or module.weight.dtype == torch.float32


def _is_exact_gelu(module: Any) -> bool:
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    # transformers' own wrapper: `erf` in Python, or PyTorch's exact form
    return type(module).__name__ == "GELUActivation"
