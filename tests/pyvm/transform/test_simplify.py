"""Algebraic simplification keeps every bit: golden and random programs, on infinities, NaN and signed zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.ir import BlockBuilder, Call, Expr, IRModule, TensorStructInfo, Tuple, Var, check_well_formed, parse
from pyvm.transform import DEFAULT_PIPELINE, eliminate_dead_code, simplify
from pyvm.transform.simplify import loses_nothing
from tests.golden import read
from tests.ir_evaluator import run_module

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 0.5, 2.5, -2.5, 6.0, 7.0], np.float32
)


def same_bits(a: Any, b: Any, zeros_too: bool = True) -> None:
    if isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True):
            same_bits(x, y, zeros_too)
        return
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)
    if a.dtype.kind == "f" and zeros_too:
        number = ~np.isnan(a)
        np.testing.assert_array_equal(np.signbit(a)[number], np.signbit(b)[number])


def _flat(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, (list, tuple)) else [value]


def test_golden_programs_keep_their_bits() -> None:
    """The programs of the golden file, with the numpy references of the operators and compiled."""
    before = parse(read("simplify")["before"])
    after = check_well_formed(simplify(before))
    n = len(SPECIAL)
    rng = np.random.default_rng(3)
    machine = pyvm.VirtualMachine(pyvm.compile(before))
    for name, function in before.functions.items():
        args = []
        for param in function.params:
            info = param.struct_info
            assert isinstance(info, TensorStructInfo) and info.shape is not None
            shape = tuple(dim if isinstance(dim, int) else n for dim in info.shape)
            if info.dtype == "float32":
                args.append(rng.permutation(np.resize(SPECIAL, shape).reshape(-1)).reshape(shape))
            else:
                args.append(rng.integers(-(2**31), 2**31, shape).astype(info.dtype))
        zeros_too = name != "bounds"  # the sign of a maximum of two zeros is not promised
        with np.errstate(all="ignore"):
            given = dict(zip([param.name for param in function.params], args, strict=True))
            expected = run_module(IRModule({"main": function}), given)
            same_bits(run_module(IRModule({"main": after[name]}), given), expected, zeros_too)
        result = machine[name](*args)
        results = result if isinstance(result, tuple) else (result,)
        same_bits([one.numpy() for one in results], _flat(expected), zeros_too)


def test_nothing_is_left_to_simplify() -> None:
    once = eliminate_dead_code(simplify(parse(read("simplify")["before"])))
    assert simplify(once).script() == once.script()


UNARY = ("neg", "abs", "relu", "floor", "ceil", "round", "sign", "square")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.25, 3.0, np.inf, np.nan)


def random_module(seed: int) -> IRModule:
    """A chain of operators for which there are rules, on a tensor of 4 by 4."""
    rng = np.random.default_rng(seed)
    bb = BlockBuilder()
    x = Var("x", TensorStructInfo((4, 4), "float32"))
    with bb.function("main", [x]):
        values: list[Expr] = [x]
        for _ in range(12):
            v = values[-1] if rng.random() < 0.75 else values[rng.integers(len(values))]
            kind = rng.integers(8)
            if kind == 0:
                made: Expr = getattr(op, UNARY[rng.integers(len(UNARY))])(v)
            elif kind in (1, 2):
                number = np.float32(NUMBERS[rng.integers(len(NUMBERS))])
                operands = [v, number] if rng.random() < 0.7 else [number, v]
                made = getattr(op, BINARY[rng.integers(len(BINARY))])(*operands)
            elif kind == 3:
                made = op.clip(v, *[(None, 6), (0, None), (-1, 4), (0, 6), (None, None)][rng.integers(5)])
            elif kind == 4:
                made = op.transpose(v, [(1, 0), (0, 1)][rng.integers(2)])
            elif kind == 5:
                made = op.reshape(bb.emit(op.reshape(v, [(16,), (2, 8), (1, 4, 4)][rng.integers(3)])), (4, 4))
            elif kind == 6:
                made = op.cast(bb.emit(op.cast(v, ["float64", "float32"][rng.integers(2)])), "float32")
            else:
                cond = np.array([rng.random() < 0.5]) if rng.random() < 0.5 else rng.random((4, 4)) < 0.5
                made = op.where(cond, v, values[rng.integers(len(values))])
            values.append(bb.emit(made))
        bb.emit_func_output(bb.emit(Tuple(values[-3:])))
    return bb.get()


def zeros_are_promised(module: IRModule) -> bool:
    text = module.script()
    return not any(f" {name}(" in text for name in ("relu", "clip", "maximum", "minimum"))


@pytest.mark.parametrize("block", range(4))
def test_random_programs_keep_their_bits(block: int) -> None:
    changed = 0
    for seed in range(block * 60, block * 60 + 60):
        before = random_module(seed)
        after = check_well_formed(eliminate_dead_code(simplify(before)))
        changed += len(after.script()) < len(before.script())
        x = np.random.default_rng(seed).permutation(SPECIAL).reshape(4, 4)
        with np.errstate(all="ignore"):
            # Where the sign of a zero is open, 1 / 0 may be either infinity: such inputs are left out.
            given = {"x": x if zeros_are_promised(before) else np.where(x == 0, np.float32(1.5), x)}
            try:
                same_bits(run_module(after, given), run_module(before, given), zeros_are_promised(before))
            except AssertionError as error:
                if zeros_are_promised(before) or " div(" not in before.script():
                    raise AssertionError(f"seed {seed}:\n{before.script()}") from error
    assert changed > 30


def test_casts_that_lose_nothing() -> None:
    """Against numpy, value by value at the edges of each type."""
    integers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    names = ["bool", *integers, "float16", "float32", "float64"]
    for source in names:
        for target in names:
            kind = np.dtype(source)
            if kind.kind == "b":
                edges = np.array([False, True])
            elif kind.kind == "f":
                limits = np.finfo(kind)
                edges = np.array([limits.max, limits.min, limits.smallest_subnormal, 1 + limits.eps, 0.1], kind)
            else:
                whole = np.iinfo(kind)
                edges = np.array([whole.min, whole.max, whole.max - 1, 1, 0], kind)
            with np.errstate(all="ignore"):
                back = edges.astype(target).astype(source)
            exact = bool((back == edges).all())
            assert loses_nothing(source, target) <= exact, (source, target)
    assert loses_nothing("int32", "float64") and not loses_nothing("int64", "float64")


def compiled_both_ways(module: IRModule, *args: Any) -> tuple[Any, Any]:
    """What the module gives compiled, with and without the pass."""
    without = [one for one in DEFAULT_PIPELINE if one is not simplify]
    machines = (pyvm.VirtualMachine(pyvm.compile(module, passes=passes)) for passes in (None, without))
    with_pass, without_it = (np.asarray(machine["main"](*args)) for machine in machines)
    return with_pass, without_it


def unary_program(info: TensorStructInfo, make: Callable[[BlockBuilder, Var], Expr]) -> IRModule:
    bb = BlockBuilder()
    x = Var("x", info)
    with bb.function("main", [x]):
        bb.emit_func_output(bb.emit(make(bb, x)))
    return bb.get()


@pytest.mark.parametrize("source", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("between", ["float64", "float32", "int64"])
@pytest.mark.parametrize("last", ["int8", "uint8", "int16", "uint32", "int32", "uint64", "float16", "bool"])
def test_casts_of_numbers_out_of_range(source: str, between: str, last: str) -> None:
    """Integers wrap around, floating-point numbers stop at the ends of an integer type: one cast is not two."""
    limits = np.iinfo(source)
    x = np.array([limits.min, -1 if limits.min else 3, 0, 1, 127, 128, 200, 255, 256, 300, limits.max])
    x = x[(x >= limits.min) & (x <= limits.max)].astype(source)
    info = TensorStructInfo(x.shape, source)
    module = unary_program(info, lambda bb, v: op.cast(bb.emit(op.cast(v, between)), last))
    same_bits(*compiled_both_ways(module, x))


BOUNDS = [(None, None), (np.inf, None), (None, -np.inf), (-np.inf, np.inf), (-np.inf, -np.inf), (2, 6), (6, 2)]


@pytest.mark.parametrize("inner", BOUNDS)
@pytest.mark.parametrize("outer", [*BOUNDS, "relu"])
def test_bounds_that_are_infinite(inner: tuple[Any, Any], outer: Any) -> None:
    def make(bb: BlockBuilder, x: Var) -> Expr:
        y = bb.emit(op.clip(x, *inner))
        return op.relu(y) if outer == "relu" else op.clip(y, *outer)

    module = unary_program(TensorStructInfo(SPECIAL.shape, "float32"), make)
    same_bits(*compiled_both_ways(module, SPECIAL), zeros_too=False)


def test_operands_of_unknown_shape_stay() -> None:
    """The other operand may be larger."""
    unknown = TensorStructInfo(None, "float32", 2)
    ones, zeros = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    for make in (
        lambda bb, x: op.mul(x, ones),
        lambda bb, x: op.div(x, ones),
        lambda bb, x: op.sub(x, zeros),
        lambda bb, x: op.pow(x, ones * 2),
        lambda bb, x: op.where(ones > 0, x, x),
        lambda bb, x: op.add(bb.emit(op.broadcast_to(bb.emit(op.reshape(x, (1, 4))), (3, 4))), x),
    ):
        module = unary_program(unknown, make)
        assert simplify(module) is module or simplify(module).script() == module.script()
    neg_neg = unary_program(unknown, lambda bb, x: op.neg(bb.emit(op.neg(x))))
    assert " neg(" not in eliminate_dead_code(simplify(neg_neg)).script()


def test_a_chain_of_concats_is_bounded() -> None:
    """No call gets more arguments than a program can say, and a chain of n takes no n * n steps."""

    def make(bb: BlockBuilder, x: Var) -> Expr:
        y: Expr = x
        for _ in range(300):
            y = bb.emit(op.concat([y, x], 0))
        return op.neg(y)

    module = unary_program(TensorStructInfo((1,), "float32"), make)
    calls = [binding.value for binding in simplify(module).functions["main"].body.bindings()]
    assert max(len(call.args) for call in calls if isinstance(call, Call)) <= 64
    with_pass, without_it = compiled_both_ways(module, np.ones(1, np.float32))
    same_bits(with_pass, without_it)
