"""The decorator `@pyvm.function` and what it makes of a Python function."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from vmcore.errors import ArgumentTypeError, FrontendError

if TYPE_CHECKING:
    from pyvm.executable import VMExecutable
    from pyvm.ir import IRModule
    from pyvm.vm import VirtualMachine


class PythonFunction:
    """A Python function as a program. Called, it compiles (once, for all sizes) and runs.

    Parameters
    ----------
    function : callable
        Its parameters have annotations: see `pyvm.frontend.python`.
    name : str, optional
        Name in the module; that of the function by default.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        if inspect.isclass(function) or not callable(function):
            raise FrontendError(f"{function!r} is no Python function")
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name or function.__name__
        self._signature = inspect.signature(function)
        self._lock = threading.Lock()
        self._module: IRModule | None = None
        self._machine: VirtualMachine | None = None

    @property
    def module(self) -> IRModule:
        """The program: this function and those that it calls.

        Raises
        ------
        FrontendError
            Names file, line and function, and what cannot be a program there.
        """
        if self._module is None:
            from pyvm.ir.nesting import recursion_limit

            from .program import build_module

            try:
                self._module = build_module(self)
            except FrontendError as error:
                raise error.with_traceback(None) from error.__cause__  # how it was found helps nobody
            except RecursionError:
                raise FrontendError(f"{self.name}: nested too deeply; {recursion_limit()}") from None
        return self._module

    def compile(self, **options: Any) -> VMExecutable:
        """The executable, with the options of `pyvm.compile`."""
        from pyvm.compile import compile

        return compile(self.module, **options)

    @property
    def machine(self) -> VirtualMachine:
        """The virtual machine that calls run on; compiled when it is first needed."""
        if self._machine is None:
            with self._lock:
                if self._machine is None:
                    from pyvm.vm import VirtualMachine

                    self._machine = VirtualMachine(self.compile())
        return self._machine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program.

        Parameters
        ----------
        args, kwargs : numpy arrays, tensors, numbers, tuples, functions
            As the annotations say; defaults are those of the Python function.

        Returns
        -------
        Tensor, number, None, or tuple of them
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentTypeError(f"{self.name}{self._signature}: {error}") from None
        bound.apply_defaults()
        return self.machine[self.name](*map(_argument, bound.arguments.values()))

    def __repr__(self) -> str:
        return f"<pyvm.function {self.name}{self._signature}>"


def _argument(value: Any) -> Any:
    if isinstance(value, PythonFunction):
        return value.machine[value.name]
    return value


@overload
def function(function: Callable[..., Any], /) -> PythonFunction: ...


@overload
def function(*, name: str | None = None) -> Callable[[Callable[..., Any]], PythonFunction]: ...


def function(function: Any = None, /, *, name: str | None = None) -> Any:
    """Makes a program of a Python function: see `pyvm.frontend.python` for what it may contain.

    Parameters
    ----------
    function : callable
        With annotated parameters.
    name : str, optional
        Name in the module.

    Returns
    -------
    PythonFunction
        Calling it compiles on first use and runs; `.module` is the program, `.compile()` the executable.
    """
    if function is None:
        return lambda function: PythonFunction(function, name)
    return PythonFunction(function, name)


def call_packed(name: str, *args: Any, returns: Any = None) -> Any:
    """Calls a registered function. In a `@pyvm.function`: a call that is made at run time.

    Parameters
    ----------
    name : str
        As in `pyvm.register_func`.
    args
        Values of the program.
    returns : annotation, optional
        What it returns; checked when it has returned, and new symbols name sizes. `object` by default.
    """
    from pyvm.registry import get_global_func

    return get_global_func(name)(*args)


def call_dps_packed(name: str, *args: Any, out: Any) -> Any:
    """Calls a registered function that fills tensors allocated for it. Only in a `@pyvm.function`.

    Parameters
    ----------
    name : str
    args
        Values of the program; the tensors of the result are passed after them.
    out : annotation
        A tensor, or a tuple of tensors, of known sizes and element types.
    """
    raise FrontendError("call_dps_packed allocates its result in a program: call it in a @pyvm.function")
