"""Fusion of elementwise operators: text before and after, and the same bits as without it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyvm
from pyvm import op
from pyvm.ir import BlockBuilder, Expr, IRModule, SymVar, TensorStructInfo, Tuple, Var, check_well_formed, parse
from pyvm.ir.source import Source, notes_of
from pyvm.transform import DEFAULT_PIPELINE, fuse_elementwise
from pyvm.transform.fuse_elementwise import ALWAYS_FUSED, LEAST_SAVED
from tests.ir_evaluator import run_module
from tests.ir_text import build, expect, tensor

N = SymVar("n")
F32 = np.float32


def fused(module: IRModule) -> IRModule:
    result = check_well_formed(fuse_elementwise(module))
    assert parse(str(result)).script() == str(result)
    return result


def test_a_chain_is_one_operator() -> None:
    def body(bb, x, y):
        a = bb.emit(op.mul(x, y), "a")
        b = bb.emit(op.add(a, F32(0.1)), "b")
        c = bb.emit(op.tanh(b), "c")
        return bb.emit(op.sub(c, a), "d")

    module = build(body, x=tensor(N, 4), y=tensor(4))
    expect(
        module,
        """
        def main:
            with dataflow():
                a = mul(x, y)
                b = add(a, const(0.10000000149011612, float32))
                c = tanh(b)
                d = sub(c, a)
                out = d
            return out
        """,
    )
    expect(
        fused(module),
        """
        def main:
            with dataflow():
                d = fused_elementwise(x, y, program="mul(x0, x1); add(t0, 0.1); tanh(t1); sub(t2, t0)")
                out = d
            return out
        """,
    )


def test_what_others_read_stays_a_value() -> None:
    def body(bb, x):
        a = bb.emit(op.exp(x), "a")
        b = bb.emit(op.add(a, F32(1)), "b")
        c = bb.emit(op.log(b), "c")
        return bb.emit(Tuple([c, b]), "d")

    expect(
        fused(build(body, x=tensor(N))),
        """
        def main:
            with dataflow():
                b = fused_elementwise(x, program="exp(x0); add(t0, 1.0)")
                c = log(b)
                d = (c, b)
                out = d
            return out
        """,
    )


def test_what_is_broadcast_is_computed_once() -> None:
    def body(bb, x, row, s):
        a = bb.emit(op.exp(row), "a")
        b = bb.emit(op.sqrt(s), "b")
        c = bb.emit(op.mul(x, a), "c")
        return bb.emit(op.add(c, b), "d")

    expect(
        fused(build(body, x=tensor(N, 4), row=tensor(4), s=tensor())),
        """
        def main:
            with dataflow():
                a = exp(row)
                d = fused_elementwise(s, x, a, program="sqrt(x0); mul(x1, x2); add(t1, t0)")
                out = d
            return out
        """,
    )


def test_masks_types_and_what_has_no_step() -> None:
    def body(bb, x, m, h, i):
        a = bb.emit(op.cast(m, "float32"), "a")
        b = bb.emit(op.sub(F32(1), a), "b")
        c = bb.emit(op.where(m, F32(0), F32(-np.inf)), "c")
        d = bb.emit(op.add(b, c), "d")
        e = bb.emit(op.add(bb.emit(op.relu(h), "h1"), h), "h2")
        j = bb.emit(op.neg(bb.emit(op.div(i, i), "i1")), "i2")
        return bb.emit(Tuple([bb.emit(op.mul(x, d), "r"), e, j]), "t")

    infos = {"x": tensor(N, 4), "m": tensor(N, 4, dtype="bool"), "h": tensor(4, dtype="float16")}
    module = build(body, **infos, i=tensor(4, dtype="int32"))
    expect(
        fused(module),
        """
        def main:
            with dataflow():
                d = fused_elementwise(m, program="cast(x0, dtype=float32); sub(1.0, t0); \
where(x0, 0.0, -inf, of=float32); add(t1, t2)")
                h1 = relu(h)
                h2 = add(h1, h)
                i1 = div(i, i)
                i2 = neg(i1)
                r = mul(x, d)
                t = (r, h2, i2)
                out = t
            return out
        """,
    )


def test_small_chains_stay_apart() -> None:
    """Up to a size, decoding the program costs more than the passes over memory that it saves."""

    def body(bb, x):
        return bb.emit(op.exp(bb.emit(op.neg(bb.emit(op.add(x, x), "a")), "b")), "c")

    def is_fused(module) -> bool:
        return "fused_elementwise" in str(fused(module))

    assert not is_fused(build(body, x=tensor(16)))
    assert not is_fused(build(body, x=tensor(LEAST_SAVED // 2 - 1)))
    assert is_fused(build(body, x=tensor(LEAST_SAVED // 2)))
    assert is_fused(build(body, x=tensor(N)))


def test_four_operators_are_fused_at_any_size() -> None:
    def body(bb, x, count):
        for i in range(count):
            x = bb.emit(op.exp(x), f"v{i}")
        return x

    for count in (ALWAYS_FUSED - 1, ALWAYS_FUSED):
        module = build(lambda bb, x, count=count: body(bb, x, count), x=tensor(4))
        assert ("fused_elementwise" in str(fused(module))) == (count == ALWAYS_FUSED)


def test_sources_and_their_notes_stay() -> None:
    """Explanations and profiles still name all operators, and what passes did to them before."""

    def body(bb, x):
        a = bb.emit(op.mul(x, F32(2)), "a")
        b = bb.emit(op.exp(a), "b")
        return bb.emit(op.tanh(b), "c")

    module = build(body, x=tensor(N))
    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    for binding, source in zip(bindings, (Source("scale", ("was a division",)), "curve", "curve"), strict=False):
        binding.value.source = binding.source = source
    (call,) = (
        binding.source
        for block in fused(module)["main"].body.blocks
        for binding in block.bindings
        if "fused_elementwise" in str(binding.value)
    )
    assert call == "scale + curve"
    first, second = notes_of(call)
    assert first == "was a division"
    assert second.startswith("3 elementwise operators") and second.endswith("mul -> exp -> tanh")


def test_operators_do_not_move_where_that_needs_memory() -> None:
    """Two inputs of `a` would live on until `d`."""

    def body(bb, x, y):
        a = bb.emit(op.add(x, y), "a")
        b = bb.emit(op.softmax(y, axis=0), "b")
        c = bb.emit(op.relu(b), "c")
        return bb.emit(op.add(a, c), "d")

    expect(
        fused(build(body, x=tensor(N), y=tensor(N))),
        """
        def main:
            with dataflow():
                a = add(x, y)
                b = softmax(y, axis=0)
                d = fused_elementwise(b, a, program="relu(x0); add(x1, t0)")
                out = d
            return out
        """,
    )


def test_long_chains_are_cut() -> None:
    def body(bb, x):
        for i in range(100):
            x = bb.emit(op.add(x, F32(i)) if i % 2 else op.tanh(x))
        return x

    module = build(body, x=tensor(N))
    text = str(fused(module))
    assert text.count("fused_elementwise(") == 4 and " = add(" not in text and "tanh(x0)" in text
    assert_same(module, {"x": np.linspace(-1, 1, 5000, dtype=F32)})


def test_many_values_at_once() -> None:
    """More than the kernel has registers, and more inputs than it takes."""

    def body(bb, *xs):
        parts = [bb.emit(op.exp(x)) for x in xs]
        total = bb.emit(op.add(parts[0], parts[-1]))
        for part in [*parts[1:-1], *parts[::-1]]:
            total = bb.emit(op.mul(total, part))
        return total

    module = build(body, **{f"x{i}": tensor(N) for i in range(24)})
    rng = np.random.default_rng(0)
    fused(module)
    assert_same(module, {f"x{i}": rng.standard_normal(70).astype(F32) / 9 for i in range(24)})


def without_fusion(module: IRModule) -> pyvm.VMExecutable:
    return pyvm.compile(module, passes=[p for p in DEFAULT_PIPELINE if p is not fuse_elementwise])


def assert_same(module: IRModule, inputs: dict[str, np.ndarray]) -> None:
    """Fused and unfused programs give the same bits, and numpy nearly the same numbers."""
    got = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"](**inputs).numpy()
    expected = pyvm.VirtualMachine(without_fusion(module))["main"](**inputs).numpy()
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert np.array_equal(got, expected, equal_nan=got.dtype.kind == "f")
    if got.dtype.kind == "f":
        assert np.array_equal(np.signbit(got), np.signbit(expected)) or np.isnan(got).any()
    oracle = run_module(module, inputs)[0]
    if oracle.dtype.kind == "f":
        close = np.isclose(got, oracle, rtol=1e-3, atol=1e-3, equal_nan=True) | (np.abs(oracle) > 1e6)
        assert (~close).sum() <= 0.01 * close.size
    elif oracle.dtype.kind != "b":
        assert np.array_equal(got, oracle)


FLOATS = ("relu", "abs", "neg", "square", "tanh", "sigmoid", "floor", "gelu", "silu", "hard_swish", "erf")
PAIRS = ("add", "sub", "mul", "maximum", "minimum")
COMPARISONS = ("less", "greater_equal", "equal", "not_equal")


class Generator:
    """Draws a graph of elementwise operators over float32, float64, int32 and bool, with broadcasting."""

    def __init__(self, data: st.DataObject, rank_2: bool) -> None:
        self.data = data
        self.shapes = [(N, 4), (4,), (N, 1), ()] if rank_2 else [(N,), (), (1,)]
        self.params: list[Var] = []
        for i in range(4):
            shape = self.draw(st.sampled_from(self.shapes)) if i else self.shapes[0]
            dtype = self.draw(st.sampled_from(["float32", "float32", "float64", "int32"])) if i else "float32"
            self.params.append(Var(f"p{i}", TensorStructInfo(shape, dtype)))

    def draw(self, strategy):  # type: ignore[no-untyped-def]
        return self.data.draw(strategy)

    def pick(self, values: list[Expr], dtype: str) -> Expr | None:
        fitting = [v for v in values if v.struct_info.dtype == dtype]  # type: ignore[union-attr]
        return self.draw(st.sampled_from(fitting[-6:])) if fitting else None

    def module(self) -> IRModule:
        bb = BlockBuilder()
        with bb.function("main", self.params):
            values: list[Expr] = list(self.params)
            for _ in range(self.draw(st.integers(2, 14))):
                made = self.one(values)
                if made is not None:
                    values.append(bb.emit(made))
            bb.emit_func_output(values[-1])
        return bb.get()

    def one(self, values: list[Expr]) -> Expr | None:
        kind = self.draw(st.integers(0, 7))
        dtype = self.draw(st.sampled_from(["float32", "float32", "float32", "float64", "int32"]))
        a, b = self.pick(values, dtype), self.pick(values, dtype)
        if a is None or b is None:
            return None
        number = np.asarray(self.draw(st.sampled_from([0, 1, -2, 3])), dtype)
        if kind <= 1:
            return getattr(op, self.draw(st.sampled_from(FLOATS if dtype[0] == "f" else FLOATS[:4])))(a)
        if kind <= 3:
            return getattr(op, self.draw(st.sampled_from(PAIRS)))(a, b)
        if kind == 4:
            pair = (a, number) if self.draw(st.booleans()) else (number, a)
            return getattr(op, self.draw(st.sampled_from(PAIRS)))(*pair)
        if kind == 5:
            return getattr(op, self.draw(st.sampled_from(COMPARISONS)))(a, b)
        if kind == 6:
            cond = self.pick(values, "bool")
            return op.clip(a, -1, 2) if cond is None else op.where(cond, a, b)
        others = [d for d in ("float32", "float64", "int32", "bool") if d != dtype]
        return op.cast(a, self.draw(st.sampled_from(others)))


@pytest.mark.parametrize("rank_2", [False, True])
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graphs(rank_2: bool, data: st.DataObject) -> None:
    generator = Generator(data, rank_2)
    module = generator.module()
    n = data.draw(st.sampled_from([0, 1, 7, 64, 4097]))
    rng = np.random.default_rng(n)
    inputs = {}
    for param in generator.params:
        shape = tuple(n if dim is N else dim for dim in param.struct_info.shape)  # type: ignore[union-attr]
        inputs[param.name] = np.asarray(rng.standard_normal(shape) * 2, param.struct_info.dtype)  # type: ignore[union-attr]
    assert_same(module, inputs)


@pytest.mark.parametrize("dtype", ["float32", "int64", "int8", "bool"])
@pytest.mark.parametrize("truth", [True, False])
def test_conditions_that_are_constants(dtype: str, truth: bool) -> None:
    """A constant condition is a bool, whatever is chosen from. It stays where it decides about a broadcast."""
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 2, 1).astype(dtype), rng.integers(0, 2, 2000).astype(dtype)

    def body(bb, x, y):
        chosen = bb.emit(op.where(np.array([truth]), x, y))
        same = bb.emit(op.equal(chosen, y))
        return bb.emit(op.where(same, chosen, x))

    module = build(body, x=tensor(1, dtype=dtype), y=tensor(2000, dtype=dtype))
    assert "fused_elementwise" in str(fused(module))
    result = np.asarray(pyvm.VirtualMachine(pyvm.compile(module))["main"](x, y))
    chosen = np.where(truth, x, y)
    np.testing.assert_array_equal(result, np.where(chosen == y, chosen, x))
