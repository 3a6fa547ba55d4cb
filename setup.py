"""Build the C++ extension ``scratchnn._C``.

Everything under ``csrc`` is compiled once, except the fast CPU kernels in ``csrc/*/cpu``: those are compiled
once per instruction set, each time into a namespace of their own, and the best one the processor supports is
picked when the library is loaded (see ``csrc/common/dispatch.h``). Objects stay in ``build/``, so a second
build compiles only what changed.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"scratchnn builds against an installed PyTorch, and importing it failed ({error}). "
        "Install torch first, then build with: pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent.resolve()

COMMON_FLAGS = ["-O3", "-std=c++20", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]

# gcc and clang flags of each instruction set; the kernels themselves are the same portable vector code.
X86_FLAGS = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    # AMX is used where the processor has it (csrc/conv/cpu/matrix_unit.h); no compiler does so by itself.
    # gcc's own header for AVX-512 sets off -Wmaybe-uninitialized.
    "AVX512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
        *("-mamx-tile", "-mamx-bf16", "-Wno-maybe-uninitialized"),
    ],
}
INSTRUCTION_SETS = {"DEFAULT": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= X86_FLAGS


def require_compiler() -> None:
    """End the build with one clear sentence where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        sys.exit(
            f"scratchnn needs a C++20 compiler, and {compiler!r} was not found. Install gcc 12+ or clang 15+ "
            "(Debian/Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or point CXX at one."
        )


class BuildKernels(BuildExtension):
    """Compiles the CPU kernels once per instruction set, beside everything else."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(ROOT / "build")  # kept also by editable installs: rebuilds are incremental

    def build_extension(self, extension) -> None:
        require_compiler()
        kernels = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*/cpu/*.cpp"))
        print(
            f"scratchnn: torch {torch.__version__}, {platform.machine()}, "
            f"{len(extension.sources)} files + {len(kernels)} CPU kernel files for "
            f"{', '.join(INSTRUCTION_SETS)}, flags {' '.join(COMMON_FLAGS)}",
            flush=True,
        )
        headers = sorted(str(path) for path in (ROOT / "csrc").rglob("*.h"))
        for name, flags in INSTRUCTION_SETS.items():
            extension.extra_objects += self.compiler.compile(
                kernels,
                output_dir=str(Path(self.build_temp) / name),
                include_dirs=extension.include_dirs,
                macros=extension.define_macros,
                extra_postargs=[
                    *COMMON_FLAGS,
                    *flags,
                    f"-DCPU_CAPABILITY={name}",
                    f"-DCPU_CAPABILITY_{name}",
                ],
                depends=headers,
            )
        super().build_extension(extension)


def extension() -> CppExtension:
    sources = [path for path in (ROOT / "csrc").rglob("*.cpp") if path.parent.name != "cpu"]
    return CppExtension(
        "scratchnn._C",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": [*COMMON_FLAGS, "-fopenmp"]},
        extra_link_args=["-Wl,--strip-debug"],
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildKernels},
)
