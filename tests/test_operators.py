"""Every registered operator is checked: schema, fake kernel, registration of its derivative, tracing.

The families' test files list sample calls in ``OPERATOR_SAMPLES``: operator name -> list of argument tuples. An
operator without samples fails here, so none can be added untested.
"""

from __future__ import annotations

import importlib

import pytest
import torch

FAMILIES = ("conv", "pool", "norm", "linear", "activation")
# Those that operate on no tensor.
SETTINGS = {"allow_winograd", "explain_conv", "instruction_set", "kernels_for", "request_naive_kernels"}


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("scratchnn::") for name in names if name.startswith("scratchnn::")} - SETTINGS


SAMPLES = {
    name: calls
    for family in FAMILIES
    for name, calls in importlib.import_module(f"test_{family}").OPERATOR_SAMPLES.items()
}


def test_every_operator_has_samples() -> None:
    assert registered() == set(SAMPLES)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.scratchnn, name).default
    for arguments in SAMPLES[name]():
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_raw_operators_refuse_to_be_differentiated(name: str) -> None:
    operator = getattr(torch.ops.scratchnn, name).default

    def differentiable(argument: object) -> object:
        if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
            return argument
        return argument.clone().requires_grad_() * 1  # not a leaf: those may not be written to in place

    arguments = [differentiable(argument) for argument in SAMPLES[name]()[0]]
    if not any(isinstance(argument, torch.Tensor) and argument.requires_grad for argument in arguments):
        return  # reads no floating tensor

    def differentiate() -> None:
        outputs = operator(*arguments)
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        first.sum().backward()

    if name.endswith("_indices"):
        return  # integers, which have no derivative
    with pytest.raises(RuntimeError, match="not implemented"):
        differentiate()
