"""What several commands share: loading models, reading and making inputs, showing results and progress."""

from __future__ import annotations

import argparse
import ast
import operator
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmcore.types import Shape

if TYPE_CHECKING:
    from pyvm.executable import VMExecutable
    from pyvm.signature import Signature, Spec


class UsageError(Exception):
    """The command line asks for something that cannot be done as it stands; exit code 2."""


# Command-line options ------------------------------------------------------------------------------------------------


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """The positional MODEL argument."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="an executable (.vmx, TVM VMExecutable bytes), an .onnx model or a .pyvm program",
    )


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say what a function is called with."""
    parser.add_argument("--function", default="main", metavar="NAME", help="function to call (default: main)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="an input from a .npy file, or all inputs from an .npz file; may be repeated; "
        "inputs that are not given are random",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random inputs (default: 0)")
    parser.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="NAME=N",
        help="size of a symbolic dimension of random inputs (default: 1); may be repeated",
    )
    parser.add_argument(
        "--threads", type=positive_int, default=None, metavar="N", help="threads that kernels may use (default: all)"
    )


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def parse_dims(pairs: Iterable[str]) -> dict[str, int]:
    """`["n=4", "h=32"]` as a dictionary."""
    dims = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value.isdecimal():
            raise UsageError(f"--dim {pair}: expected NAME=N with N a non-negative integer")
        dims[name] = int(value)
    return dims


def parse_shapes(pairs: Iterable[str]) -> dict[str, tuple[int | None, ...]]:
    """`["x=1,3,?,?"]` as a dictionary of shapes, with None for a dimension that stays as the model has it."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for pair in pairs:
        name, equals, text = pair.rpartition("=")
        dims = [dim.strip() for dim in text.split(",")] if text else []
        if not name or not equals or not all(dim == "?" or dim.isdecimal() for dim in dims):
            raise UsageError(f"--shape {pair}: expected NAME=D,D,... with D a number or ?")
        shapes[name] = tuple(None if dim == "?" else int(dim) for dim in dims)
    return shapes


# Models --------------------------------------------------------------------------------------------------------------


def is_onnx(path: Path) -> bool:
    """Whether the file is taken for an ONNX model, by its name."""
    return path.suffix.lower() == ".onnx"


def is_program(path: Path) -> bool:
    """Whether the file is taken for the text of an IR module, by its name."""
    return path.suffix.lower() == ".pyvm"


def load_model(path: Path) -> VMExecutable:
    """The executable in a file, or the one that an ONNX model or a program in text form compiles to."""
    import pyvm

    if not path.is_file():
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if is_onnx(path) or is_program(path):
        if is_onnx(path):
            require("onnx", f"{path}: reading ONNX models")
        with Progress(f"compiling {path.name}"):
            return pyvm.compile(path)
    return pyvm.load_executable(path)


def require(module: str, purpose: str) -> Any:
    """Import an optional package, or say what it is needed for and how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UsageError(f"{purpose} needs the package {module} (pip install {module})") from None


def signature_of(executable: VMExecutable, function: str) -> Signature:
    """The signature of a function; an error that says what there is, where there is no such function."""
    known = [info.name for info in executable.functions if info.kind != 0]
    if function not in known:
        raise UsageError(f"no function {function!r} in this executable; it has {', '.join(known) or 'none'}")
    return executable.signature(function)


# Inputs --------------------------------------------------------------------------------------------------------------

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate_dim(dim: int | str, dims: Mapping[str, int]) -> int:
    """A dimension of a signature (`4`, `"n"`, `"2*n+1"`) as a number; symbols that `dims` does not have are 1."""
    if isinstance(dim, int):
        return dim

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return dims.get(node.id, 1)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return _FUNCTIONS[node.func.id](*map(walk, node.args))
        raise UsageError(f"dimension {dim!r} of the signature is not an integer expression")

    try:
        return walk(ast.parse(dim, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError):
        raise UsageError(f"dimension {dim!r} of the signature cannot be evaluated") from None


def symbols_of(specs: Iterable[Spec]) -> list[str]:
    """Names of the symbolic dimensions of a signature's parameters, in order of first mention."""
    from pyvm.signature import ShapeSpec, TensorSpec, TupleSpec

    found: dict[str, None] = {}
    for spec in specs:
        if isinstance(spec, TupleSpec):
            found.update(dict.fromkeys(symbols_of(spec.fields)))
            continue
        dims = spec.shape if isinstance(spec, TensorSpec) else spec.values if isinstance(spec, ShapeSpec) else None
        for dim in dims or ():
            if isinstance(dim, str):
                found.update(dict.fromkeys(name for name in re.findall(r"[^\W\d]\w*", dim) if name not in _FUNCTIONS))
    return list(found)


def random_value(spec: Spec, dims: Mapping[str, int], rng: np.random.Generator) -> Any:
    """A value that fits a parameter.

    Floats come from the standard normal distribution; integers and truth values are 0 or 1, which every index may be.
    """
    from pyvm.signature import ScalarSpec, ShapeSpec, TensorSpec, TupleSpec

    if isinstance(spec, TupleSpec):
        return tuple(random_value(item, dims, rng) for item in spec.fields)
    if isinstance(spec, ShapeSpec) and spec.values is not None:
        return Shape(evaluate_dim(dim, dims) for dim in spec.values)
    if isinstance(spec, ScalarSpec):
        return float(rng.standard_normal()) if spec.dtype.startswith("float") else int(rng.integers(0, 2))
    if not isinstance(spec, TensorSpec) or spec.shape is None or spec.dtype is None:
        raise UsageError(f"input {spec}: its kind, shape or type is not known; give it with --input")
    shape = tuple(evaluate_dim(dim, dims) for dim in spec.shape)
    if any(size < 0 for size in shape):
        raise UsageError(f"input {spec}: the shape is {list(shape)} with these --dim values")
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)


def read_arrays(entries: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of `--input` options by the name of the parameter they belong to."""
    arrays: dict[str, np.ndarray] = {}

    def put(name: str, array: np.ndarray, source: str) -> None:
        if name not in names:
            raise UsageError(f"--input {source}: no input {name!r}; the inputs are {', '.join(names) or 'none'}")
        if name in arrays:
            raise UsageError(f"--input {source}: input {name!r} is given twice")
        arrays[name] = array

    for entry in entries:
        name, equals, file = entry.rpartition("=")
        try:
            loaded = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UsageError(f"{file}: not a .npy or .npz file ({error})") from None
        if isinstance(loaded, np.ndarray):
            if not equals:
                left = [n for n in names if n not in arrays]
                if len(names) != 1:
                    raise UsageError(f"--input {file}: say which input it is (NAME={file}); left: {', '.join(left)}")
                name = names[0]
            put(name, loaded, entry)
        elif equals:
            raise UsageError(f"--input {entry}: an .npz file names its inputs itself; give it without {name}=")
        else:
            with loaded:
                for key in loaded.files:
                    put(key, loaded[key], f"{file}[{key}]")
    return arrays


def make_inputs(executable: VMExecutable, args: argparse.Namespace) -> tuple[list[str], list[Any]]:
    """Names and values to call `args.function` with: from files, and random where no file gives them."""
    dims = parse_dims(args.dim)
    signature = signature_of(executable, args.function)
    symbols = symbols_of(signature.params)
    unknown = [name for name in dims if name not in symbols]
    if unknown:
        raise UsageError(f"--dim {unknown[0]}: no such symbolic dimension; there is {', '.join(symbols) or 'none'}")
    names = [spec.name for spec in signature.params]
    arrays = read_arrays(args.input, names)
    rng = np.random.default_rng(args.seed)
    values = [arrays[spec.name] if spec.name in arrays else random_value(spec, dims, rng) for spec in signature.params]
    return names, values


# Results -------------------------------------------------------------------------------------------------------------


def flatten(result: Any) -> list[np.ndarray]:
    """A result (tensor, number or nested tuple of them) as a flat list of arrays."""
    if isinstance(result, (tuple, list)) and not isinstance(result, Shape):
        return [array for item in result for array in flatten(item)]
    return [np.asarray(result)]


def result_names(executable: VMExecutable, function: str, count: int) -> list[str]:
    """Names of a function's results by its signature; `output0`, `output1` ... where it has none."""
    names = [spec.name for spec in executable.signature(function).results]
    if len(names) != count or len(set(names)) != count or not all(names):
        return [f"output{index}" for index in range(count)]
    return names


def describe(array: np.ndarray) -> str:
    """Type, shape and range of an array on one line, and its elements if they are few."""
    text = f"{array.dtype}{list(array.shape)}"
    if array.size and array.dtype.kind in "fiub":
        text += f"  min {array.min():.6g}  max {array.max():.6g}  mean {array.mean(dtype=np.float64):.6g}"
    if 0 < array.size <= 12:
        text += "  " + np.array2string(array.reshape(-1), precision=5, max_line_width=10**6)
    return text


def bytes_text(count: int) -> str:
    """`1536` as `1.5 KiB`."""
    if count < 1024:
        return f"{count} B"
    size = count / 1024
    for unit in ("KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def seconds_text(seconds: float) -> str:
    """`0.00123` as `1.23 ms`."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.2f} s"


class Progress:
    """Says on a terminal what long work is going on and how long it has taken; silent where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin = time.perf_counter()
        self._width = 0
        self._shown = sys.stderr.isatty()

    def update(self, step: str) -> None:
        """Show another step of the same work."""
        if self._shown:
            text = f"{self._what}: {step} ({time.perf_counter() - self._begin:.1f} s)"
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def __enter__(self) -> Progress:
        self.update("...")
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
