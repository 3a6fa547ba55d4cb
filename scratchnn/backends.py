"""Choices of algorithm that are the user's to make, as ``torch.backends`` has them."""

from __future__ import annotations

import torch

import scratchnn.ops  # noqa: F401 - registers the operators


class Conv:
    """Of convolutions: ``scratchnn.backends.conv`` is the one there is."""

    @property
    def allow_winograd(self) -> bool:
        """Whether 3x3 convolutions of stride 1 may be computed by Winograd's F(4x4, 3x3); default on.

        In float32 and half precision. It takes a quarter of the multiplications (Lavin & Gray 2015). Its relative
        error is about 3 times torch's, whatever the number of channels, and up to 4 times on images as small as 4x4.
        An infinity or NaN in the input spoils all outputs of the 4x4 tiles that read it, and very large inputs
        overflow earlier. Switched off, such convolutions are summed directly. The setting holds for the whole process.
        """
        return torch.ops.scratchnn.allow_winograd()

    @allow_winograd.setter
    def allow_winograd(self, allow: bool) -> None:
        torch.ops.scratchnn.allow_winograd(allow)


conv = Conv()
