"""What ``torch.utils.flop_counter`` counts of our operators: the same as of torch's, forward and backward.

torch counts products of matrices and convolutions, two operations for each product of two numbers that is added up, and
nothing else. It counts the weight gradient of a grouped convolution as if it were not grouped, and so do we; it does
not count bilinear layers, of which we count the product with the weight.

Importing the counter takes torch longer than importing us (it loads Triton). So the formulas are registered when
somebody else has imported it, now or later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from scratchnn.ops._when_imported import when_imported

Shape = Sequence[int]


def _register() -> None:
    from torch.utils.flop_counter import conv_flop_count, register_flop_formula

    ops = torch.ops.scratchnn

    def exchanged(shape: Shape) -> list[int]:
        """Samples and channels change places."""
        return [shape[1], shape[0], *shape[2:]]

    @register_flop_formula(ops.conv)
    def conv(input: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
        return conv_flop_count(input, weight, out_shape)

    @register_flop_formula(ops.conv_transpose)
    def conv_transpose(input: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
        return conv_flop_count(input, weight, out_shape, transposed=True)

    @register_flop_formula(ops.conv_weight_grad)
    def conv_weight_grad(grad: Shape, input: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
        """The convolution of the input with the gradient."""
        return conv_flop_count(exchanged(input), exchanged(grad), exchanged(out_shape))

    @register_flop_formula([ops.linear, ops.linear_input_grad])
    def linear(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * math.prod(input[:-1]) * math.prod(weight)

    @register_flop_formula(ops.linear_weight_grad)
    def linear_weight_grad(grad: Shape, input: Shape, *_: Any, **__: Any) -> int:
        return 2 * math.prod(grad) * input[-1]

    @register_flop_formula(ops.bilinear)
    def bilinear(input1: Shape, input2: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * math.prod(input1[:-1]) * math.prod(weight)

    @register_flop_formula(ops.bilinear_weight_grad)
    def bilinear_weight_grad(grad: Shape, input1: Shape, input2: Shape, **_: Any) -> int:
        return 2 * math.prod(grad) * input1[-1] * input2[-1]


when_imported("torch.utils.flop_counter", _register)
