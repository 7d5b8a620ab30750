"""Whatever the arguments are, a kernel refuses them with an ExecutionError or runs; it never crashes or writes outside.

Calls every kernel with arguments drawn at random from a pool of unfit values, in a child process, so that a crash is
seen as one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmcore import errors
from vmcore.kernels.direct import call_kernel, kernel_names

SCRIPT = """
import sys
import numpy as np
from vmcore import errors
from vmcore.kernels.direct import call_kernel, kernel_names
from vmcore.types import Shape

rng = np.random.default_rng(int(sys.argv[1]))
DTYPES = ["float32"] * 8 + ["float64", "float16", "int64", "int64", "int32", "uint8", "bool", "int16", "complex64"]
SHAPES = [(), (1,), (4,), (3, 4), (4, 3), (3, 4), (2, 3, 4), (1, 4, 2, 2), (1, 1, 4, 4), (0,), (3, 0), (2, 12),
          (1,) * 9, (1,) * 17]
memory = np.zeros(4096, np.uint8)
GUARD = 1024

def tensor():
    shape, dtype = SHAPES[rng.integers(len(SHAPES))], np.dtype(DTYPES[rng.integers(len(DTYPES))])
    n = int(np.prod(shape)) * dtype.itemsize
    start = GUARD + 16 * int(rng.integers(0, 40))
    values = memory[start : start + n].view(dtype).reshape(shape)
    if rng.random() < 0.8:
        values = (rng.integers(-3, 6, shape)).astype(dtype) * np.ones((), dtype)
        values = np.asarray(values, dtype).reshape(shape)
    if rng.random() < 0.1 and len(shape) > 1:
        values = values.T
    return values

def value():
    kind = rng.random()
    if kind < 0.6:
        return tensor()
    if kind < 0.75:
        return int(rng.choice([0, 1, 2, -1, 3, 4, 5, 2**62, -(2**63), 2**63 - 1]))
    if kind < 0.82:
        return Shape(int(rng.choice([0, 1, 2, -1, 3, 2**62, -(2**63)])) for _ in range(rng.integers(0, 5)))
    if kind < 0.9:
        return [1.0, 0.0, float("nan"), float("inf"), -1e300][rng.integers(5)]
    return [None, True, "text"][rng.integers(3)]

names = kernel_names()
ran = 0
for _ in range(int(sys.argv[2])):
    name = names[rng.integers(len(names))]
    args = [value() for _ in range(rng.integers(0, 8))]
    if rng.random() < 0.7 and args:  # make success likelier: an output like an input
        first = next((a for a in args if isinstance(a, np.ndarray)), None)
        if first is not None:
            args.append(np.zeros(first.shape, first.dtype))
    try:
        call_kernel(name, *args)
        ran += 1
    except errors.ExecutionError as error:
        assert str(error)
    assert not memory[:GUARD].any() and not memory[-GUARD:].any(), name
print("ran", ran)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_random_arguments(
    seed: int, run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = run_python("-W", "ignore", "-c", SCRIPT, str(seed), "20000", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[1]) > 100


@pytest.mark.parametrize("name", kernel_names())
def test_wrong_counts_and_kinds(name: str) -> None:
    x = np.ones((2, 2), np.float32)
    strided = np.ones((4, 4), np.float32)[::2, ::2]
    for args in (
        (),
        (x,) * 12,
        (1,),
        ("text",) * 3,
        (None, None),
        (None,) * 4,
        (1.5,) * 5,
        (strided,) * 2,
        (strided, 0, strided),
    ):
        with pytest.raises(errors.ExecutionError):
            call_kernel(name, *args)


def test_messages_have_both_facts() -> None:
    a, b = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(errors.ShapeMismatchError, match=r"add: .*\(4, 3\) float32.*\(2, 3\) float32"):
        call_kernel("add", a, b, a.copy())
    with pytest.raises(errors.DTypeMismatchError, match=r"relu: .*float32.*int32"):
        call_kernel("relu", a, a.astype(np.int32))
    with pytest.raises(errors.ArgumentTypeError, match=r"softmax: argument 1 must be an integer"):
        call_kernel("softmax", a, None, a)
    with pytest.raises(errors.FunctionNotFoundError):
        call_kernel("no_such_kernel")


@pytest.mark.parametrize(
    ("name", "args"),
    [("relu", 1), ("add", 2), ("clip", (1, None, None)), ("softmax", (1, 0)), ("copy", 1), ("cast", 1), ("matmul", 2)],
)
def test_constants_are_not_written(name: str, args: int | tuple[object, ...]) -> None:
    x = np.ones((2, 2), np.float32)
    inputs = (x,) * args if isinstance(args, int) else (x, *args[1:])
    constant = np.zeros((2, 2), np.float32)
    constant.flags.writeable = False
    with pytest.raises(errors.ArgumentValueError, match="read-only"):
        call_kernel(name, *inputs, constant)
    assert not constant.any()
