"""Kernels and compiled functions that TVM built, run by our virtual machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.vm import VirtualMachine

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="apache-tvm is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, str(Path(__file__).with_name("build_libraries.py")), str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_models_built_by_tvm(mode: str, built: Path) -> None:
    library = pyvm.load_library(built / f"{mode}.so")
    vm = VirtualMachine(built / f"{mode}.bin", libraries=[library])
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 4), np.float32)
    for n in (0, 1, 3, 70):
        x = rng.standard_normal((n, 8), np.float32)
        expected = np.cumsum(np.maximum(x @ w, 0), axis=1)
        np.testing.assert_allclose(vm["main"](x, w), expected, rtol=1e-4, atol=1e-5)
        shifted = np.zeros(8 * n + 1, np.float32)[1:].reshape(n, 8)  # not aligned to more than its elements
        shifted[:] = x
        np.testing.assert_allclose(vm["main"](shifted, w), expected, rtol=1e-4, atol=1e-5)
    v = rng.standard_normal(4, np.float32)
    np.testing.assert_allclose(vm["choose"](v, np.array(True)), v + v)
    np.testing.assert_allclose(vm["choose"](v, np.array(False)), np.exp(v), rtol=1e-5)
    with pytest.raises(errors.DTypeMismatchError, match=r"fn=main, loc=param\[0\], param=x.*float32 but get float64"):
        vm["main"](np.zeros((2, 8)), w)
    with pytest.raises(errors.ShapeMismatchError, match=r"param=w.*shape\[1\].*expected 4, got 3"):
        vm["main"](x, w[:, :3])
    np.testing.assert_allclose(vm["main"](x, w), expected, rtol=1e-4, atol=1e-5)
