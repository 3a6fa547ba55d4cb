"""torchvision's models on our layers: what they give and how they learn is as exact as on torch's own.

Each is compared with itself in float64 as ``scratchnn verify`` does it: output in evaluation, gradients and running
statistics of a training step, and every layer by itself, none with more than four times torch's error.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import pytest

import scratchnn
from scratchnn.testing import compare_models
from scratchnn.verify.command import GROUPS
from scratchnn.verify.target import load

QUICK = ["mnasnet0_5", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
SLOW = [name for name in GROUPS["torchvision:all"] if name not in QUICK]

MODES = ["convert", "override"]


def check(name: str, mode: str, seeds: int) -> None:
    target = load(f"torchvision:{name}")
    ours, routes = copy.deepcopy(target.model), []

    def override() -> scratchnn.override:
        routes.append(scratchnn.override())
        return routes[-1]

    if mode == "convert":
        conversion = scratchnn.convert(ours)
        assert not conversion.missed, conversion
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's own
        report = compare_models(
            ours,
            target.model,
            target.inputs.evaluation,
            training_inputs=target.inputs.training,
            loss=target.inputs.loss,
            seeds=seeds,
            context=nullcontext if mode == "convert" else override,
        )
    for routed in routes:
        assert not routed.left, routed
    assert report.passed, f"{report}\n" + "\n".join(report.failures[:10])


@pytest.mark.parametrize("mode", ["convert", "override"])
@pytest.mark.parametrize("name", QUICK)
def test_a_small_model(name: str, mode: str) -> None:
    check(name, mode, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["convert", "override"])
@pytest.mark.parametrize("name", SLOW)
def test_a_model(name: str, mode: str) -> None:
    check(name, mode, seeds=3)
