"""``torch.fx`` records our layers and functions as it records torch's: each as one call.

It traces into every function, and into every layer whose class is outside of ``torch.nn``. In ours that would end at
the first check of a shape.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch.fx
from torch.nn import Module

from scratchnn import functional, nn, ops

__all__ = ["install"]


def install() -> None:
    """Tell ``torch.fx`` of scratchnn's layers and functions. Done once, when scratchnn is imported."""
    _keep_layers_whole()
    for module in (functional, ops.conv, ops.pool, ops.norm, ops.linear, ops.activation):
        _keep_functions_whole(module, module.__all__)
    # What the layers call where torch.nn.functional has no function for it.
    _keep_functions_whole(nn.conv, ["convolve", "convolve_transposed"])
    _keep_functions_whole(nn.pool, ["pool_average", "pool_max"])
    _keep_functions_whole(nn.norm, ["layer_norm_2d", "sync_batch_norm"])


def _keep_functions_whole(module: ModuleType, names: list[str]) -> None:
    for name in names:
        # torch.fx.wrap is for the module that looks the function up, and takes it from the frame that calls.
        exec("wrap(name)", vars(module), {"wrap": torch.fx.wrap, "name": name})


def _keep_layers_whole() -> None:
    # There is no such registry for layers: the rule itself is extended, for all tracers that build on it.
    torchs = torch.fx.Tracer.is_leaf_module

    @functools.wraps(torchs)
    def is_leaf_module(self: torch.fx.Tracer, m: Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("scratchnn.nn.") or torchs(self, m, module_qualified_name)

    torch.fx.Tracer.is_leaf_module = is_leaf_module
