"""Which layers can be joined: judged by what their classes compute, and by what was done to the layer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm
from torch.nn.utils import parametrize

from scratchnn import nn
from scratchnn.ops.fused import Activation

__all__ = ["activation_of", "is_conv", "is_norm", "reason_not_plain"]

RELU = Activation("relu")

_ACTIVATIONS: dict[type[Module], Callable[[Any], Activation]] = {
    torch.nn.ReLU: lambda m: RELU,
    torch.nn.Hardtanh: lambda m: Activation("hardtanh", (float(m.min_val), float(m.max_val))),
    torch.nn.ReLU6: lambda m: Activation("hardtanh", (float(m.min_val), float(m.max_val))),
    torch.nn.LeakyReLU: lambda m: Activation("leaky_relu", (float(m.negative_slope),)),
    torch.nn.Hardswish: lambda m: Activation("hardswish"),
    torch.nn.Hardsigmoid: lambda m: Activation("hardsigmoid"),
    torch.nn.SiLU: lambda m: Activation("silu"),
    torch.nn.Mish: lambda m: Activation("mish"),
    torch.nn.ELU: lambda m: Activation("elu", (float(m.alpha),)),
    torch.nn.CELU: lambda m: Activation("celu", (float(m.alpha),)),
    torch.nn.SELU: lambda m: Activation("selu"),
    torch.nn.GELU: lambda m: Activation("gelu_tanh" if m.approximate == "tanh" else "gelu"),
    torch.nn.Sigmoid: lambda m: Activation("sigmoid"),
    torch.nn.Tanh: lambda m: Activation("tanh"),
    torch.nn.Softplus: lambda m: Activation("softplus", (float(m.beta), float(m.threshold))),
}


def _computes_as(cls: type[Module], base: type[Module], methods: tuple[str, ...]) -> bool:
    """Whether a class derives from ``base`` of torch and computes by torch's methods, or by ours in their place."""
    if not issubclass(cls, base) or cls.__module__ == parametrize.__name__:
        return False
    ours = getattr(nn, base.__name__)
    return all(getattr(cls, name, None) in (getattr(base, name, None), getattr(ours, name, None)) for name in methods)


class _Ranks(dict[type[Module], int]):
    """For each class its number of spatial dimensions, 0 for another kind of layer; found once."""

    def __init__(self, kind: str, methods: tuple[str, ...]) -> None:
        self.kinds = [getattr(torch.nn, f"{kind}{d}d") for d in (1, 2, 3)]
        self.methods = (*methods, "forward", "__call__")

    def of(self, cls: type[Module]) -> int:
        rank = self.get(cls)
        if rank is None:
            fitting = (d for d, kind in enumerate(self.kinds, 1) if _computes_as(cls, kind, self.methods))
            rank = self[cls] = next(fitting, 0)
        return rank


_CONVS = _Ranks("Conv", ("_conv_forward",))
_NORMS = _Ranks("BatchNorm", ("_normalize", "_check_input_dim"))


def is_conv(module: Module) -> int:
    """The number of spatial dimensions of a convolution that can be joined; 0 for other layers."""
    return _CONVS.of(type(module))


def is_norm(module: Module) -> int:
    """The same of a batch normalization; ``SyncBatchNorm`` is none."""
    return _NORMS.of(type(module))


def looks_like_conv(module: Module) -> bool:
    """Whether this is a convolution of any class, torch's or ours."""
    return isinstance(module, torch.nn.modules.conv._ConvNd) and not isinstance(
        module, torch.nn.modules.conv._ConvTransposeNd
    )


def looks_like_norm(module: Module) -> bool:
    """Whether this is a batch norm of any class, torch's or ours."""
    return isinstance(module, TorchBatchNorm)


_numbers_of: dict[type[Module], Callable[[Any], Activation] | None] = {}


def activation_of(module: Module) -> Activation | None:
    """What an activation layer computes; nothing, where it cannot be joined."""
    cls = type(module)
    if cls not in _numbers_of:
        base = next((base for base in cls.__mro__ if base in _ACTIVATIONS), None)
        joinable = base is not None and _computes_as(cls, base, ("forward", "__call__"))
        _numbers_of[cls] = _ACTIVATIONS[base] if joinable else None
    numbers = _numbers_of[cls]
    return None if numbers is None else numbers(module)


def reason_not_plain(module: Module) -> str | None:
    """Why a call of a layer is more than its class says."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return "has a forward of its own"
    return None
