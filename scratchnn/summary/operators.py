"""How receptive fields go through operators, torch's and ours: a rule for each kind.

An operator without a rule counts as mixing everything: each of its outputs sees what all numbers of its inputs saw.
So a field may come out larger than it is, never smaller. Two conventions: batch normalization by running statistics
counts as at inference, where it looks at one number at a time; and parameters are no input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from scratchnn.ops import _elementwise
from scratchnn.summary.field import Field, joined
from scratchnn.summary.reach import adaptive, convolved, interpolated, nearest, transposed

__all__ = ["Call", "fields_of_outputs", "tensors_in"]


class Call(NamedTuple):
    """A call of an operator.

    Attributes:
        name: of the operator, without namespace, overload and the underscore of operations in place.
        arguments: by the names of the schema, defaults included.
        outputs: the tensors it gave.
        field: tells what a tensor sees.
        layer: the module that called it.
    """

    name: str
    arguments: Mapping[str, Any]
    outputs: list[Tensor]
    field: Callable[[Tensor], Field]
    layer: Module | None

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return next(iter(self.arguments.values()))

    @property
    def sizes(self) -> tuple[torch.Size, torch.Size]:
        """Of the first argument and the first output."""
        return self.input.shape, self.outputs[0].shape


Rule = Callable[[Call], "Field | list[Field]"]
_rules: dict[str, tuple[Rule, tuple[str, ...]]] = {}


def _rule(names: str, *read: str) -> Callable[[Rule], Rule]:
    """Registers a rule for some operators.

    Args:
        names: of the operators.
        read: the arguments that the rule looks at beside the first; all others count as mixed.
    """

    def register(rule: Rule) -> Rule:
        for name in names.split():
            _rules[name] = rule, read
        return rule

    return register


def fields_of_outputs(call: Call, func: Any) -> list[Field]:
    """What the outputs of an operator see, one by one."""
    seen = {name: [call.field(tensor) for tensor in tensors_in(value)] for name, value in call.arguments.items()}
    if not any(field.reaches for fields in seen.values() for field in fields) or _is_new(call.name):
        return [Field()] * len(call.outputs)
    if call.name in _rules:
        rule, read = _rules[call.name]
        names = {next(iter(call.arguments)), *read}
        found = rule(call)
    elif torch.Tag.pointwise in func.tags:
        names = set(seen)
        found = _pointwise(call)
    else:
        names, found = set(), Field()
    # A second output of another shape, as a statistic, is nobody's position.
    shape = call.outputs[0].shape
    if isinstance(found, Field):
        found = [found if output.shape == shape else found.everywhere() for output in call.outputs]
    rest = [field.everywhere() for name, fields in seen.items() if name not in names for field in fields]
    return [joined([field, *rest]) for field in found] if rest else found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of an argument or a result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def _is_new(name: str) -> bool:
    """Whether an operator only asks a tensor for its shape."""
    return name.startswith("new_") or name.endswith("_like") or name in ("fill", "zero", "normal", "uniform")


def _each(value: int | Sequence[int], rank: int) -> Sequence[int]:
    """One number for every dimension."""
    values = [value] if isinstance(value, int) else value
    return list(values) * rank if len(values) == 1 else values


def _aligned(field: Field, shape: Sequence[int], out: Sequence[int]) -> Field:
    """A tensor broadcast to another shape."""
    before = len(out) - len(shape)
    stretched = [dim for dim, size in enumerate(shape) if size == 1 and out[before + dim] != 1]
    return field.mixed_along(stretched).moved(lambda dim: dim + before)


def _swept(field: Field, call: Call, windows: Sequence[Mapping[str, Any]]) -> Field:
    """Windows over the last dimensions."""
    before, after = call.sizes
    for dim, of_dim in enumerate(windows, start=len(before) - len(windows)):
        field = field.through(dim, (before[dim], after[dim]), of_dim)
    return field


# Number by number.


def _pointwise(call: Call) -> Field:
    out = call.outputs[0].shape
    operands = [tensor for value in call.arguments.values() for tensor in tensors_in(value)]
    return joined([_aligned(call.field(tensor), tensor.shape, out) for tensor in operands])


_ELEMENTWISE = " ".join(row.name for row in _elementwise.ROWS)


@_rule(
    f"{_ELEMENTWISE} alias detach clone _to_copy contiguous lift_fresh dropout native_dropout feature_dropout bernoulli"
    " log_sigmoid_forward rrelu_train rrelu_with_noise prelu _prelu_kernel channel_shuffle native_channel_shuffle"
    " local_response_norm"
)
def _same(call: Call) -> Field:
    return call.field(call.input)


@_rule("copy", "src")
def _copy(call: Call) -> Field:
    source = call.arguments["src"]
    return _aligned(call.field(source), source.shape, call.outputs[0].shape)


@_rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm_eval", "running_mean"
)
def _batch_norm(call: Call) -> list[Field]:
    field = call.field(call.input)
    if call.arguments.get("running_mean") is None:  # statistics of the input at inference as well
        field = field.mixed_along([0, *range(2, call.input.dim())])
    return [field] + [Field()] * (len(call.outputs) - 1)


@_rule("batch_norm_train")
def _our_batch_norm(call: Call) -> list[Field]:
    field = call.field(call.input)
    if isinstance(call.layer, _BatchNorm) and call.layer.running_mean is None:
        field = field.mixed_along([0, *range(2, call.input.dim())])
    return [field] + [Field()] * (len(call.outputs) - 1)


@_rule("batch_norm_add_clamp_train batch_norm_add_clamp")
def _ended_batch_norm(call: Call) -> list[Field]:
    field, *others = _our_batch_norm(call)
    residual = call.arguments["residual"]
    return [field if residual is None else joined([field, call.field(residual)]), *others]


# Windows.


@_rule("convolution _convolution convolution_overrideable")
def _convolution(call: Call) -> Field:
    rank = call.input.dim() - 2
    kernel = call.arguments["weight"].shape[2:]
    numbers = [_each(call.arguments[name], rank) for name in ("stride", "padding", "dilation")]
    windows = transposed if call.arguments["transposed"] else convolved
    return _swept(
        call.field(call.input).mixed_along([1]), call, [windows(*of) for of in zip(kernel, *numbers, strict=True)]
    )


@_rule("conv conv_transpose")
def _our_convolution(call: Call) -> Field:
    kernel, of = call.arguments["weight"].shape[2:], call.arguments
    windows = transposed if call.name == "conv_transpose" else convolved
    numbers = zip(kernel, of["stride"], of["padding"][::2], of["dilation"], strict=True)
    return _swept(call.field(call.input).mixed_along([1]), call, [windows(*of_dim) for of_dim in numbers])


@_rule(
    "max_pool max_pool_with_offsets avg_pool avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices"
    " max_pool3d_with_indices"
)
def _pool(call: Call) -> Field:
    of = call.arguments
    kernel = of["kernel"] if "kernel" in of else of["kernel_size"]
    named = re.search(
        r"pool(\d)d", call.name
    )  # torch's operators tell their rank, ours have a number for each dimension
    rank = int(named[1]) if named else len(kernel)
    kernel = _each(kernel, rank)
    stride = _each(of["stride"], rank) if of["stride"] else kernel
    numbers = kernel, stride, _each(of["padding"], rank), _each(of.get("dilation", 1), rank)
    return _swept(call.field(call.input), call, [convolved(*of_dim) for of_dim in zip(*numbers, strict=True)])


@_rule(
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
    " adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool adaptive_max_pool adaptive_max_pool_with_offsets"
)
def _adaptive(call: Call) -> Field:
    before, after = call.sizes
    rank = len(call.arguments["output_size"])
    dims = range(len(before) - rank, len(before))
    field = call.field(call.input).mixed_along(dim for dim in dims if after[dim] == 1)
    return _swept(field, call, [adaptive(before[dim], after[dim]) for dim in dims])


@_rule("upsample_nearest1d upsample_nearest2d upsample_nearest3d")
def _nearest(call: Call) -> Field:
    before, after = call.sizes
    return _swept(call.field(call.input), call, [nearest(*sizes) for sizes in zip(before[2:], after[2:], strict=True)])


@_rule("upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d")
def _interpolated(call: Call) -> Field:
    before, after = call.sizes
    corners, around = call.arguments["align_corners"], int("cubic" in call.name)
    windows = [interpolated(*sizes, corners, around) for sizes in zip(before[2:], after[2:], strict=True)]
    return _swept(call.field(call.input), call, windows)


@_rule(
    "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d"
    " replication_pad3d"
)
def _padded(call: Call) -> Field:
    amounts = call.arguments["pad" if "pad" in call.arguments else "padding"]
    return _swept(call.field(call.input), call, [convolved(1, 1, amount, 1) for amount in reversed(amounts[::2])])


@_rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Field:
    before, after = call.sizes
    field = call.field(call.input).mixed_along([len(before) - 3])
    return _swept(field, call, [nearest(*sizes) for sizes in zip(before[-2:], after[-2:], strict=True)])


@_rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Field:
    factor = call.arguments["downscale_factor"]
    return _swept(call.field(call.input), call, [convolved(factor, factor, 0, 1)] * 2)


# Sums over dimensions.


@_rule(
    "mean sum amax amin var var_mean std std_mean logsumexp linalg_vector_norm norm max min median prod any all argmax"
    " argmin"
)
def _reduced(call: Call) -> Field:
    rank = call.input.dim()
    dims = call.arguments.get("dim")
    dims = list(range(rank)) if dims is None or dims == [] else [d % rank for d in _each(dims, 1)]
    field = call.field(call.input).mixed_along(dims)
    if call.arguments.get("keepdim"):
        return field
    left = [dim for dim in range(rank) if dim not in dims]
    return field.moved(lambda dim: left.index(dim) if dim in left else None)


@_rule("_softmax _log_softmax _safe_softmax softmax softmin log_softmax glu maxout cumsum cumprod logcumsumexp sort")
def _along_one(call: Call) -> Field:
    return call.field(call.input).mixed_along([call.arguments["dim"] % call.input.dim()])


@_rule("flip roll")
def _along_some(call: Call) -> Field:
    rank = call.input.dim()
    return call.field(call.input).mixed_along([dim % rank for dim in call.arguments["dims"]] or range(rank))


@_rule("native_layer_norm _fused_rms_norm")
def _layer_norm(call: Call) -> Field:
    rank = call.input.dim()
    return call.field(call.input).mixed_along(range(rank - len(call.arguments["normalized_shape"]), rank))


@_rule("native_group_norm")
def _group_norm(call: Call) -> Field:
    return call.field(call.input).mixed_along(range(1, call.input.dim()))


@_rule("normalize")
def _normalize(call: Call) -> Field:
    rank, sharing = call.input.dim(), call.arguments["sharing"]
    if sharing == "pixel":
        dims = [1]
    elif sharing == "group":
        dims = range(1, rank)
    else:  # rows: the last dimensions, as many as make one
        row = math.prod(call.arguments["shape"][1:])
        dims = range(next(d for d in reversed(range(rank + 1)) if math.prod(call.input.shape[d:]) == row), rank)
    return call.field(call.input).mixed_along(dims)


# Products of matrices.


@_rule("mm bmm addmm baddbmm mv", "mat1", "mat2", "batch1", "batch2", "vec")
def _product(call: Call) -> Field:
    *added, left, right = [value for value in call.arguments.values() if isinstance(value, Tensor)]
    out = call.outputs[0].shape
    fields = [_aligned(call.field(tensor), tensor.shape, out) for tensor in added]
    fields.append(call.field(left).mixed_along([left.dim() - 1]))
    fields.append(call.field(right).mixed_along([max(right.dim() - 2, 0)]))
    return joined(fields)


@_rule("linear")
def _linear(call: Call) -> Field:
    return call.field(call.input).mixed_along([call.input.dim() - 1])


@_rule("bilinear", "input2")
def _bilinear(call: Call) -> Field:
    inputs = call.arguments["input1"], call.arguments["input2"]
    return joined([call.field(tensor).mixed_along([tensor.dim() - 1]) for tensor in inputs])


# The same numbers elsewhere.


@_rule("cat")
def _cat(call: Call) -> Field:
    dim = call.arguments["dim"] % call.outputs[0].dim()
    return joined([call.field(tensor).mixed_along([dim]) for tensor in call.arguments["tensors"]])


@_rule("stack")
def _stack(call: Call) -> Field:
    new = call.arguments["dim"] % call.outputs[0].dim()
    return joined([call.field(tensor).moved(lambda dim: dim + (dim >= new)) for tensor in call.arguments["tensors"]])


@_rule("view _unsafe_view reshape _reshape_alias")
def _view(call: Call) -> Field:
    return call.field(call.input).viewed(*call.sizes)


@_rule("expand")
def _expand(call: Call) -> Field:
    return _aligned(call.field(call.input), *call.sizes)


@_rule("permute transpose t")
def _permute(call: Call) -> Field:
    rank, of = call.input.dim(), call.arguments
    order = list(range(rank))
    if call.name == "permute":
        order = [dim % rank for dim in of["dims"]]
    else:
        a, b = (of["dim0"] % rank, of["dim1"] % rank) if call.name == "transpose" else (0, rank - 1)
        order[a], order[b] = b, a
    return call.field(call.input).moved(order.index)


@_rule("unsqueeze")
def _unsqueeze(call: Call) -> Field:
    new = call.arguments["dim"] % call.outputs[0].dim()
    return call.field(call.input).moved(lambda dim: dim + (dim >= new))


@_rule("squeeze")
def _squeeze(call: Call) -> Field:
    shape = call.input.shape
    dims = [dim % len(shape) for dim in _each(call.arguments.get("dim", range(len(shape))), 1)]
    left = [dim for dim, size in enumerate(shape) if not (size == 1 and dim in dims)]
    return call.field(call.input).moved(lambda dim: left.index(dim) if dim in left else None)


@_rule("slice")
def _slice(call: Call) -> Field:
    (before, after), of = call.sizes, call.arguments
    dim = of["dim"] % len(before)
    if before == after:
        return call.field(call.input)
    start, _, step = slice(of["start"], of["end"], of["step"]).indices(before[dim])
    windows = {"first": lambda o: start + o * step, "last": lambda o: start + o * step, "step": step}
    return call.field(call.input).through(dim, (before[dim], after[dim]), windows)


@_rule("select")
def _select(call: Call) -> Field:
    gone = call.arguments["dim"] % call.input.dim()
    at = call.arguments["index"] % call.input.shape[gone]
    one = {"first": lambda o: o + at, "last": lambda o: o + at}
    field = call.field(call.input).through(gone, (call.input.shape[gone], 1), one)
    return field.moved(lambda dim: None if dim == gone else dim - (dim > gone))


@_rule("split split_with_sizes")
def _split(call: Call) -> list[Field]:
    dim, start, fields = call.arguments["dim"] % call.input.dim(), 0, []
    for output in call.outputs:
        part = {"first": lambda o, start=start: o + start, "last": lambda o, start=start: o + start}
        sizes = call.input.shape[dim], output.shape[dim]
        fields.append(call.field(call.input).through(dim, sizes, part))
        start += output.shape[dim]
    return fields


@_rule("unbind")
def _unbind(call: Call) -> Field:
    gone = call.arguments["dim"] % call.input.dim()
    return call.field(call.input).moved(lambda dim: None if dim == gone else dim - (dim > gone))
