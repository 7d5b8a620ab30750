"""Passes from operators to operators: text before and after."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm import op
from pyvm.ir import (
    BlockBuilder,
    Call,
    Constant,
    PrimValue,
    ShapeExpr,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    Var,
    call_packed,
    check_well_formed,
)
from pyvm.op.registry import Decompose, Op
from pyvm.transform import (
    decompose,
    eliminate_common_subexpressions,
    eliminate_dead_code,
    fold_batch_norm,
    fold_constants,
    fold_scale_shift,
    fuse_activation,
    fuse_bias,
    recognize_activations,
)
from tests.ir_evaluator import run_module
from tests.ir_text import build, expect, tensor

N = SymVar("n")
F32 = np.float32


# --- fold_constants


def test_fold_constants_folds_what_is_known() -> None:
    def body(bb, x):
        w = bb.emit(op.transpose(np.arange(4, dtype=F32).reshape(2, 2), (1, 0)), "w")
        w2 = bb.emit(op.add(w, F32(1)), "w2")
        s = bb.emit(op.shape_to_tensor((4, 2)), "s")
        return bb.emit(op.add(bb.emit(op.matmul(x, w2), "y"), bb.emit(op.cast(s, "float32"), "b")), "z")

    module = build(body, x=tensor(N, 2))
    expect(
        module,
        """
        def main:
            with dataflow():
                w = transpose(const([0.0, 1.0, 2.0, 3.0], float32, shape=(2, 2)), perm=(1, 0))
                w2 = add(w, const(1.0, float32))
                s = shape_to_tensor(shape(4, 2))
                y = matmul(x, w2)
                b = cast(s, dtype="float32")
                z = add(y, b)
                out = z
            return out
        """,
    )
    expect(
        check_well_formed(fold_constants(module)),
        """
        def main:
            with dataflow():
                y = matmul(x, const([1.0, 3.0, 2.0, 4.0], float32, shape=(2, 2)))
                z = add(y, const([4.0, 2.0], float32))
                out = z
            return out
        """,
    )
    assert fold_constants(fold_constants(module))["main"] is not module["main"]


def test_fold_constants_resolves_shapes_from_struct_info() -> None:
    def body(bb, x):
        shape = bb.emit(Call(op.get_op("shape_of"), [x]), "shape")
        return bb.emit(Call(op.get_op("shape_to_tensor"), [shape]), "t")

    expect(
        fold_constants(build(body, x=tensor(N, 2))),
        """
        def main:
            with dataflow():
                t = shape_to_tensor(shape(n, 2))
                out = t
            return out
        """,
    )


def test_fold_constants_leaves_large_results_and_errors() -> None:
    def body(bb, x):
        big = bb.emit(op.broadcast_to(np.ones(1, F32), (1000, 1000)), "big")
        wrong = bb.emit(op.gather(np.ones(3, F32), np.array([7], np.int64), 0), "wrong")
        return bb.emit(Tuple([big, wrong]), "t")

    module = build(body, x=tensor(N))
    folded = fold_constants(module)
    assert folded["main"] is module["main"]
    assert "broadcast_to" not in str(fold_constants(module, limit_bytes=8_000_000))


def test_fold_constants_takes_the_branch_that_is_known() -> None:
    def body(bb, x):
        def otherwise():
            with bb.dataflow():
                inner = bb.emit(op.exp(x), "inner")
                return bb.emit_output(op.neg(inner), "minus")

        return bb.emit_if(Constant(np.array(False)), lambda: x, otherwise, "r")

    expect(
        check_well_formed(fold_constants(build(body, dataflow=False, x=tensor(N)))),
        """
        def main:
            with dataflow():
                inner = exp(x)
                minus = neg(inner)
            return minus
        """,
    )


def test_fold_constants_folds_operators_with_several_results() -> None:
    def body(bb, x):
        both = bb.emit(op.topk(np.array([3, 1, 2], F32), 2, axis=0), "both")
        return bb.emit(op.add(x, bb.emit(TupleGetItem(both, 0), "values")), "y")

    expect(
        eliminate_dead_code(fold_constants(build(body, x=tensor(2)))),
        """
        def main:
            with dataflow():
                out = add(x, const([3.0, 2.0], float32))
            return out
        """,
    )


# --- eliminate_dead_code


def test_dead_code_goes_and_effects_stay() -> None:
    def body(bb, x, c):
        bb.emit(op.exp(bb.emit(op.neg(x), "dead1")), "dead2")
        bb.emit(call_packed("user.log", x), "effect")
        bb.match_cast(x, tensor(3), "check")
        bb.emit_if(c, lambda: bb.emit(op.neg(x), "a"), lambda: x, "dead3")
        kept = bb.emit_if(c, lambda: (bb.emit(op.exp(x), "dead4"), bb.emit(op.abs(x), "b"))[1], lambda: x, "kept")
        return kept

    expect(
        check_well_formed(eliminate_dead_code(build(body, dataflow=False, x=tensor(N), c=tensor(dtype="bool")))),
        """
        def main:
            effect = extern("user.log")(x)
            check = match_cast(x, Tensor((3,), float32))
            if c:
                b = abs(x)
                kept = b
            else:
                kept = x
            return kept
        """,
    )


def test_second_names_go() -> None:
    bb = BlockBuilder()
    x = Var("x", tensor(N))
    with bb.function("main", [x]):
        with bb.dataflow():
            a = bb.emit(op.neg(x), "a")
            b = bb.emit(a, "b")
            one = bb.emit_output(b, "one")
            two = bb.emit_output(a, "two")
        c = bb.emit(one, "c")
        bb.emit_func_output(bb.emit(op.add(c, two), "sum"))
    expect(
        check_well_formed(eliminate_dead_code(bb.get())),
        """
        def main:
            with dataflow():
                two = neg(x)
            sum = add(two, two)
            return sum
        """,
    )


def test_nothing_to_do_shares_the_function() -> None:
    module = build(lambda bb, x: bb.emit(op.neg(x)), dataflow=False, x=tensor(N))
    for transform in (eliminate_dead_code, fold_constants, eliminate_common_subexpressions, fuse_activation, decompose):
        assert transform(module)["main"] is module["main"], transform.__name__


# --- eliminate_common_subexpressions


def test_common_subexpressions() -> None:
    def body(bb, x, c):
        a = bb.emit(op.exp(x), "a")
        b = bb.emit(op.exp(x), "b")
        d = bb.emit(op.add(a, np.array([1, 2], F32)), "d")
        e = bb.emit(op.add(b, np.array([1, 2], F32)), "e")
        other = bb.emit(op.add(b, np.array([1, 2], np.float64).astype(F32) + 1), "other")
        r = bb.emit_if(
            c, lambda: bb.emit(op.exp(x), "inner"), lambda: bb.emit(op.neg(bb.emit(op.exp(x), "i2")), "i3"), "r"
        )
        bb.emit(call_packed("f", x), "p1")
        bb.emit(call_packed("f", x), "p2")
        late = bb.emit(op.neg(x), "late")
        return bb.emit(Tuple([d, e, other, r, late]), "t")

    expect(
        check_well_formed(
            eliminate_common_subexpressions(build(body, dataflow=False, x=tensor(N, 2), c=tensor(dtype="bool")))
        ),
        """
        def main:
            a = exp(x)
            d = add(a, const([1.0, 2.0], float32))
            other = add(a, const([2.0, 3.0], float32))
            if c:
                r = a
            else:
                i3 = neg(a)
                r = i3
            p1 = extern("f")(x)
            p2 = extern("f")(x)
            late = neg(x)
            t = (d, d, other, r, late)
            return t
        """,
    )


def test_attributes_and_signs_of_zero_tell_calls_apart() -> None:
    def body(bb, x):
        a = bb.emit(op.softmax(x, axis=0), "a")
        b = bb.emit(op.softmax(x, axis=1), "b")
        c = bb.emit(op.leaky_relu(x, 0.0), "c")
        d = bb.emit(op.leaky_relu(x, -0.0), "d")
        return bb.emit(Tuple([a, b, c, d]), "t")

    module = build(body, dataflow=False, x=tensor(2, 2))
    assert eliminate_common_subexpressions(module)["main"] is module["main"]


# --- fold_batch_norm and fuse_activation


def conv_model(relu: bool = True, conv_activation: str = "none"):
    rng = np.random.default_rng(3)
    weights, bias = rng.standard_normal((4, 3, 3, 3)).astype(F32), rng.standard_normal(4).astype(F32)
    scale, shift, mean = (rng.standard_normal(4).astype(F32) for _ in range(3))
    var = rng.random(4).astype(F32) + F32(0.1)

    def body(bb, x):
        with bb.source("conv1"):
            conv = op.conv(x, weights, bias, (1, 1), (1, 1, 1, 1), (1, 1), activation=conv_activation)
            y = bb.emit(conv, "y")
        with bb.source("bn1"):
            z = bb.emit(op.batch_norm(y, scale, shift, mean, var, 1e-5), "z")
        if not relu:
            return bb.emit(Tuple([y, z]), "both")
        with bb.source("relu1"):
            return bb.emit(op.relu(z), "r")

    return build(body, x=tensor(2, 3, 5, 5))


def test_batch_norm_and_relu_go_into_the_convolution() -> None:
    module = conv_model()
    folded = check_well_formed(eliminate_dead_code(fold_batch_norm(eliminate_dead_code(module))))
    assert [b.value.op.name for b in folded["main"].body.bindings()] == ["conv", "relu"]
    fused = check_well_formed(eliminate_dead_code(fuse_activation(folded)))
    (binding,) = fused["main"].body.bindings()
    assert binding.value.attrs["activation"] == "relu"
    assert binding.source == "conv1 + bn1 + relu1"
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(F32)
    for changed in (folded, fused):
        got, expected = run_module(changed, {"x": x})[0], run_module(module, {"x": x})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_others_read_is_left_alone() -> None:
    module = eliminate_dead_code(conv_model(relu=False))
    assert fold_batch_norm(module)["main"] is module["main"]
    module = eliminate_dead_code(build(lambda bb, x: _relu_of_shared_conv(bb, x), x=tensor(2, 3, 5, 5)))
    assert fuse_activation(module)["main"] is module["main"]


def _relu_of_shared_conv(bb, x):
    y = bb.emit(op.conv(x, np.ones((4, 3, 1, 1), F32), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)))
    return bb.emit(Tuple([bb.emit(op.relu(y)), y]))


def test_batch_norm_after_a_convolution_with_activation_stays() -> None:
    module = eliminate_dead_code(conv_model(conv_activation="relu"))
    assert fold_batch_norm(module)["main"] is module["main"]


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("bias_shape", [None, (5,), (1, 5), (1,), ()])
def test_batch_norm_goes_into_gemm(trans_b: bool, bias_shape: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((5, 3) if trans_b else (3, 5)).astype(F32)
    c = None if bias_shape is None else rng.standard_normal(bias_shape).astype(F32)
    scale, shift, mean = (rng.standard_normal(5).astype(F32) for _ in range(3))

    def body(bb, x):
        y = bb.emit(op.gemm(x, w, c, alpha=0.5, beta=2.0, trans_b=trans_b))
        return bb.emit(op.batch_norm(y, scale, shift, mean, np.ones(5, F32), 1e-5))

    module = eliminate_dead_code(build(body, x=tensor(N, 3)))
    folded = eliminate_dead_code(fold_batch_norm(module))
    assert [b.value.op.name for b in folded["main"].body.bindings()] == ["gemm"]
    x = rng.standard_normal((4, 3)).astype(F32)
    np.testing.assert_allclose(run_module(folded, {"x": x})[0], run_module(module, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_batch_norm_with_computed_statistics_stays() -> None:
    def body(bb, x, mean):
        ones = np.ones(4, F32)
        y = bb.emit(op.conv(x, np.ones((4, 3, 1, 1), F32), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)))
        return bb.emit(op.batch_norm(y, ones, ones, mean, ones, 1e-5))

    module = eliminate_dead_code(build(body, x=tensor(2, 3, 5, 5), mean=tensor(4)))
    assert fold_batch_norm(module)["main"] is module["main"]


# --- fold_scale_shift


@pytest.mark.parametrize("operator", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (), (1,)])
def test_arithmetic_with_constants_goes_into_the_convolution(operator: str, constant_first: bool, shape) -> None:
    rng = np.random.default_rng(2)
    weights, bias = rng.standard_normal((4, 3, 3, 3)).astype(F32), rng.standard_normal(4).astype(F32)
    constant = (rng.random(shape) + 0.5).astype(F32)

    def body(bb, x):
        y = bb.emit(op.conv(x, weights, bias, strides=2), "y")
        function = getattr(op, operator)
        return bb.emit(function(constant, y) if constant_first else function(y, constant), "z")

    module = eliminate_dead_code(build(body, x=tensor(2, 3, 7, 7)))
    folded = check_well_formed(eliminate_dead_code(fold_scale_shift(module)))
    kept = operator == "div" and constant_first
    assert [b.value.op.name for b in folded["main"].body.bindings()] == ["conv"] + ["div"] * kept
    x = rng.standard_normal((2, 3, 7, 7)).astype(F32)
    np.testing.assert_allclose(run_module(folded, {"x": x})[0], run_module(module, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_arithmetic_that_is_not_per_channel_stays() -> None:
    weights = np.ones((4, 3, 1, 1), F32)

    def body(bb, x, other):
        per_pixel = bb.emit(op.add(bb.emit(op.conv(x, weights)), np.ones((1, 1, 7, 7), F32)))
        by_zero = bb.emit(op.div(bb.emit(op.conv(x, weights)), np.zeros((4, 1, 1), F32)))
        variable = bb.emit(op.mul(bb.emit(op.conv(x, weights)), other))
        endless = bb.emit(op.mul(bb.emit(op.conv(x, weights)), np.full((4, 1, 1), np.inf, F32)))
        return bb.emit(Tuple([per_pixel, by_zero, variable, endless]))

    module = eliminate_dead_code(build(body, x=tensor(2, 3, 7, 7), other=tensor(4, 1, 1)))
    assert fold_scale_shift(module)["main"] is module["main"]


# --- fuse_bias


@pytest.mark.parametrize("left", [(4, 3), (N, 3), (2, 5, 3), (N, 5, 3), (2, N, 2, 3)])
def test_a_matrix_product_with_a_bias_is_a_gemm(left: tuple) -> None:
    rng = np.random.default_rng(4)
    weights, bias = rng.standard_normal((3, 6)).astype(F32), rng.standard_normal(6).astype(F32)
    module = eliminate_dead_code(
        build(lambda bb, x: bb.emit(op.add(bias, bb.emit(op.matmul(x, weights)))), x=tensor(*left))
    )
    fused = check_well_formed(eliminate_dead_code(fuse_bias(module)))
    names = [b.value.op.name for b in fused["main"].body.bindings()]
    assert names == (["gemm"] if len(left) == 2 else ["reshape", "gemm", "reshape"])
    x = rng.standard_normal([dim if isinstance(dim, int) else 4 for dim in left]).astype(F32)
    np.testing.assert_allclose(run_module(fused, {"x": x})[0], run_module(module, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_what_is_no_bias_stays_an_addition() -> None:
    weights = np.ones((3, 6), F32)

    def body(bb, x, c):
        column = bb.emit(op.add(bb.emit(op.matmul(x, weights)), np.ones((4, 1), F32)))
        variable = bb.emit(op.add(bb.emit(op.matmul(x, weights)), c))
        wider = bb.emit(op.add(bb.emit(op.matmul(x, weights)), np.ones((2, 1, 1, 6), F32)))
        return bb.emit(Tuple([column, variable, wider]))

    module = eliminate_dead_code(build(body, x=tensor(4, 3), c=tensor(6)))
    assert fuse_bias(module)["main"] is module["main"]


# --- recognize_activations


def _half_first(x, gate):
    return op.mul(op.mul(x, F32(0.5)), gate)


def _spelled_out(name: str, form: int, x):
    if name == "silu":
        return [op.mul(x, op.sigmoid(x)), op.mul(op.sigmoid(x), x)][form]
    if name == "hard_swish":
        gate = op.clip(op.add(x, F32(3)) if form else op.add(np.full((1, 1), 3, F32), x), 0.0, 6.0)
        return [op.div(op.mul(x, gate), F32(6)), op.mul(x, op.mul(gate, F32(1 / 6)))][form]
    root = F32(2**0.5)
    gate = op.add(op.erf(op.mul(x, 1 / root) if form else op.div(x, root)), F32(1))
    return [op.mul(op.mul(x, gate), F32(0.5)), op.mul(op.mul(F32(0.5), x), gate)][form]


@pytest.mark.parametrize("name", ["gelu", "hard_swish", "silu"])
@pytest.mark.parametrize("form", [0, 1])
def test_spelled_out_activations_are_recognized(name: str, form: int) -> None:
    module = eliminate_dead_code(build(lambda bb, x: bb.emit(_spelled_out(name, form, x)), x=tensor(N, 5)))
    short = check_well_formed(eliminate_dead_code(recognize_activations(module)))
    assert [b.value.op.name for b in short["main"].body.bindings()] == [name]
    x = np.linspace(-6, 6, 35, dtype=F32).reshape(7, 5)
    np.testing.assert_allclose(run_module(short, {"x": x})[0], run_module(module, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_what_only_looks_like_an_activation_stays() -> None:
    def body(bb, x, y):
        other_number = op.mul(op.mul(x, op.add(op.erf(op.div(x, F32(1.5))), F32(1))), F32(0.5))
        other_argument = op.mul(x, op.sigmoid(y))
        quotient = op.div(x, op.sigmoid(x))
        gate = bb.emit(op.sigmoid(y))
        read_twice = op.mul(bb.emit(op.mul(y, gate)), gate)
        limits = op.div(op.mul(x, op.clip(op.add(x, F32(3)), 0.0, 5.0)), F32(6))
        return bb.emit(Tuple([bb.emit(e) for e in (other_number, other_argument, quotient, read_twice, limits)]))

    module = eliminate_dead_code(build(body, x=tensor(3, 5), y=tensor(3, 5)))
    assert recognize_activations(module)["main"] is module["main"]


# --- decompose


def test_decompose_writes_out_operators() -> None:
    def twice(bb, call):
        return bb.emit(op.add(call.args[0], bb.emit(op.neg(call.args[0]), "inner")), "sum")

    inner = Op("inner_op", lambda c: c.args[0].struct_info, None, lambda c: Decompose(lambda bb: twice(bb, c)))
    outer = Op(
        "outer_op",
        lambda c: c.args[0].struct_info,
        None,
        lambda c: Decompose(lambda bb: op.exp(bb.emit(Call(inner, [c.args[0]]), "mid"))),
    )
    module = build(lambda bb, x: bb.emit(Call(outer, [x]), "y"), x=tensor(N))
    expect(
        check_well_formed(eliminate_dead_code(decompose(module))),
        """
        def main:
            with dataflow():
                inner = neg(x)
                sum = add(x, inner)
                gv = exp(sum)
            return gv
        """,
    )


def test_endless_decomposition_is_an_error() -> None:
    endless = Op(
        "endless", lambda c: c.args[0].struct_info, None, lambda c: Decompose(lambda bb: bb.emit(Call(endless, c.args)))
    )
    from pyvm.errors import LoweringError

    with pytest.raises(LoweringError, match="endless: decomposes into itself"):
        decompose(build(lambda bb, x: bb.emit(Call(endless, [x])), x=tensor(N)))


def test_symbolic_scalars_survive() -> None:
    def body(bb, x):
        return bb.emit(Tuple([ShapeExpr((N, 2)), PrimValue(N + 1)]), "t")

    module = build(body, dataflow=False, x=TensorStructInfo((N,), "int8"))
    assert eliminate_dead_code(fold_constants(module))["main"] is module["main"]
