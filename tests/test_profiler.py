"""What torch's profiler shows of our layers: their operators with shapes, their gradients by name."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

import scratchnn.nn as nn


def test_operators_have_shapes_and_gradients_names() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
    )
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    shapes = {event.name: event.input_shapes for event in profiler.events()}
    assert shapes["scratchnn::conv"][:3] == [[2, 3, 8, 8], [8, 3, 3, 3], [8]]
    assert shapes["scratchnn::linear"] == [[2, 72], [5, 72], [5]]
    assert shapes["scratchnn::max_pool_backward"][:2] == [[2, 8, 3, 3], [2, 8, 3, 3]]
    gradients = {"ConvBackward", "BatchNormTrainBackward", "reluBackward", "MaxPoolBackward", "LinearBackward"}
    assert gradients <= set(shapes)
    averages = {average.key: average.count for average in profiler.key_averages()}
    assert averages["scratchnn::channel_sum"] == 2  # the gradients of two biases
