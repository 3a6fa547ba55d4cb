"""The derivation that all normalizations share.

A normalization subtracts a mean and divides by a standard deviation, over one index set after the other. The input
is seen as samples x groups x channels of a group x pixels, N x G x K x P; weight and bias have a number for each of
the G K channels, and what differs is only which numbers share their statistics:

=========================================  =====================  ======================
batch norm                                 G = C, K = 1           over N, K and P
group norm; instance norm has G = C        C = G K                over K and P
layer norm, RMS norm                       N rows, G = 1, P = 1   over K (and P)
layer norm over the channels of an image   G = 1                  over K
=========================================  =====================  ======================

Names: ``x``, ``y``, ``w`` and ``b`` input, output, weight and bias, ``g`` the gradient that arrives at ``y``, ``dx``,
``dw`` and ``db`` those that leave; ``mu`` and ``v`` the mean and (biased) variance, ``r = 1 / sqrt(v + eps)``,
``x_hat = (x - mu) r``, ``E`` the mean over an index set, and ``P(u) = u - E[u] - x_hat E[u x_hat]``, the part of ``u``
that a change of the statistics does not undo. Tangents of forward differentiation are ``x'`` in formulas and ``x_`` in
code. ``P`` is its own adjoint, and the derivative of ``x_hat`` is ``r P``. Where the mean counts as zero (RMS norm) the
term ``E[u]`` is missing, and where the statistics are constants (evaluation) ``P(u) = u``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from scratchnn.ops._common import unfold

__all__ = ["Terms", "kept", "like", "parameter_dtype"]


def like(input: Tensor) -> Tensor:
    """A new tensor of the input's shape, dense in its memory format."""
    return torch.empty_like(input, memory_format=suggest_memory_format(input))


def parameter_dtype(input: Tensor) -> torch.dtype:
    """What is computed in: float32 at the least."""
    return input.dtype if input.dtype == torch.float64 else torch.float32


def kept(input: Tensor, mean: Tensor) -> Tensor | None:
    """What of the mean is kept for the backward pass, which measures it again and asks where to sum around.

    A number that rounding took little from, in float32; beside narrower inputs any of the set's own numbers will do.
    """
    return mean if input.dtype in (torch.float32, torch.float64) else None


class Terms:
    """The names of the derivation as differentiable tensors, in float32 at the least.

    Args:
        shape: N, G, K and P.
        over: of these dimensions, those that share statistics.
        mean: one number for each index set, or ``None`` where it is not known.
        var: the variance, or E[x^2] where not centred.
        centred: the mean does not count as zero.
        constant: mean and variance do not depend on the input.
    """

    def __init__(
        self,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor | None,
        var: Tensor,
        eps: float,
        shape: Sequence[int],
        over: Sequence[int],
        centred: bool = True,
        constant: bool = False,
    ) -> None:
        self.input, self.shape, self.over, self.constant = input, tuple(shape), list(over), constant
        self.weight = weight
        self.centred = centred
        self.dtype = parameter_dtype(input)
        sets = [1 if d in self.over else size for d, size in enumerate(self.shape)]
        x = self.view(input)
        if centred and mean is not None:
            x = (x - mean.to(torch.promote_types(mean.dtype, self.dtype)).reshape(sets)).to(self.dtype)
        if constant:
            self.r = (var.double() + eps).rsqrt().to(self.dtype).reshape(sets)
        else:  # measured anew, from the centred numbers: so all this can be differentiated further
            x = x - self.E(x) if self.centred else x
            self.r = (self.E(x * x) + eps).rsqrt()
        self.x_hat = x * self.r
        self.w: Tensor | float = 1.0 if weight is None else self.per_channel(weight)

    def view(self, u: Tensor) -> Tensor:
        """A tensor like the input, as N x G x K x P."""
        return u.to(self.dtype).reshape(self.shape)

    def back(self, u: Tensor) -> Tensor:
        """Of N x G x K x P, the shape, dtype and layout of the input."""
        result = u.expand(self.shape).reshape(self.input.shape).to(self.input.dtype)
        if suggest_memory_format(self.input) == torch.contiguous_format:
            return result.contiguous()
        return result.movedim(1, -1).contiguous().movedim(-1, 1)  # is_grads_batched knows no contiguous(format)

    def per_channel(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.dtype).reshape(1, self.shape[1], self.shape[2], 1)

    def sum(self, u: Tensor) -> Tensor:
        """Over all that a weight is shared by: the gradient of a parameter."""
        return u.expand(self.shape).sum((0, 3)).reshape(-1)

    def E(self, u: Tensor) -> Tensor:
        return u.mean(self.over, keepdim=True)

    def P(self, u: Tensor) -> Tensor:
        if self.constant:
            return u
        u_hat = u - self.x_hat * self.E(u * self.x_hat)
        return u_hat - self.E(u) if self.centred else u_hat

    def change(self, u: Tensor, g: Tensor) -> Tensor | float:
        """The change of ``r P(g)`` along a change ``u`` of x; it is symmetric in ``u`` and its adjoint's argument.

        From ``dr/dx = -r^2 x_hat / n``: ``-r^2 (P(u) E[g x_hat] + P(g) E[u x_hat] + E[u P(g)] x_hat)``.
        """
        if self.constant:
            return 0.0
        P, E, x_hat = self.P, self.E, self.x_hat
        return -self.r * self.r * (P(u) * E(g * x_hat) + P(g) * E(u * x_hat) + E(u * P(g)) * x_hat)

    def output_tangent(self, x_: Tensor | None, w_: Tensor | None, b_: Tensor | None) -> Tensor:
        """``y' = w r P(x') + w' x_hat + b'``."""
        y_ = torch.zeros_like(self.x_hat)
        if x_ is not None:
            y_ = y_ + self.w * self.r * self.P(self.view(x_))
        if w_ is not None:
            y_ = y_ + self.per_channel(w_) * self.x_hat
        if b_ is not None:
            y_ = y_ + self.per_channel(b_)
        return self.back(y_)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """``r P(w g)``."""
        return self.back(self.r * self.P(self.w * self.view(grad)))

    def second_gradients(
        self, grad: Tensor, u: Tensor | None, a: Tensor | None, c: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """For the gradients ``u`` of dx, ``a`` of dw and ``c`` of db, those of g, x and w.

        ``dx = r P(w g)``, ``dw`` and ``db`` are the sums of ``g x_hat`` and of ``g``. With ``P`` its own adjoint,
        ``<u, dx> = <r P(u), w g>``, which gives those of g and w; and x gets ``change`` from dx, ``r P(a g)`` from dw.
        """
        g = self.view(grad)
        dg, dx, dw = torch.zeros_like(g), torch.zeros_like(g), None
        if u is not None:
            u = self.view(u)
            dg = dg + self.w * self.r * self.P(u)
            if self.weight is not None:
                dw = self.sum(self.r * self.P(u) * g).to(self.weight.dtype).reshape(self.weight.shape)
            dx = dx + self.change(u, self.w * g)
        if a is not None:
            a = self.per_channel(a)
            dg = dg + a * self.x_hat
            dx = dx + self.r * self.P(a * g)
        if c is not None:
            dg = dg + self.per_channel(c)
        return self.back(dg).to(grad.dtype), self.back(dx), dw

    def gradient_tangents(
        self, grad: Tensor, g_: Tensor | None, x_: Tensor | None, w_: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tangents of dx, dw and db along those of g, x and w: the adjoint of :meth:`second_gradients`."""
        g = self.view(grad)
        dx, dw, db = torch.zeros_like(g), self.sum(torch.zeros_like(g)), self.sum(torch.zeros_like(g))
        if g_ is not None:
            g_ = self.view(g_)
            dx = dx + self.r * self.P(self.w * g_)
            dw = dw + self.sum(g_ * self.x_hat)
            db = db + self.sum(g_)
        if x_ is not None:
            x_ = self.view(x_)
            dx = dx + self.change(x_, self.w * g)
            dw = dw + self.sum(self.r * self.P(x_) * g)
        if w_ is not None:
            dx = dx + self.r * self.P(self.per_channel(w_) * g)
        parameter = self.dtype if self.weight is None else self.weight.dtype
        return self.back(dx), dw.to(parameter), db.to(parameter)


class Fold:
    """Folds a vmapped dimension of size ``b`` into the channels: N x C x * becomes N x b C x *."""

    def __init__(self, size: int) -> None:
        self.size = size

    def _lead(self, tensor: Tensor, dim: int | None, position: int) -> Tensor:
        if dim is not None:
            return tensor.movedim(dim, position)
        return tensor.unsqueeze(position).expand(*tensor.shape[:position], self.size, *tensor.shape[position:])

    def input(self, tensor: Tensor, dim: int | None) -> Tensor:
        return self._lead(tensor, dim, 1).flatten(1, 2)

    def parameter(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        return None if tensor is None else self._lead(tensor, dim, 0).flatten(0, 1)

    def split(self, tensor: Tensor, dim: int) -> Tensor:
        return unfold(tensor, dim, self.size)
