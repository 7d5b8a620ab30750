"""Extension modules of vmcore: list, compiler directives and per-compiler flags. All metadata is in pyproject.toml.

The modules are compiled one by one and linked into one library, `vmcore._core`, which `vmcore/__init__.py` finds them
in: a library of its own for each would cost every start of a process a tenth of a millisecond, thirty times.
"""

import filecmp
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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
    """One extension per .pyx below vmcore, to be translated; all are compiled again when a header changes."""
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


def linked(modules: list[Extension]) -> list[Extension]:
    """What is linked of translated modules: the library, and the face of a checked build's books apart from it."""
    inside = [module for module in modules if not module.name.endswith(".checked")]
    library = Extension(
        "vmcore._core",
        [source for module in inside for source in module.sources],
        include_dirs=inside[0].include_dirs,
        define_macros=inside[0].define_macros,
        depends=inside[0].depends,
        extra_compile_args=inside[0].extra_compile_args,
        extra_link_args=inside[0].extra_link_args,
    )
    return [library, *(module for module in modules if module not in inside)]


def is_older(target: str, sources: Iterable[str]) -> bool:
    """Whether `target` is missing, or was written before one of its sources."""
    return not os.path.exists(target) or any(os.path.getmtime(s) > os.path.getmtime(target) for s in sources)


class BuildLibrary(build_ext):
    """`build_ext` that compiles only the sources that changed, several at a time."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one library."""
        path = self.get_ext_fullpath(ext.name)
        with ThreadPoolExecutor(build_jobs()) as pool:
            objects = list(pool.map(lambda source: self.compile(ext, source), ext.sources))
        if self.force or is_older(path, objects):
            self.compiler.link_shared_object(
                objects, path, extra_postargs=ext.extra_link_args, build_temp=self.build_temp, target_lang="c"
            )

    def copy_file(self, infile: str, outfile: str, *args: object, **options: object) -> object:
        """Copies what differs, in place: a library of the other kind of build may lie there, newer than ours."""
        if os.path.isfile(outfile) and not filecmp.cmp(infile, outfile, shallow=False):
            os.unlink(outfile)
        return super().copy_file(infile, outfile, *args, **options)

    def compile(self, ext: Extension, source: str) -> str:
        """The object file of a source, compiled unless it is up to date."""
        (path,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
        if self.force or is_older(path, [source, *ext.depends]):
            self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                include_dirs=ext.include_dirs,
                extra_postargs=ext.extra_compile_args,
                depends=ext.depends,
            )
        return path


def build_jobs() -> int:
    """Processors this process may use; modules are translated and compiled that many at a time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    modules = cythonize(
        extensions(), compiler_directives=DIRECTIVES, build_dir=f"{BUILD}/cython", nthreads=build_jobs()
    )
    setup(
        ext_modules=linked(modules),
        cmdclass={"build_ext": BuildLibrary},
        # Folders of their own for the checked build: what is up to date is judged by file times alone.
        options={"build": {"build_base": BUILD}},
    )
