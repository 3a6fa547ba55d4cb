"""Choices of algorithm that are the user's to make, as ``torch.backends`` has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import scratchnn.ops  # noqa: F401 - registers the operators
from scratchnn.ops._recompute import layers_recompute


class Conv:
    """Of convolutions: ``scratchnn.backends.conv`` is the one there is."""

    @property
    def allow_winograd(self) -> bool:
        """Whether convolutions of stride 1 may be computed by Winograd's F(4x4, 3x3); default on.

        It serves those of 3x3 in height and width, in 2d and 3d, and takes a quarter of the multiplications (Lavin &
        Gray 2015). Its relative error is about 3 times torch's, whatever the number of channels, and up to 4 times on
        images as small as 4x4.
        An infinity or NaN in the input spoils all outputs of the 4x4 tiles that read it, and very large inputs
        overflow earlier, and a gradient that is zero may come out as a rounding error. Switched off, such convolutions
        are summed directly. The setting holds for the whole process.
        """
        return torch.ops.scratchnn.allow_winograd()

    @allow_winograd.setter
    def allow_winograd(self, allow: bool) -> None:
        torch.ops.scratchnn.allow_winograd(allow)

    @property
    def recompute_input(self) -> bool:
        """Whether a convolution may compute its input again in the backward pass, rather than keep it; default on.

        It does so where the input is the output of a batch norm in training, with a ReLU, ReLU6 or Hardtanh after it or
        none, takes a MiB or more, and has each of its numbers multiplied by 256 weights or more: the time it takes is
        lost in the convolution's own then, and of two tensors kept for the backward pass one is left. The numbers
        computed are the same to the last bit. Writing to the activation behind autograd's back, through ``.data`` or a
        NumPy array, does not reach the backward pass. The setting holds for forward passes of the whole process.
        """
        return layers_recompute()

    @recompute_input.setter
    def recompute_input(self, allow: bool) -> None:
        layers_recompute(allow)

    @contextmanager
    def flags(self, *, allow_winograd: bool | None = None, recompute_input: bool | None = None) -> Iterator[None]:
        """The settings for a while, as ``torch.backends.cudnn.flags``; those not given stay as they are.

        Args:
            allow_winograd, recompute_input: as the attributes.

        Returns:
            a context manager, which puts the settings back where it ends.

        Example:
            >>> layer, x = scratchnn.nn.Conv2d(32, 32, 3), torch.zeros(1, 32, 8, 8)
            >>> x[0, 0, 0, 0] = torch.inf
            >>> with scratchnn.backends.conv.flags(allow_winograd=False):
            ...     int((~layer(x).isfinite()).any(1).sum())  # the one pixel that sees it
            1
        """
        before = self.allow_winograd, self.recompute_input
        try:
            if allow_winograd is not None:
                self.allow_winograd = allow_winograd
            if recompute_input is not None:
                self.recompute_input = recompute_input
            yield
        finally:
            self.allow_winograd, self.recompute_input = before


conv = Conv()
