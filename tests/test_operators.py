"""Every registered operator is checked: schema, fake kernel, registration of its derivative, tracing.

The families' test files list sample calls in ``OPERATOR_SAMPLES``: operator name -> list of argument tuples. An
operator without samples fails here, so none can be added untested.
"""

from __future__ import annotations

import importlib

import pytest
import torch

FAMILIES = ("conv", "pool", "norm", "linear", "activation")
SETTINGS = {"allow_winograd", "instruction_set", "request_naive_kernels"}  # operate on no tensor


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
    arguments = [
        argument.clone().requires_grad_()
        if isinstance(argument, torch.Tensor) and argument.is_floating_point()
        else argument
        for argument in SAMPLES[name]()[0]
    ]
    outputs = operator(
        *(
            arguments
            if not name.endswith("_")
            else [a * 1 if isinstance(a, torch.Tensor) else a for a in arguments]
        )
    )
    if outputs is None:
        return
    first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    if first.requires_grad:
        with pytest.raises(RuntimeError, match="not implemented"):
            first.sum().backward()
