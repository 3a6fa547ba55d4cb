"""Keep freed memory in the process, so that large tensors do not page-fault on every call.

glibc hands every allocation above a few hundred kilobytes to ``mmap`` and returns it to the system when
freed; the next tensor of the same size then pays a page fault for each 4 KiB of it. For memory-bound layers
that costs several times the layer itself. :func:`keep_memory` asks the allocator to keep what was freed.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameter numbers, from <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_MIB = 1 << 20


def keep_memory() -> bool:
    """Let the C allocator keep freed memory for reuse, for the rest of the process.

    The process then holds on to its peak memory. Call it once, before the first large tensor is made;
    ``scratchnn train`` and ``scratchnn bench`` do. It serves torch's own layers just as well.

    Returns:
        ``True`` where the allocator took the settings (glibc), ``False`` where it has none (macOS, musl),
        in which case nothing changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all(
        libc.mallopt(ctypes.c_int(parameter), ctypes.c_int(value)) == 1
        for parameter, value in (
            (_M_MMAP_MAX, 0),  # large blocks come from the heap, which can keep them
            (_M_TRIM_THRESHOLD, -1),  # what is freed is never given back
            (_M_TOP_PAD, 64 * _MIB),  # and grows in large steps
        )
    )
