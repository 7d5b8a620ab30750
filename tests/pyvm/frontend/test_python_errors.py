"""What cannot be a program is refused with file, line, function and the reason; wrong arguments with all facts."""

# ruff: noqa: F821, UP037, B018

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.errors import (
    ArgumentTypeError,
    CompileError,
    DTypeMismatchError,
    FrontendError,
    ShapeMismatchError,
    WellFormedError,
)
from pyvm.frontend.python.annotations import struct_info_of
from pyvm.ir import (
    CallableStructInfo,
    Function,
    IRModule,
    ObjectStructInfo,
    PrimStructInfo,
    SeqExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    TupleStructInfo,
    Var,
    VarBinding,
    check_well_formed,
    parse_struct_info,
)
from pyvm.ir.expr import BindingBlock

T = pyvm.Tensor
X = T["n", 4, "float32"]
N = SymVar("n")


def line_of(function: Any, text: str) -> int:
    """Line of this file that holds `text`, in a function."""
    code = function.function.__code__
    with open(code.co_filename, encoding="utf-8") as file:
        lines = file.readlines()
    return next(i for i in range(code.co_firstlineno, len(lines)) if text in lines[i - 1])


def refused(function: Any, message: str, mark: str = "HERE") -> None:
    """The function is refused with file, line, its name and the message."""
    with pytest.raises(FrontendError, match=message) as caught:
        function.module
    place = f"test_python_errors.py:{line_of(function, mark)}"
    assert str(caught.value).startswith(f"{place}: in {function.name}: "), caught.value
    assert any(place in note and mark in note for note in caught.value.__notes__)


def test_shapes_that_do_not_fit() -> None:
    @pyvm.function
    def f(x: X, y: T["n", 3, "float32"]):
        z = op.relu(x)
        return z + y  # HERE

    refused(f, r"add: shapes \(n, 4\) and \(n, 3\) do not broadcast: 4 and 3 at axis -1 differ")


def test_element_types_that_do_not_fit() -> None:
    @pyvm.function
    def f(x: X, y: T["n", 4, "float64"]):
        return x * y  # HERE

    refused(f, r"mul: .*float32, float64.*cast")

    @pyvm.function
    def g(k: T["n", "int64"]):
        return k / 2  # HERE

    refused(g, r"/ of int64: use // for integers, or convert")

    @pyvm.function
    def h(k: T["n", "int64"], by: float):
        return k * by  # HERE

    refused(h, r"a float meets a tensor of int64")


def test_parameters() -> None:
    @pyvm.function
    def f(x):  # HERE
        return x

    refused(f, "parameter x has no annotation")

    @pyvm.function
    def g(x: T["n", 4]):  # HERE
        return x

    refused(g, r"Tensor\['n', 4\]: the element type is missing; it comes last")

    @pyvm.function
    def h(x: T["2*n", "float32"]):  # HERE
        return x

    refused(h, r"parameter x: no parameter has n as a size by itself")

    @pyvm.function
    def i(x: complex):  # HERE
        return x

    refused(i, r"annotation <class 'complex'> says nothing")

    @pyvm.function
    def j(*x: X):  # HERE
        return x

    refused(j, r"\*args")


def test_python_that_is_no_program() -> None:
    @pyvm.function
    def f(x: X):
        with open("x"):  # HERE
            return x

    refused(f, "`with open.*cannot be part of a program")

    @pyvm.function
    def g(x: X):
        print(x)  # HERE
        return x

    refused(g, "print in a program")

    @pyvm.function
    def h(x: X):
        return np.exp(x)  # HERE

    refused(h, r"numpy.exp cannot take Tensor\(\(n, 4\), float32\); pyvm.op.exp can")

    @pyvm.function
    def i(x: X):
        return {x for _ in range(3)}  # HERE

    refused(i, "SetComp")

    @pyvm.function
    def j(x: X):
        return [row for row in x]  # HERE

    refused(j, "the number of its parts is not known")

    @pyvm.function
    def k(x: X):
        weights = [1, 2, 3]
        for i in range(x.shape[0]):
            x = x * weights[i]  # HERE
        return x

    refused(k, "known at run time only: iterate over the values themselves")

    @pyvm.function
    def p(x: X):
        return undefined_name(x)  # HERE  # noqa: F821

    refused(p, "there is no name 'undefined_name'")

    @pyvm.function
    def m(x: X):
        return x.nbytes  # HERE

    refused(m, "a tensor has no attribute 'nbytes'; it has ")

    @pyvm.function
    def n(x: X):
        assert x.shape[1] == 5, "five"  # HERE
        return x

    refused(n, "assertion: five")

    @pyvm.function
    def o(x: X):
        return threading.Lock(x)  # HERE

    refused(o, "is no function of a program: register it and use pyvm.call_packed|takes no|argument")


def test_conditions() -> None:
    @pyvm.function
    def f(x: X):
        if x > 0:  # HERE
            return x
        return -x

    refused(f, "a condition has one element")


def test_paths_that_do_not_fit() -> None:
    @pyvm.function
    def f(x: X, flag: bool):
        if flag:
            y = x
        return y  # HERE

    refused(f, "y has a value on one path only, see the if at lines")

    @pyvm.function
    def g(x: X, flag: bool):
        if flag:  # HERE
            y = x
        else:
            y = x.sum(axis=1)
        return y

    refused(g, r"y is Tensor\(\(n, 4\), float32\) on one path and Tensor\(\(n\), float32\) on another")

    @pyvm.function
    def h(x: X, steps: int):
        for _ in range(steps):  # HERE
            x = x.sum(axis=-1)
        return x

    refused(h, r"x is Tensor\(\(n, 4\), float32\) on one path and Tensor\(\(n\), float32\) on another")

    @pyvm.function
    def i(x: X, steps: int):
        rows = []
        for _ in range(steps):
            rows.append(x)  # HERE
        return rows

    refused(i, "changes a list in a branch or loop that is decided at run time")

    @pyvm.function
    def j(x: X):
        while True:  # HERE
            x = x + 1

    refused(j, "the loop never ends")

    @pyvm.function
    def k(x: X, flag: bool):
        if flag:  # HERE
            return x
        return x.sum(axis=0), x

    refused(k, "is returned on one path and")


def test_functions() -> None:
    @pyvm.function
    def callee(x: T["n", 3, "float32"]):
        return x

    @pyvm.function
    def f(x: X):
        return callee(x)  # HERE

    refused(f, "callee: parameter x: dim 1: expected 3, actual 4")

    @pyvm.function
    def g(x: X):
        return callee(x, x)  # HERE

    refused(g, "callee: too many positional arguments")

    @pyvm.function
    def h(n: int):
        return h(n - 1) if n > 0 else n  # HERE

    refused(h, "h is called before its result is known: declare it")

    @pyvm.function
    def i(x: X) -> T["n", 5, "float32"]:
        return x  # HERE

    refused(i, "i returns a value with dim 1: expected 5, actual 4")

    @pyvm.function
    def j(x: X, y: X):
        def inner(a: X):  # HERE
            return a + y

        y = y * 2
        return inner(x)

    refused(j, "inner reads y, which line .* changes afterwards")

    @pyvm.function
    def k(x: X):
        y: T["m", 3, "float32"] = x  # HERE
        return y

    refused(k, "y: dim 1: expected 3, actual 4")


def test_the_place_in_an_inlined_function() -> None:
    def helper(x: Any) -> Any:
        return x @ x  # INLINED

    @pyvm.function
    def f(x: X):
        return helper(x)

    with pytest.raises(FrontendError, match=r"test_python_errors.py:\d+: in helper: matmul: "):
        f.module


def test_no_source() -> None:
    namespace: dict[str, Any] = {"pyvm": pyvm}
    program = "@pyvm.function\ndef f(x: pyvm.Tensor[3, 'float32']):\n    return x"
    exec(compile(program, "<nowhere>", "exec"), namespace)
    with pytest.raises(FrontendError, match=r"the source of f \(<nowhere>\) cannot be read: define it in a file"):
        namespace["f"].module
    with pytest.raises(FrontendError, match="only in|call it in"):
        pyvm.call_dps_packed("test.f", 1, out=None)


@pyvm.function
def main(x: X, s: pyvm.Shape["n", "k"], count: int, pair: tuple[T["n", "float32"], T[2, "int64"]]):
    return x.sum(axis=1) * pair[0] + count


GOOD = (np.ones((2, 4), np.float32), pyvm.Shape((2, 3)), 1, (np.ones(2, np.float32), np.zeros(2, np.int64)))


@pytest.mark.parametrize(
    ("position", "value", "error", "facts"),
    [
        (0, np.ones((2, 3), np.float32), ShapeMismatchError, ("fn=main", "param=x", "dim 1|[1]", "4", "3")),
        (0, np.ones((2, 4, 1), np.float32), ShapeMismatchError, ("fn=main", "param=x", "2", "3")),
        (0, np.ones((2, 4), np.float64), DTypeMismatchError, ("fn=main", "param=x", "float32", "float64")),
        (0, "text", ArgumentTypeError, ("fn=main", "param=x")),
        (1, pyvm.Shape((3, 3)), ShapeMismatchError, ("fn=main", "param=s", "2", "3")),
        (2, "text", ArgumentTypeError, ("fn=main", "param=count")),
        (3, (np.ones(5, np.float32), np.zeros(2, np.int64)), ShapeMismatchError, ("fn=main", "param=pair", "2", "5")),
        (3, (np.ones(2, np.float32),), Exception, ("fn=main", "param=pair", "2", "1")),
    ],
)
def test_wrong_arguments_are_refused_with_all_facts(
    position: int, value: Any, error: type[Exception], facts: tuple[str, ...]
) -> None:
    """Function, parameter, dimension, expected, actual."""
    args = list(GOOD)
    np.testing.assert_array_equal(main(*args), [5, 5])
    args[position] = value
    with pytest.raises(error) as caught:
        main(*args)
    for fact in facts:
        assert any(part in str(caught.value) for part in fact.split("|")), (fact, str(caught.value))


def test_calls() -> None:
    @pyvm.function
    def f(x: T["n", "float32"], by: float = 2.0, *, plus: int = 1):
        return x * by + plus

    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(f(x), [3, 3, 3])
    np.testing.assert_array_equal(f(x=x, plus=5, by=1.0), [6, 6, 6])
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        f()
    assert "f(x: " in repr(f) and f.compile().signature("f").params[0].name == "x"
    executable = pyvm.compile(f)
    np.testing.assert_array_equal(pyvm.VirtualMachine(executable)["f"](x, 2.0, 1), [3, 3, 3])


def test_many_threads_compile_once() -> None:
    @pyvm.function
    def f(x: T["n", "float32"]):
        return x + 1

    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(f(np.zeros(2, np.float32)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(np.asarray(r).tolist() == [1, 1] for r in results)


def test_a_million_iterations_in_one_frame() -> None:
    @pyvm.function
    def count(limit: int) -> int:
        total = 0
        for i in range(limit):
            if i % 2 == 1:
                continue
            total += 1
        return total

    assert count(1_000_000) == 500_000

    @pyvm.function
    def down(n: int, total: int) -> int:
        if n == 0:
            return total
        return down(n - 1, total + 2)

    assert down(1_000_000, 0) == 2_000_000


def test_annotations() -> None:
    info = struct_info_of
    assert info(T["n", 4, "float32"]) == TensorStructInfo((N, 4), "float32")
    assert info(T[N + 1, np.float32]) == TensorStructInfo((N + 1,), "float32")
    assert info(T["float32"]) == TensorStructInfo((), "float32")
    assert info(T[..., "int8"]) == TensorStructInfo(None, "int8")
    assert info(T[None, 2, "int8"], "x") == TensorStructInfo((SymVar("x_0"), 2), "int8")
    assert info(T) == TensorStructInfo()
    assert info(Annotated[T, "n", 4, "float32"]) == TensorStructInfo((N, 4), "float32")
    assert info("Tensor((n, 4), float32)") == TensorStructInfo((N, 4), "float32")
    assert info(pyvm.Shape["n", 2]) == ShapeStructInfo((N, 2))
    assert info(int, "k") == PrimStructInfo("int64", SymVar("k"))
    assert (info(float), info(bool)) == (PrimStructInfo("float64"), PrimStructInfo("bool"))
    assert info(tuple[float, T["n", "float32"]]) == TupleStructInfo(
        [PrimStructInfo("float64"), TensorStructInfo((N,), "float32")]
    )
    assert info(Callable[[int], T["n", "float32"]]) == CallableStructInfo(
        [PrimStructInfo("int64")], TensorStructInfo((N,), "float32")
    )
    assert info(object) == ObjectStructInfo()
    assert parse_struct_info("Tuple(Shape(?), Object)") == TupleStructInfo([ShapeStructInfo(), ObjectStructInfo()])
    for wrong in ("Tensr((2,), float32)", T["n"], T["n +", "float32"], list[int], 3, T[2.5, "float32"]):
        with pytest.raises(CompileError):
            info(wrong)


def test_rules_name_the_binding_and_the_source() -> None:
    """A module that breaks a rule: the rule, the binding, the function and where it comes from."""
    x, y = Var("x", TensorStructInfo((N,), "float32")), Var("y", TensorStructInfo((N,), "int64"))
    binding = VarBinding(y, x, "relu (Relu-3)")
    module = IRModule({"main": Function([x], SeqExpr([BindingBlock([binding])], y))})
    message = re.escape("rule struct-info-agreement: variable y is Tensor((n,), int64), its value Tensor(")
    with pytest.raises(WellFormedError, match=message + ".*in @main") as caught:
        check_well_formed(module)
    first, second = caught.value.__notes__
    assert first.startswith("binding: y: Tensor((n,), int64) = x ") and second == "source: relu (Relu-3)"


def test_lambdas_read_what_python_reads() -> None:
    """Defaults keep a value; a name that has changed since the lambda was made is refused, not read as it was."""

    @pyvm.function
    def f(x: X):
        scales = [lambda y, i=i: y * i for i in range(1, 4)]
        shift = lambda y, *, by=1.0: y + by  # noqa: E731
        return scales[0](x), scales[2](x), shift(x), shift(x, by=5.0)

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for ours, expected in zip(f(x), (x, x * 3, x + 1, x + 5), strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected)

    @pyvm.function
    def g(x: X):
        scales = [lambda y: y * i for i in range(1, 4)]  # noqa: B023
        return scales[0](x)  # HERE

    refused(g, "reads i, which has another value by now; .*lambda y, i=i")

    @pyvm.function
    def h(x: X, k: int):
        s = 1.0
        scale = lambda y: y * s  # noqa: E731
        if k > 2:
            s = 5.0
        return scale(x)  # HERE

    refused(h, "reads s, which has another value by now")

    @pyvm.function
    def i(x: X):
        scale = lambda y, s: y * s  # noqa: E731
        return scale(x)  # HERE

    refused(i, "the lambda takes y, s; s is missing")


def test_numbers_as_results_and_indices_out_of_range() -> None:
    @pyvm.function
    def f(x: X):
        return 1.5, (2, 3.5)

    first, (second, third) = f(np.zeros((1, 4), np.float32))
    assert float(first) == 1.5 and second == 2 and float(third) == 3.5

    @pyvm.function
    def g(x: X):
        return x[0, 4]  # HERE

    refused(g, r"index 4 is out of range for axis 1 of Tensor\(\(n, 4\), float32\)")


def test_what_is_no_function_and_calls_that_do_not_fit() -> None:
    with pytest.raises(FrontendError, match="is no Python function"):
        pyvm.function(type("C", (), {}))

    @pyvm.function
    def f(x: X, *, k: int = 1):
        return x * float(k)

    with pytest.raises(ArgumentTypeError, match=r"f\(x: .*too many positional arguments"):
        f(np.zeros((1, 4), np.float32), 2)

    @pyvm.function
    def g(x: T[4, "float33"]):  # HERE
        return x

    refused(g, "a tensor cannot have dtype float33")
