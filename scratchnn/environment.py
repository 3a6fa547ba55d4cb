"""Where a number comes from: the software and the machine, stored with every run and every benchmark."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import scratchnn


def describe_versions() -> dict[str, str]:
    """The software that a run depends on."""
    return {
        "scratchnn": scratchnn.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def describe_hardware() -> dict[str, Any]:
    """The machine that a run depends on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
