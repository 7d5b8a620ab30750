"""Builds every extension with a sanitizer into a tree of its own below build/, a copy of the sources."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("vmcore", "pyvm", "tests", "setup.py", "pyproject.toml", "README.md")
# Casts between function pointer types are how Cython and CPython work, and not in gcc's "undefined" group.
FLAGS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
    "checked": [],
}
LIBRARIES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",), "checked": ()}
COMMON = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-tree-slp-vectorize", "-Wno-unused-function", "-w"]


def tree_of(kind: str) -> Path:
    """Where the sanitized tree lies."""
    return ROOT / "build" / kind / "tree"


def copy_sources(kind: str, root: Path = ROOT) -> Path:
    """Copies the sources that differ, so that only what changed is built again."""
    tree = tree_of(kind)
    for path in [path for name in SOURCES for path in (tree / name).rglob("*")]:
        if path.is_file() and path.suffix not in (".so", ".pyc") and not (root / path.relative_to(tree)).exists():
            path.unlink()  # gone from the sources
    for name in SOURCES:
        source = root / name
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if not path.is_file() or path.suffix in (".so", ".pyc"):
                continue
            target = tree / path.relative_to(root)
            if target.exists() and target.read_bytes() == path.read_bytes():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return tree


def build(kind: str, root: Path = ROOT) -> Path:
    """Builds the tree in place; returns it."""
    tree = copy_sources(kind, root)
    env = _plain_env()
    if kind == "checked":
        env["VMCORE_CHECKED"] = "1"  # read by setup.py
    subprocess.run([sys.executable, "tests/sanitizers/build.py", kind], cwd=tree, check=True, env=env)
    return tree


def build_canary(kind: str, tree: Path) -> Path:
    """Builds the library with deliberate errors; returns where it lies."""
    path = tree / "build" / "canary.so"
    source = tree / "tests" / "sanitizers" / "canary.c"
    command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", *COMMON, *FLAGS[kind], str(source), "-o", str(path)]
    subprocess.run(command, check=True, env=_plain_env())
    return path


def _plain_env() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("CFLAGS", "LD_PRELOAD")}


def library(name: str) -> str:
    """Path of a sanitizer runtime of the C compiler."""
    compiler = os.environ.get("CC", "gcc")
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip()).resolve()
    if not path.is_file():
        raise SystemExit(f"{compiler} has no {name}: install the compiler's sanitizer libraries")
    return str(path)


def environment(kind: str, tree: Path) -> dict[str, str]:
    """Environment of a Python that runs the sanitized tree."""
    env = _plain_env()
    env["PYTHONPATH"] = str(tree)
    if kind == "checked":
        return env
    env["PYTHONMALLOC"] = "malloc"  # so that the sanitizer sees the interpreter's small blocks
    env["LD_PRELOAD"] = " ".join(library(name) for name in LIBRARIES[kind])
    if kind == "asan":
        # Leaks are the business of tests.soak: the interpreter itself keeps much alive at exit.
        # Its address space cannot be limited, so the size of an allocation is: hostile inputs ask for all there is.
        options = "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0:handle_segv=1"
        env["ASAN_OPTIONS"] = f"{options}:max_allocation_size_mb=1024"
        env["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
    else:
        suppressions = tree / "tests" / "sanitizers" / "tsan.supp"
        env["TSAN_OPTIONS"] = f"suppressions={suppressions}:halt_on_error=0:exitcode=66:history_size=4:die_after_fork=0"
    return env


def _build_here(kind: str) -> None:
    """Runs in the copied tree: setup.py's extensions with the sanitizer's flags in place of its own."""
    from Cython.Build import cythonize
    from setuptools import Distribution

    spec = importlib.util.spec_from_file_location("setup_py", "setup.py")
    assert spec is not None and spec.loader is not None
    setup_py = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_py)
    extensions = setup_py.extensions()
    for extension in extensions:
        extension.extra_compile_args = [*COMMON, *FLAGS[kind]]
        extension.extra_link_args = FLAGS[kind]
    jobs = setup_py.build_jobs()
    modules = cythonize(
        extensions, compiler_directives=setup_py.DIRECTIVES, build_dir="build/cython", nthreads=jobs, quiet=True
    )
    libraries = setup_py.linked(modules)
    distribution = Distribution({"ext_modules": libraries, "cmdclass": {"build_ext": setup_py.BuildLibrary}})
    command = distribution.get_command_obj("build_ext")
    command.inplace = True
    command.build_temp = "build/temp"
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    _build_here(sys.argv[1])
