"""`pyvm.compile`: from a model or an IRModule to an executable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvm.checked_calls import checked
from pyvm.codegen import generate, signature_of
from pyvm.frontend.python import PythonFunction
from pyvm.ir import IRModule, check_well_formed, parse
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.printer import function_symbols
from pyvm.transform import DEFAULT_PIPELINE, Pass, run_passes
from pyvm.transform.lowered import UPPER_BOUNDS
from vmcore.errors import CompileError, FrontendError, ParseError

if TYPE_CHECKING:
    from pyvm.executable import VMExecutable

_EXEC_MODES = ("bytecode",)


@checked
@typed_nesting("compile")
def compile(
    model: IRModule | str | os.PathLike[str] | Any,
    exec_mode: str = "bytecode",
    shape_dict: Mapping[str, int | Sequence[int | None]] | None = None,
    dump: str | os.PathLike[str] | None = None,
    passes: Iterable[Pass] | None = None,
    check: bool = False,
    bounds: Mapping[str, int] | None = None,
) -> VMExecutable:
    """Compiles a model.

    Parameters
    ----------
    model : IRModule, `pyvm.function`, path of an ONNX file or of the text of a module (`.pyvm`), bytes of an ONNX
        file, or loaded ONNX model
        Not modified.
    exec_mode : str
        "bytecode".
    shape_dict : mapping, optional
        Dimensions of an ONNX model to fix: see `pyvm.frontend.onnx.from_onnx`.
    dump : path, optional
        A folder that receives the module as text: the input and the result of each pass.
    passes : iterable of callables, optional
        The passes to run instead of `pyvm.transform.DEFAULT_PIPELINE`.
    check : bool
        Check well-formedness after each pass, not only of the input.
    bounds : mapping, optional
        Largest values of symbolic dimensions, e.g. {"n": 64}. Memory of functions with these dimensions is planned for
        them: one arena of fixed size instead of one that is sized when the function runs. A call with a larger
        dimension is refused (ShapeMismatchError). The same as the attribute `upper_bounds` of the module or a function.

    Returns
    -------
    VMExecutable
        With signatures, and for each instruction the operator it comes from.

    Raises
    ------
    ArgumentTypeError
        If one of the options is of another type.
    CompileError
        If the model cannot be read (FrontendError, ParseError), is not well-formed (WellFormedError) or cannot be
        lowered (LoweringError).
    """
    if not isinstance(exec_mode, str) or exec_mode not in _EXEC_MODES:
        raise CompileError(f"exec_mode {exec_mode!r}: only 'bytecode' is built in this version")
    module = _as_module(model, shape_dict)
    check_well_formed(module)
    if bounds:
        module = _with_bounds(module, bounds)
    signatures = {name: signature_of(function) for name, function in module.functions.items()}
    write = None
    if dump is not None:
        folder = Path(dump)
        folder.mkdir(parents=True, exist_ok=True)
        write = _dump_into(folder)
        write(-1, "input", module)
    lowered = run_passes(module, DEFAULT_PIPELINE if passes is None else passes, write, check)
    return generate(lowered, signatures)


def _with_bounds(module: IRModule, bounds: Mapping[str, int]) -> IRModule:
    """The module with upper bounds of symbols as an attribute."""
    known = {symbol.name for function in module.functions.values() for symbol in function_symbols(function)}
    for name, bound in bounds.items():
        if name not in known:
            there = f"there are: {', '.join(sorted(known))}" if known else "there is none"
            raise CompileError(f"bounds: no symbolic dimension is called {name!r}; {there}")
        if isinstance(bound, bool) or not isinstance(bound, int) or not 0 < bound < 2**31:
            raise CompileError(f"bounds: {name}={bound!r}: expected an integer from 1 to 2147483647")
    given = {**dict(module.attrs.get(UPPER_BOUNDS, ())), **bounds}
    return IRModule(module.functions, {**module.attrs, UPPER_BOUNDS: tuple(given.items())})


def _as_module(model: Any, shape_dict: Mapping[str, int | Sequence[int | None]] | None) -> IRModule:
    if isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(".pyvm"):
        try:
            model = parse(Path(model).read_text(encoding="utf-8"))
        except (CompileError, UnicodeDecodeError) as error:
            raise ParseError(f"{os.fspath(model)}: {error}") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise FrontendError(f"cannot read {os.fspath(model)!a}: {getattr(error, 'strerror', error)}") from error
    if isinstance(model, PythonFunction):
        model = model.module
    if isinstance(model, IRModule):
        if shape_dict:
            raise CompileError("shape_dict applies to ONNX models; an IRModule states its shapes itself")
        return model
    if callable(model):
        raise CompileError(
            f"compile: expected a model, got the {type(model).__name__} {getattr(model, '__name__', '')!r}; "
            "decorate it with @pyvm.function"
        )
    from pyvm.frontend.onnx import from_onnx

    return from_onnx(model, shape_dict=shape_dict)


def _dump_into(folder: Path) -> Callable[[int, str, IRModule], None]:
    def write(number: int, name: str, module: IRModule) -> None:
        (folder / f"{number + 1:02d}_{name}.txt").write_text(module.script(elide_constants=True), encoding="utf-8")

    return write
