"""Extension modules of vmcore: list, compiler directives and per-compiler flags. All metadata is in pyproject.toml."""

import os
import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

CHECKED = os.environ.get("VMCORE_CHECKED") == "1"  # for tests: bounds checks, books of memory, failures on demand

DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "cdivision": True,
    "wraparound": False,
    "boundscheck": CHECKED,
    "initializedcheck": CHECKED,
    "nonecheck": CHECKED,
}
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), *([("VMCORE_CHECKED", "1")] if CHECKED else [])]
# Never -ffast-math: NaN and the sign of zero are specified. No SLP: it merges the two word stores of a Value into one
# vector store, which stalls the next read (see value.h); loops are vectorised all the same. The flags are those of gcc
# and clang; vmcore is written for them.
CFLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fno-tree-slp-vectorize", "-Wno-unused-function"]
# No symbol tables: they are most of an unstripped wheel. Code beside the tables that the dynamic linker reads: every
# library of a start is two mappings and two page faults less, 0.3 ms together.
LDFLAGS = ["-Wl,-s", "-Wl,-z,noseparate-code"] if sys.platform == "linux" else []

ROOT = Path(__file__).parent
BUILD = "build/checked" if CHECKED else "build"


def extensions() -> list[Extension]:
    """One extension per .pyx below vmcore; `kernels/*.h` are rebuilt with the modules that include them."""
    headers = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("vmcore/**/*.h"))]
    return [
        Extension(
            str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, "."),
            [str(path.relative_to(ROOT))],
            include_dirs=[".", numpy.get_include()],
            define_macros=MACROS,
            depends=headers,
            extra_compile_args=CFLAGS,
            extra_link_args=LDFLAGS,
        )
        for path in sorted(ROOT.glob("vmcore/**/*.pyx"))
        if CHECKED or path.stem != "checked"  # the face of a checked build's books
    ]


def build_jobs() -> int:
    """Processors this process may use; modules are translated and compiled that many at a time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            extensions(), compiler_directives=DIRECTIVES, build_dir=f"{BUILD}/cython", nthreads=build_jobs()
        ),
        # Folders of their own for the checked build: what is up to date is judged by file times alone.
        options={"build_ext": {"parallel": build_jobs()}, "build": {"build_base": BUILD}},
    )
