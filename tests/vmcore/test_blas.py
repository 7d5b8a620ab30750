"""Binding of a BLAS: which one, in what order, without importing scipy, and with how many threads."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vmcore import blas, threads

Run = Callable[..., subprocess.CompletedProcess]


def run_ok(run_python: Run, cwd: Path, code: str, env: dict[str, str] | None = None) -> list[str]:
    result = run_python("-c", code, cwd=cwd, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_one_provider_is_bound() -> None:
    assert blas.ensure_bound() in ("numpy", "scipy", "cython_blas", "own")
    assert blas.provider() == blas.ensure_bound()
    assert blas.details()


def test_unknown_provider_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        blas._use("nonsense")


@pytest.mark.parametrize("name", ["numpy", "scipy", "cython_blas", "own"])
def test_environment_names_the_provider(name: str, run_python: Run, tmp_path: Path) -> None:
    """A named provider is used if it is there; whichever is bound computes a right product."""
    code = (
        "from vmcore import blas; name = blas.provider()\n"
        "import numpy as np; from vmcore.kernels.direct import call_kernel\n"
        "a = np.arange(12.).reshape(3, 4); out = np.zeros((3, 3)); call_kernel('matmul', a, a.T.copy(), out)\n"
        "assert np.allclose(out, a @ a.T); v = np.zeros(3); call_kernel('matmul', a, a[0], v)\n"
        "assert np.allclose(v, a @ a[0]); print(name)"
    )
    (bound,) = run_ok(run_python, tmp_path, code, {"PYVM_BLAS": name})
    if bound != name:
        assert name in ("numpy", "scipy")  # a distribution without bundled libraries
        assert bound in ("numpy", "scipy", "cython_blas", "own")


def test_binding_imports_neither_numpy_nor_scipy(run_python: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from vmcore import blas; name = blas.provider()\n"
        "print(name, sum(m.split('.')[0] in ('numpy', 'scipy') for m in sys.modules))"
    )
    name, imported = run_ok(run_python, tmp_path, code)
    if name != "cython_blas":
        assert imported == "0"


def test_loaded_library_is_preferred(run_python: Run, tmp_path: Path) -> None:
    code = "import numpy; from vmcore import blas; print(blas.provider())"
    (name,) = run_ok(run_python, tmp_path, code)
    assert name in ("numpy", "scipy", "cython_blas", "own")
    if blas.provider() == "numpy":
        assert name == "numpy"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_loading_starts_no_threads(run_python: Run, tmp_path: Path) -> None:
    code = (
        "import os; from vmcore import blas, threads; threads.set_num_threads(1); blas.provider()\n"
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    assert run_ok(run_python, tmp_path, code, {"PYVM_BLAS": "scipy"}) == ["1", "None"]
    kept = run_ok(run_python, tmp_path, code, {"PYVM_BLAS": "scipy", "OPENBLAS_NUM_THREADS": "3"})
    assert kept == ["1", "3"]


def test_shared_library_is_only_lowered(run_python: Run, tmp_path: Path) -> None:
    """numpy's own BLAS threads are never raised above what numpy started with."""
    code = (
        "import numpy, ctypes; from vmcore import blas, threads; threads.set_num_threads(8)\n"
        "if blas.provider() != 'numpy': print('other'); raise SystemExit\n"
        "path = blas.details().rsplit('(', 1)[1].rstrip(')'); library = ctypes.CDLL(path)\n"
        "names = [p + 'openblas_get_num_threads' + s for p in ('scipy_', '') for s in ('64_', '')]\n"
        "count = next(getattr(library, n) for n in names if hasattr(library, n)); print(count())\n"
        "threads.set_num_threads(1); print(count())"
    )
    counts = run_ok(run_python, tmp_path, code, {"OPENBLAS_NUM_THREADS": "2"})
    if counts == ["other"]:
        pytest.skip("numpy has no bundled BLAS here")
    assert counts == ["2", "1"]


def test_thread_count_reaches_the_library() -> None:
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(1)
        blas.ensure_bound()
        threads.set_num_threads(2)
    finally:
        threads.set_num_threads(before)
