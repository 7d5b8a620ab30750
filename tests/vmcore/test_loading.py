"""Where the modules of vmcore are found: one library, one finder, in the main interpreter only."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import vmcore

RunPython = Callable[..., subprocess.CompletedProcess[str]]


def test_a_module_that_is_not_there() -> None:
    assert importlib.util.find_spec("vmcore.nothing") is None
    assert importlib.util.find_spec("vmcore.builtins.nothing") is None
    spec = importlib.util.find_spec("vmcore.machine")
    assert spec is not None and spec.origin is not None and "_core" in spec.origin


def test_one_finder_after_loading_again(run_python: RunPython, tmp_path: Path) -> None:
    script = """
import importlib, sys
import pyvm, vmcore.machine
def finders(): return sum(type(finder).__name__ == "LibraryFinder" for finder in sys.meta_path)
assert pyvm.tensor([1.0]).shape == (1,) and finders() == 1
importlib.reload(vmcore)
importlib.reload(sys.modules["vmcore.machine"])
assert pyvm.tensor([1.0]).shape == (1,) and finders() == 1
for name in [name for name in sys.modules if name.split(".")[0] in ("pyvm", "vmcore")]:
    del sys.modules[name]
import pyvm
assert pyvm.tensor([1.0]).shape == (1,) and finders() == 1
print("found")
"""
    child = run_python("-c", script, cwd=tmp_path)
    assert child.stdout == "found\n", child.stderr


def test_no_library(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "vmcore").mkdir()
    shutil.copy(vmcore.__file__, tmp_path / "vmcore")
    child = run_python("-c", "import vmcore", cwd=tmp_path)
    assert "ImportError: vmcore is not built" in child.stderr and "build_ext --inplace" in child.stderr
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(vmcore.__file__, "vmcore/__init__.py")
    script = "import sys; sys.path.insert(0, 'packed.zip'); sys.path.remove(''); import vmcore"
    child = run_python("-c", script, cwd=tmp_path)
    assert "ImportError: vmcore: " in child.stderr and "cannot be loaded from an archive" in child.stderr


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the module has another name from 3.13 on")
@pytest.mark.parametrize("first", [False, True])
def test_subinterpreters_are_refused(run_python: RunPython, tmp_path: Path, first: bool) -> None:
    script = f"""
import _xxsubinterpreters as interpreters
if not {first}:
    import vmcore.status
try:
    interpreters.run_string(interpreters.create(), "import vmcore.status")
except Exception as error:
    print(error)
"""
    child = run_python("-c", script, cwd=tmp_path)
    message = "main interpreter only" if first else "only be loaded into one interpreter"
    assert "ImportError" in child.stdout and message in child.stdout, child.stdout + child.stderr


def test_the_library_is_no_module() -> None:
    with pytest.raises(ImportError, match="vmcore._core is the library .* import one of them"):
        importlib.import_module("vmcore._core")
