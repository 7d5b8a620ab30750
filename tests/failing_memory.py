"""python -m tests.failing_memory [names]: every request of vmcore for memory fails once; needs a checked build.

Each scenario is run with its first request failing, then its second, and so on until a run meets no failure; then again
with all requests from the n-th on failing, as when memory is exhausted. Every run must end in its usual result or in a
MemoryError (AllocationError is one). After each, nothing may be left in the books, and the same call must work again at
once, on the same machine. `python -m tests.sanitizers checked` makes the build and runs this.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pyvm
from pyvm.asm import assemble
from pyvm.executable import VMExecutable, load_executable
from pyvm.monitor import VMInstrumentReturnKind
from pyvm.vm import VirtualMachine
from tests import soak
from tests.fuzz.kernels import templates
from tests.tvm_parity.cases import BUILTINS
from tests.tvm_parity.functions import DEBUGGED, FUNCTIONS
from tests.vmcore import test_library
from vmcore.kernels.direct import call_kernel
from vmcore.kernels.workspace import trim_workspace
from vmcore.objects import Function, Tensor
from vmcore.types import Shape

try:
    checked: Any = importlib.import_module("vmcore.checked")
except ModuleNotFoundError:  # an ordinary build
    checked = None

MODEL = """
func @main(%0 x) regs=8
  call @vm.builtin.alloc_shape_heap (%vm, 4) -> %1
  call @vm.builtin.match_shape (%0, %1, 2, 1, 0, 0, 4, "x: ")
  call @vm.builtin.make_shape (%1, 2, 1, 0, 0, 3) -> %2
  call @vm.builtin.alloc_storage (%vm, %2, 0, dtype(float32)) -> %3
  call @vm.builtin.alloc_tensor (%3, 0, %2, dtype(float32)) -> %4
  call @kernel.matmul (%0, c[0], %4)
  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %5
  call @vm.builtin.alloc_tensor (%5, 0, shape(2, 2), dtype(float32)) -> %6
  call @kernel.add (c[1], c[1], %6)
  call @vm.builtin.make_tuple (%4, %6, %2, "a string that is long", @twice) -> %7
  ret %7
func @twice(%0 x) regs=3
  call @vm.builtin.make_closure (@pair, %0) -> %1
  call @vm.builtin.invoke_closure (%vm, %1, %0) -> %2
  ret %2
func @pair(%0, %1) regs=3
  call @memory.callback (%0, %1) -> %2
  ret %2
func @nested(%0 n) regs=2
  call @memory.nested (%0) -> %1
  ret %1
func @count(%0 n) regs=3
again:
  call @memory.less_one (%0) -> %0
  if %0, done
  goto again
done:
  ret %0
c[0] = tensor float32 (4, 3) [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
c[1] = tensor float32 (2, 2) [1, 2, 3, 4]
"""

machines: list[VirtualMachine] = []  # the last one is called by the callback of @nested
Work = Callable[[], Any]
Outcome = tuple[str, Any]
TEMPORARY = ("workspace", "pooled")  # of a thread, of an allocator that is in the books itself


def canonical(value: Any) -> Any:
    """Something that is equal for equal results."""
    if isinstance(value, Tensor):
        try:
            value = value.numpy()
        except TypeError:
            return ("tensor", str(value.dtype), tuple(value.shape))
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *map(canonical, value))
    if value is None or isinstance(value, (int, float, str, bytes)):
        return value
    return type(value).__name__


def outcome(work: Work) -> Outcome:
    """("value", result) or ("error", type); MemoryError is ("memory", type)."""
    try:
        return "value", canonical(work())
    except MemoryError as error:
        return "memory", type(error)
    except Exception as error:
        return "error", type(error)


def leaks(mark: int, settle: Work) -> list[tuple[str, int, int, bool]]:
    """Blocks made since `mark` that are still there."""
    settle()
    trim_workspace()
    found = [block for block in checked.blocks(mark) if block[0] not in TEMPORARY and not block[3]]
    if found:  # a cycle of Python objects, perhaps
        gc.collect()
        settle()
        alive = {block[2] for block in checked.blocks(mark)}
        found = [block for block in found if block[2] in alive]
    return found


def drive(name: str, work: Work, settle: Work = lambda: None) -> tuple[int, list[str]]:
    """Fails each request of `work` in turn; (failing runs, problems). `settle` gives back what `work` may keep."""
    problems: list[str] = []
    runs = 0
    for _ in range(2):  # what is made once is made
        expected = outcome(work)
        settle()
    if expected[0] == "memory" and name != "soak: alloc_error":
        return 0, [f"{name}: fails without a failure: {expected}"]
    for fail_all in (False, True):
        for n in range(1, 100_000):
            trim_workspace()
            mark = checked.serial()
            checked.fail_at(n, fail_all)
            found = outcome(work)
            _, refused = checked.requests()
            checked.fail_at(0)
            if found != expected and not (refused and found[0] == "memory"):
                problems.append(f"{name}: request {n}{' and all after it' if fail_all else ''}: {found}, {expected}")
            if left := leaks(mark, settle):
                problems.append(f"{name}: request {n}{' and all after it' if fail_all else ''} leaks {left[:5]}")
            if refused == 0:
                break
            runs += 1
            if (again := outcome(work)) != expected:
                problems.append(f"{name}: after request {n}: {again}, {expected}")
            settle()
            if len(problems) > 20:
                return runs, problems
    return runs, problems


def scenarios(folder: Path) -> Iterator[tuple[str, Work, Work]]:
    """(name, what is called, what gives back what it keeps)."""
    executable = assemble(MODEL)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    executable.save(folder / "model.vmx")
    tvm_bytes, vmx_bytes = executable.to_bytes(), (folder / "model.vmx").read_bytes()

    def nothing() -> None:
        pass

    def load_and_run(source: Any, **options: Any) -> Work:
        return lambda: VirtualMachine(load_executable(source, **options))["main"](x)

    yield "load .vmx", load_and_run(folder / "model.vmx"), nothing
    yield "load .vmx, not mapped", load_and_run(folder / "model.vmx", mmap=False), nothing
    yield "load .vmx bytes", load_and_run(vmx_bytes), nothing
    yield "load TVM bytes", load_and_run(tvm_bytes), nothing
    yield "assemble, save, verify", lambda: assemble(MODEL).verify(full=True) or executable.to_bytes(), nothing
    yield "naive allocator", lambda: VirtualMachine(executable, memory_cfg="naive")["main"](x), nothing
    yield "pickle", lambda: pickle.loads(pickle.dumps(VirtualMachine(folder / "model.vmx")["main"]))(x), nothing
    yield "compile and run", _compile_and_run, nothing

    vm = VirtualMachine(executable, memory_limit=1 << 20)

    def settle() -> None:
        vm.trim()

    yield "call", lambda: vm["main"](x), settle
    yield "callbacks and closures", lambda: vm["twice"](x), settle
    yield "tuples", lambda: vm["twice"]((1, (2.5, "x" * 50), [x, Shape((1, 2)), None])), settle
    yield "a loop", lambda: vm["count"](20), settle
    yield "function values", lambda: vm["main"](x)[4](x), settle
    yield "strided and byte-swapped input", lambda: vm["main"](np.asfortranarray(x).astype(">f4")), settle
    yield "buffer", lambda: memoryview(vm["main"](x)[0]).tobytes(), settle
    yield "dlpack", lambda: np.from_dlpack(vm["main"](x)[0]), settle
    yield "dlpack in", lambda: pyvm.tensor(_Producer(x)), settle
    yield "array out", lambda: np.asarray(vm["main"](x)[0]).copy(), settle

    def stateful() -> Any:
        vm.set_input("main", x)
        vm.invoke_stateful("main")
        return vm.get_outputs("main")

    def forget() -> None:
        vm._inputs.clear()
        vm._outputs.clear()
        vm._saved.clear()
        vm.trim()

    def saved() -> Any:
        vm.save_function("main", "bound", x)
        return vm["bound"]()

    yield "stateful interface", stateful, forget
    yield "saved function", lambda: (vm._saved.clear(), saved()), forget
    yield "profile", lambda: len(vm.profile("main", x).records), settle

    def instrumented(verdict: int) -> Any:
        vm.set_instrument(lambda func, name, before, ret, *args: verdict)
        try:
            return vm["twice"](x)
        finally:
            vm.set_instrument(None)

    yield "instrument", lambda: instrumented(0), settle
    yield "instrument that skips", lambda: instrumented(VMInstrumentReturnKind.SKIP_RUN), settle
    yield "hooks of a new machine", _new_hooks(executable, x), nothing
    yield "registry", _register, nothing

    machines.append(vm)
    yield "re-entrant calls", lambda: vm["nested"](12), settle

    for name, case in BUILTINS.items():
        args = tuple(Shape(a[1]) if isinstance(a, tuple) and a[:1] == ("shape",) else a for a in case.args)

        def call_builtin(case: Any = case, args: tuple[Any, ...] = args) -> Any:
            DEBUGGED.clear()
            return VirtualMachine(assemble(case.program))[case.function](*args)

        yield f"builtin: {name}", call_builtin, nothing

    if test_library.COMPILER is not None:
        yield from _library_scenarios(folder)

    soaked = VirtualMachine(assemble(soak.PROGRAM))
    for name, (work, _) in soak.works(soaked).items():
        if name != "sized, varying":
            yield f"soak: {name}", work, lambda: soaked.trim() and None
    for name, (work, _) in soak.slow_works(soaked).items():
        if name not in ("deep", "deadline", "trim"):
            yield f"soak: {name}", work, lambda: soaked.trim() and None

    seen = set()
    for name, args in templates():
        key = (name, *((a.dtype.str, a.ndim) if isinstance(a, np.ndarray) else str(a)[:20] for a in args))
        if key in seen:
            continue
        seen.add(key)

        def call_it(name: str = name, args: tuple[Any, ...] = args) -> Any:
            own = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
            return call_kernel(name, *own), own[-1]

        yield f"{name} {key[1:]}", call_it, nothing
    rng = np.random.default_rng(0)
    a, b = rng.random((300, 200), np.float32), rng.random((200, 250), np.float32)
    yield "kernel.matmul, large", lambda: _with_output("matmul", a, b, np.zeros((300, 250), np.float32)), nothing


def _library_scenarios(folder: Path) -> Iterator[tuple[str, Work, Work]]:
    library = pyvm.load_library(test_library.build(folder))
    vm = VirtualMachine(assemble(test_library.COMPILED), libraries=[library])
    index = test_library.INDEX

    def settle() -> None:
        vm.trim()

    def bounced() -> Any:
        out = test_library.floats(9, 3)
        library["lib_add"](test_library.floats(9, 1), test_library.floats(9, 2), out)
        return out

    yield "library: aligned substitutes", bounced, settle
    yield "library: strings", lambda: library["lib_length"]("x" * 100), settle
    yield "library: a Python callback", lambda: library["lib_callback"](), settle
    yield "library: parallel work", lambda: library["lib_sum_to"](1000), settle
    for shift in (0, 1):
        x, y = test_library.floats(6, shift).reshape(2, 3), test_library.floats(6, 2 * shift).reshape(2, 3)
        yield f"library: compiled functions, shift {shift}", lambda x=x, y=y: vm["main"](x, y), settle
        yield "library: misaligned tuples", lambda x=x: vm["through"]((x, (x, 1))), settle
    yield "library: nested calls", lambda: vm["apply"](index["depth"], 10), settle
    yield "library: function values", lambda: vm["value_of"](index["identity"])("late"), settle

    def load() -> Any:
        return VirtualMachine(vm.executable, libraries=[library])["apply"](index["t.lib.py"], (1, "a"))

    yield "library: load", load, settle


def _with_output(name: str, *args: Any) -> Any:
    call_kernel(name, *args)
    return args[-1]


class _Producer:
    """An array that shows itself through DLPack only."""

    def __init__(self, array: np.ndarray) -> None:
        self.tensor = pyvm.tensor(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def _compile_and_run() -> Any:
    from pyvm.demo.model import build_module

    return VirtualMachine(pyvm.compile(build_module()))["main"](np.ones((2, 1, 8, 8), np.float32))


def _new_hooks(executable: VMExecutable, x: np.ndarray) -> Work:
    def work() -> Any:
        vm = VirtualMachine(executable)
        vm.set_instrument(lambda *call: None)
        return vm["main"](x)

    return work


def _register() -> Any:
    pyvm.register_func("memory.temporary", lambda x: x, override=True)
    found = pyvm.get_global_func("memory.temporary")
    assert isinstance(found, Function)
    pyvm.remove_global_func("memory.temporary")
    return found((1, 2.5, "text"))


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """What the programs of the scenarios call."""
    functions: dict[str, Callable[..., Any]] = {
        "memory.callback": lambda a, b: (a, b),
        "memory.less_one": lambda n: n - 1,
        "memory.nested": lambda n: n if n == 0 else machines[-1]["nested"](n - 1),
        "t.lib.py": lambda x: x,
        "t.lib.callback": lambda tensor, number, text: None,
        **FUNCTIONS,
    }
    for name, function in functions.items():
        pyvm.register_func(name, function, override=True)
    with soak.registered():
        yield
    for name in functions:
        pyvm.remove_global_func(name)


def run(selected: list[str], report: Callable[[str], None] = print, threads: tuple[int, ...] = (1, 2)) -> int:
    """Drives all scenarios, or those whose names contain one of `selected`; returns the number of problems."""
    total = n_scenarios = n_problems = 0
    started = time.perf_counter()
    before = pyvm.get_num_threads()
    known = set(pyvm.list_global_func_names())
    gc.disable()
    try:
        with registered(), tempfile.TemporaryDirectory() as folder:
            for n_threads in threads:
                pyvm.set_num_threads(n_threads)
                for name, work, settle in scenarios(Path(folder)):
                    if n_threads > 1 and not name.startswith("kernel."):
                        continue
                    if selected and not any(text in name for text in selected):
                        continue
                    runs, problems = drive(name, work, settle)
                    total += runs
                    n_scenarios += 1
                    n_problems += len(problems)
                    for problem in problems:
                        report(problem)
            machines.clear()
    finally:
        gc.enable()
        pyvm.set_num_threads(before)
        for name in set(pyvm.list_global_func_names()) - known:  # what the programs of tests.fuzz call
            pyvm.remove_global_func(name)
    seconds = time.perf_counter() - started
    report(f"{n_scenarios} scenarios, {total} runs with a failing request: {n_problems} problems ({seconds:.0f} s)")
    return n_problems


def main() -> int:
    """1 if there are problems, 2 without a checked build."""
    if checked is None:
        print("this build keeps no books: python -m tests.sanitizers checked")
        return 2
    return int(run(sys.argv[1:]) > 0)


if __name__ == "__main__":
    sys.exit(main())
