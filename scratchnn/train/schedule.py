"""The learning rate as a function of the step, and of nothing else."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "step", "constant")


def learning_rate(step: int, total: int, peak: float, schedule: str = "cosine", warmup: float = 0.0) -> float:
    """The learning rate of step ``step`` of ``total``, counted from 0.

    It rises in a straight line to ``peak`` over the first ``warmup * total`` steps (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677), and then follows the schedule. With ``t`` the share of the remaining
    steps that has passed:

    - ``cosine``: ``peak * (1 + cos(pi t)) / 2`` (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983)
    - ``step``: ``peak``, a tenth of it from ``t = 1/2`` on, a hundredth from ``t = 3/4`` on (He et al. 2015,
      https://arxiv.org/abs/1512.03385, section 4.2)
    - ``constant``: ``peak``

    Args:
        step: from 0 on.
        total: number of steps.
        peak: the largest learning rate.
        schedule: ``"cosine"``, ``"step"`` or ``"constant"``.
        warmup: share of the steps over which it rises.

    Returns:
        the learning rate of this step.

    Example:
        >>> from scratchnn.train.schedule import learning_rate
        >>> learning_rate(50, total=100, peak=0.1)
        0.05
    """
    rising = round(warmup * total)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    passed = (step - rising) / max(total - rising, 1)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * passed)) / 2
    if schedule == "step":
        return peak * (0.01 if passed >= 0.75 else 0.1 if passed >= 0.5 else 1.0)
    return peak
