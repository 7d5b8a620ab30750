"""VirtualMachine: an executable made ready to run, with the calling conventions of TVM's Relax VM."""

from __future__ import annotations

import operator
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyvm.executable import PACKED_FUNC, VMExecutable, load_executable
from vmcore.library import Library, load_library
from vmcore.machine import BoundFunction, Machine, deadline
from vmcore.objects import Function
from vmcore.types import Device, cpu

if TYPE_CHECKING:  # loaded when something is watched or measured, which costs something
    from pyvm.monitor import MemoryReport
    from pyvm.profile import Profile, TimeResult
    from vmcore import arguments, errors
else:
    from vmcore.status import arguments, errors  # the same, imported when there is a use for them

__all__ = ["Library", "VirtualMachine", "deadline", "load_library"]


def _devices(device: Device | Sequence[Device] | None) -> Sequence[Device]:
    """The devices that the argument of VirtualMachine names."""
    if device is None:
        return [cpu()]
    if not isinstance(device, Sequence) or isinstance(device, (str, memoryview)):
        return [device]  # type: ignore[list-item]
    if not device:
        raise errors.ArgumentValueError(
            "VirtualMachine: expected a Device or a list of at least one, got an empty list"
        )
    return device


class VirtualMachine:
    """Runs the functions of an executable. May be called from many threads at once: each call has its own context.

    Parameters
    ----------
    executable : VMExecutable, or path or bytes of one
        Verified before anything runs.
    device : Device or sequence of Device
        Where to run: `cpu()`, or a list whose members are all `cpu()`.
    memory_cfg : {None, "pooled", "naive"}
        Allocator of storages: pooled keeps freed blocks for reuse (the default), naive gives them back at once.
    memory_limit : int, optional
        Bytes that storages may hold, in use and kept together, rounding to block sizes included, and that kernels and
        libraries may take as scratch memory in calls of this machine. A request beyond it first gives kept memory back;
        if that is not enough, the instruction raises AllocationError, which states bytes requested, in use and allowed,
        and the machine stays usable. Threads keep scratch memory for the next call: it counts until they end, need it
        for another machine, or `trim`. Not counted: constants and arguments.
    gil : {"auto", "release", "hold"}
        When a call releases the GIL: when the native work ahead is worth it, at once, or never.
    libraries : sequence of Library
        Shared libraries (see `load_library`) whose functions the executable calls. They are searched in this order,
        before the registry; compiled functions come from nowhere else.

    Notes
    -----
    A machine made from the path of a `.vmx` file is pickled as this path and a digest of the file's checksums: whoever
    unpickles it loads (maps) the same file, and gets a FormatError if it is another one by then. A machine made from an
    executable, from bytes, or from a file in TVM's format is pickled with the bytes of its executable, as that is
    then. Its functions, `vm[name]`, are pickled as the machine and the name. Options, libraries (by path) and saved
    functions are part of it; an instrument and what the stateful interface keeps are not. Functions that the program
    calls must be registered where it is unpickled.

    An instrument lasts as long as the machine, or a function that was taken from it.

    Raises
    ------
    ExecutableError
        If the executable cannot be read or breaks a rule of the verifier.
    FunctionNotFoundError
        If it calls functions that are not registered; the message lists them all.
    LinkError
        If it has compiled functions that are in none of the libraries.
    ArgumentTypeError, ArgumentValueError
        For an unknown device or memory configuration, a memory limit that is not positive, and what else is no such
        argument.
    """

    def __init__(
        self,
        executable: VMExecutable | str | os.PathLike[str] | bytes,
        device: Device | Sequence[Device] | None = None,
        memory_cfg: str | None = None,
        *,
        memory_limit: int | None = None,
        gil: str = "auto",
        libraries: Sequence[Library] = (),
    ) -> None:
        path = None
        if not isinstance(executable, VMExecutable):
            if isinstance(executable, (str, os.PathLike)):
                path = os.path.abspath(os.fsdecode(executable))
            elif not isinstance(executable, (bytes, bytearray, memoryview)):
                raise errors.ArgumentTypeError(
                    "VirtualMachine: expected a VMExecutable, or the path or bytes of one, got "
                    f"{type(executable).__name__}; pyvm.compile makes an executable of a model"
                )
            executable = load_executable(executable)
        for one in _devices(device):
            if not isinstance(one, Device):
                raise errors.ArgumentTypeError(
                    f"VirtualMachine: expected a Device such as pyvm.cpu(), got {arguments.shown(one)}"
                )
            if one != cpu():
                raise errors.ArgumentValueError(
                    f"VirtualMachine: device {one!r} is not available, programs run on cpu(0)"
                )
        if memory_cfg is not None:
            memory_cfg = arguments.choice("VirtualMachine", "memory_cfg", memory_cfg, ("pooled", "naive"))
        if memory_limit is not None:
            memory_limit = arguments.integer("VirtualMachine", "memory_limit", memory_limit)
            if not 0 < memory_limit < 2**63:
                raise errors.ArgumentValueError(
                    f"VirtualMachine: memory_limit must be a positive number of bytes, got {memory_limit}"
                )
        if not isinstance(libraries, (list, tuple)) or not all(isinstance(one, Library) for one in libraries):
            raise errors.ArgumentTypeError(
                "VirtualMachine: libraries must be a sequence of what pyvm.load_library returns, got "
                + arguments.shown(libraries)
            )
        self.executable = executable
        options = {"memory_cfg": memory_cfg, "memory_limit": memory_limit, "gil": gil, "libraries": tuple(libraries)}
        self._origin = _Origin(self, executable, path, options)
        self._machine = Machine(
            executable,
            self._origin,
            pooled=memory_cfg != "naive",
            gil=gil,
            libraries=libraries,
            memory_limit=memory_limit,
        )
        self._saved: dict[str, _SavedFunction] = {}
        self._inputs: dict[str, tuple[Any, ...]] = {}
        self._outputs: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Callable[..., VirtualMachine], tuple[Any, ...]]:
        saved = [(name, *one.binding()) for name, one in self._saved.items()]
        return _unpickle_machine, (*self._origin.recipe(), saved)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The function called `name`; raises FunctionNotFoundError."""
        if self._saved and isinstance(name, str) and name in self._saved:
            return self._saved[name]
        return self._machine.function(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is a function called `name`."""
        return isinstance(name, str) and name in self.function_names()

    def __iter__(self) -> Iterator[str]:
        """The names of the functions, as `function_names` has them."""
        return iter(self.function_names())

    def __getattr__(self, name: str) -> Any:
        """Raises AttributeError; for the name of a function it says how functions are called."""
        text = f"'VirtualMachine' object has no attribute {name!r}"
        if "executable" in self.__dict__ and name in self:
            text += f"; the function of that name is vm[{name!r}]"
        raise AttributeError(text, name=name, obj=self)

    def _ipython_key_completions_(self) -> list[str]:
        """What IPython and Jupyter offer after `vm[`."""
        return self.function_names()

    def function_names(self) -> list[str]:
        """Names of the functions that can be called, in the executable's order."""
        return [info.name for info in self.executable.functions if info.kind != PACKED_FUNC] + list(self._saved)

    def invoke_closure(self, closure: Function, *args: Any) -> Any:
        """Calls a closure or function value that a program returned, with captured values after `args`."""
        if not isinstance(closure, Function):
            raise errors.ArgumentTypeError(f"invoke_closure: expected a closure, got {type(closure).__name__}")
        return closure(*args)

    def save_function(
        self, name: str, saved_name: str, /, *args: Any, include_return: bool = True, **kwargs: Any
    ) -> None:
        """Binds arguments to a function under a new name, so that calls cost no more than the run itself.

        Parameters
        ----------
        name, saved_name : str
        args, kwargs
            Bound now; the saved function takes no arguments.
        include_return : bool
            Whether the saved function returns the result, or None.

        Raises
        ------
        FunctionNotFoundError
            If `name` is unknown.
        ArgumentValueError
            If `saved_name` is taken.
        """
        saved_name = arguments.text("save_function", "saved_name", saved_name)
        include_return = arguments.flag("save_function", "include_return", include_return)
        if saved_name in self.function_names():
            raise errors.ArgumentValueError(f"save_function: the name {saved_name!r} is taken")
        function = self._machine.function(name)
        self._saved[saved_name] = _SavedFunction(
            saved_name, function, self._ordered(name, args, kwargs), include_return
        )

    # ---- stateful interface

    def set_input(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Keeps the arguments of the next `invoke_stateful(name)`; arrays are borrowed until then."""
        ordered = self._ordered(name, args, kwargs)
        self._inputs[name] = ordered

    def invoke_stateful(self, name: str) -> None:
        """Calls `name` on its kept inputs and keeps the result. Raises ArgumentValueError without inputs."""
        self._machine.function(name)
        if name not in self._inputs:
            raise errors.ArgumentValueError(f"invoke_stateful: {name!r} has no inputs; call set_input first")
        self._outputs.pop(name, None)
        self._outputs[name] = self._machine.function(name)(*self._inputs[name])

    def get_outputs(self, name: str) -> Any:
        """The result of the last `invoke_stateful(name)`: a Tensor or a nested tuple."""
        self._machine.function(name)
        if name not in self._outputs:
            raise errors.ArgumentValueError(f"get_outputs: {name!r} has no outputs; call invoke_stateful first")
        return self._outputs[name]

    def _ordered(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        function = self._machine.function(name)
        names = function.param_names
        unknown = [key for key in kwargs if key not in names[len(args) :]]
        if unknown or len(args) + len(kwargs) != len(names):
            raise errors.ArgumentTypeError(
                f"{name}: expected {len(names)} arguments ({', '.join(names)}), got {len(args)} positional"
                + (f" and {', '.join(kwargs)}" if kwargs else "")
            )
        return args + tuple(kwargs[key] for key in names[len(args) :])

    # ---- watching it run

    def set_instrument(self, instrument: Callable[..., int | None] | None) -> None:
        """Calls `instrument(func, name, before_run, ret_value, *args)` before and after every Call instruction.

        Parameters
        ----------
        instrument : callable or None
            `func` is the callee: a Python callable, a Function, or a function of this machine. `ret_value` is None
            before the call. The VM itself (%vm) shows as None among the arguments. VMInstrumentReturnKind.SKIP_RUN,
            returned before a call, skips it: its result is None then, and the instrument is not called after it. An
            exception ends the run. None removes the instrument.

        Notes
        -----
        Calls that run already are not affected. Nested VM calls use the C stack while an instrument is set.
        """
        from pyvm.monitor import VMInstrumentReturnKind

        if instrument is not None and not callable(instrument):
            raise errors.ArgumentTypeError(
                f"set_instrument: expected a callable or None, got {arguments.shown(instrument)}"
            )
        functions = self.executable.functions
        machine = weakref.ref(self._machine)  # the machine owns the hook

        def hook(index: int, before: bool, ret: Any, args: list[Any]) -> bool:
            assert instrument is not None
            alive = machine()
            func = None if alive is None else alive.callee(index)
            return instrument(func, functions[index].name, before, ret, *args) == VMInstrumentReturnKind.SKIP_RUN

        self._machine.set_instrument(None if instrument is None else hook)

    def time_evaluator(
        self, name: str, number: int = 10, repeat: int = 1, min_repeat_ms: float = 0
    ) -> Callable[..., TimeResult]:
        """A function that times `name` on its arguments: `repeat` measurements of the mean over `number` calls.

        Parameters
        ----------
        name : str
            A function, saved ones included. "invoke_stateful" times that method, whose argument is the name of a
            function with kept inputs (`set_input`).
        number, repeat : int
            At least 1.
        min_repeat_ms : float
            `number` grows until one measurement takes that many milliseconds.

        Returns
        -------
        callable
            Takes the arguments of `name`, positional or by keyword; returns a TimeResult, in seconds per call.

        Raises
        ------
        FunctionNotFoundError
            If `name` is unknown.
        ArgumentTypeError, ArgumentValueError
            If one of the numbers is not as above.
        """
        from pyvm.profile import time_calls

        number = arguments.integer("time_evaluator", "number", number)
        repeat = arguments.integer("time_evaluator", "repeat", repeat)
        min_repeat_ms = arguments.number("time_evaluator", "min_repeat_ms", min_repeat_ms)
        if number < 1 or repeat < 1 or not 0 <= min_repeat_ms < float("inf"):
            raise errors.ArgumentValueError(
                "time_evaluator: number and repeat must be at least 1 and min_repeat_ms not negative, got "
                f"{number}, {repeat} and {min_repeat_ms}"
            )
        function = self.invoke_stateful if name == "invoke_stateful" and name not in self else self[name]
        return lambda *args, **kwargs: time_calls(lambda: function(*args, **kwargs), number, repeat, min_repeat_ms)

    def profile(self, name: str, /, *args: Any, **kwargs: Any) -> Profile:
        """Runs `name` once and reports what every Call instruction took. Other threads' calls are recorded too.

        Without arguments, it runs on those that `set_input` keeps for `name`, if there are any.
        """
        from pyvm.profile import profile_calls

        function = self[name]
        if not args and not kwargs and name not in self._saved:
            args = self._inputs.get(name, ())
        return profile_calls(self._machine, self.executable, name, lambda: function(*args, **kwargs))

    # ---- memory

    def trim(self) -> int:
        """Gives memory that is kept for reuse back to the system; returns its bytes.

        What idle calls of this machine keep and what its allocator keeps is freed at once, as is the calling thread's
        scratch memory of kernels. Other threads free theirs when they next run a kernel that needs some.
        """
        freed = self._machine.trim()
        workspace = sys.modules.get("vmcore.kernels.workspace")  # absent when no kernel was ever loaded
        if workspace is not None:
            held = workspace.workspace_bytes()
            workspace.trim_workspace()
            freed += max(0, held - workspace.workspace_bytes())
        return freed

    def memory_report(self) -> MemoryReport:
        """The books of this machine's allocator, a dict that prints as a table.

        Returns
        -------
        MemoryReport
            live_bytes : held by storages in use: of results that are alive, of calls that run, and
            idle_bytes : of these, kept by finished calls for the next one (`trim` frees them)
            pooled_bytes : freed and kept for reuse (`trim` frees them)
            peak_bytes : the highest live_bytes so far
            limit_bytes : the memory limit, or None; live_bytes + pooled_bytes + scratch_bytes never exceed it
            scratch_bytes : scratch memory that calls of this machine made threads take and keep; None without a limit
            total_bytes, n_allocations : asked for so far; storages that a call finds where the last one left them are
            not asked for again
            n_pool_hits : requests that were served with a pooled block
            workspace_bytes : scratch memory of kernels and libraries, of all threads and machines of the process
            classes : (bytes of a block, blocks in use, blocks pooled) for each size that there are blocks of

            All but n_* and classes are bytes, with what rounding up to a block size adds (at most a quarter), except
            total_bytes and idle_bytes, which are as asked for.
        """
        from pyvm.monitor import MemoryReport, scratch_bytes

        report = MemoryReport(self._machine.memory_report())
        report["workspace_bytes"] = scratch_bytes()
        return report

    def __repr__(self) -> str:
        return f"VirtualMachine({', '.join(self.function_names())})"


class _SavedFunction:
    """A function with all its arguments bound."""

    def __init__(self, name: str, function: BoundFunction, args: tuple[Any, ...], include_return: bool) -> None:
        self.name = name
        self._function = function
        self._args = args
        self._include_return = include_return

    def binding(self) -> tuple[str, tuple[Any, ...], bool]:
        """Name of the function, its arguments, and whether the result is returned."""
        return self._function.name, self._args, self._include_return

    def __call__(self) -> Any:
        result = self._function(*self._args)
        return result if self._include_return else None

    def __repr__(self) -> str:
        return f"<saved {self._function!r} as {self.name}>"


class _Origin:
    """What a machine and its functions were made from: adds traces to their errors, and pickles them."""

    def __init__(
        self, vm: VirtualMachine, executable: VMExecutable, path: str | None, options: dict[str, Any]
    ) -> None:
        self._vm = weakref.ref(vm)  # functions may outlive it
        self._executable = executable
        self._path = path if executable._identity and path is not None and os.path.isfile(path) else None
        self._identity = executable._identity
        self._options = options

    def __call__(self, error: BaseException, frames: Sequence[tuple[int, int]]) -> None:
        from pyvm.monitor import add_trace  # here, because a run without errors has no use for it

        add_trace(self._executable, error, frames)

    def recipe(self) -> tuple[VMExecutable | str, str, dict[str, Any]]:
        """Path and digest, or the executable and no digest; and the machine's options."""
        if self._path is None:
            return self._executable, "", self._options
        return self._path, _digest(self._identity), self._options

    def reduce_function(self, name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How the function `name` of the machine is pickled."""
        vm = self._vm()
        if vm is not None:
            return operator.getitem, (vm, name)
        return _unpickle_function, (*self.recipe(), name)


def _digest(identity: bytes) -> str:
    from hashlib import blake2b  # here, because serving has no use for it

    return blake2b(identity, digest_size=16).hexdigest()


def _unpickle_machine(
    source: VMExecutable | str, digest: str, options: dict[str, Any], saved: Sequence[tuple[Any, ...]] = ()
) -> VirtualMachine:
    vm = VirtualMachine(source, **options)
    if digest and vm._origin.recipe()[1] != digest:
        raise errors.FormatError(
            f"unpickle: {source} is not the file that the virtual machine was made from: its digest is "
            f"{vm._origin.recipe()[1] or 'unknown'}, expected {digest}"
        )
    for name, function, args, include_return in saved:
        vm.save_function(function, name, *args, include_return=include_return)
    return vm


def _unpickle_function(source: VMExecutable | str, digest: str, options: dict[str, Any], name: str) -> Any:
    return _unpickle_machine(source, digest, options)[name]
