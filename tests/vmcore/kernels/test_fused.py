"""kernel.fused_elementwise: equal to its steps one by one, to the bit; hostile programs are refused."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pyvm
from pyvm.ir import Constant, Expr, TensorStructInfo, Var
from pyvm.op.fused import calls_of, encode, parse_program
from pyvm.op.registry import KernelCall
from vmcore import errors
from vmcore.kernels import elementwise, fused
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

SIZES = (0, 1, 7, 64, 4097)


@pytest.fixture(params=[0, 1, 2])
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    got = fused.select_isa(request.param)
    elementwise.select_isa(request.param)  # the formulas are the same, but not the instructions that compute them
    try:
        if got != request.param:
            pytest.skip("this CPU has no such instructions")
        yield got
    finally:
        fused.select_isa()
        elementwise.select_isa()


def variables(arrays: list[np.ndarray]) -> list[Expr]:
    return [Var(f"x{i}", TensorStructInfo(a.shape, a.dtype.name)) for i, a in enumerate(arrays)]


def words_of(program: str, arrays: list[np.ndarray]) -> Shape:
    words = encode(parse_program(program), variables(arrays))
    assert words is not None
    return Shape(words)


def run_fused(program: str, *arrays: np.ndarray) -> np.ndarray:
    info = calls_of(parse_program(program), variables(list(arrays)))[-1].struct_info
    assert isinstance(info, TensorStructInfo) and info.shape is not None
    out = np.full(info.shape, 7, info.dtype)
    call_kernel("fused_elementwise", words_of(program, list(arrays)), *arrays, out)
    return out


def run_steps(program: str, *arrays: np.ndarray) -> np.ndarray:
    """The steps, each by its own kernel."""
    steps = parse_program(program)
    results: list[np.ndarray] = []
    for step, call in zip(steps, calls_of(steps, variables(list(arrays))), strict=True):
        lowered = call.op.lower(call)
        assert isinstance(lowered, KernelCall)
        named = {id(expr): operand for expr, operand in zip(call.args, step.operands, strict=True)}
        values = []
        for arg in lowered.args:
            operand = named.get(id(arg))
            if isinstance(operand, str):
                values.append((arrays if operand[0] == "x" else results)[int(operand[1:])])
            else:
                values.append(arg.data if isinstance(arg, Constant) else arg)
        info = call.struct_info
        assert isinstance(info, TensorStructInfo) and info.shape is not None
        results.append(np.zeros(info.shape, info.dtype))
        call_kernel(lowered.kernel, *values, results[-1])
    return results[-1]


def assert_same_bits(program: str, *arrays: np.ndarray) -> None:
    got, expected = run_fused(program, *arrays), run_steps(program, *arrays)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if got.dtype.kind == "f":
        assert np.array_equal(np.isnan(got), np.isnan(expected)), program
        got, expected = np.nan_to_num(got, nan=0.0), np.nan_to_num(expected, nan=0.0)
    assert got.tobytes() == expected.tobytes(), program


def values(shape: tuple[int, ...] | int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape) * 3
    if dtype == "bool":
        return array > 0
    with np.errstate(all="ignore"):
        array = np.asarray(np.abs(array) if dtype.startswith("u") else array, dtype)
    if dtype.startswith("float") and array.size > 6:
        array.flat[:6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40]
    return array


UNARY = (
    "relu abs neg square sqrt rsqrt reciprocal floor ceil round sign softsign hard_swish exp log sigmoid tanh erf gelu "
    "gelu_tanh silu softplus mish sin atan"
).split()
BINARY = "add sub mul div maximum minimum prelu pow floor_div mod fmod atan2".split()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operator_in_a_chain(n: int, dtype: str, level: int) -> None:
    x, y = values(n, dtype), values(n, dtype, seed=1)
    for name in UNARY:
        assert_same_bits(f"{name}(x0); add(t0, x1); {name}(t1)", x, y)
    for name in BINARY:
        assert_same_bits(f"{name}(x0, x1); {name}(t0, 1.5); {name}(0.75, t1); {name}(x1, t2); abs(t3)", x, y)
    for text in ("leaky_relu(t0, alpha=0.1)", "elu(t0, alpha=1.5)", "selu(t0, alpha=1.6, gamma=1.05)",
                 "celu(t0, alpha=0.7)", "hard_sigmoid(t0, alpha=0.2, beta=0.5)", "thresholded_relu(t0, alpha=0.6)",
                 "shrink(t0, bias=0.2, lambd=0.9)", "clip(t0, lo=-1.0, hi=None)", "clip(t0, lo=None, hi=0.5)",
                 "clip(t0, lo=2.0, hi=0.5)"):  # fmt: skip
        assert_same_bits(f"mul(x0, x1); {text}; add(t1, t0); sub(t2, x0)", x, y)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint32"])
def test_integers(n: int, dtype: str) -> None:
    x, y = values(n, dtype), values(n, dtype, seed=1)
    assert_same_bits("add(x0, x1); mul(t0, 3); maximum(t1, x0); bitwise_xor(t2, x1); clip(t3, lo=1, hi=40)", x, y)
    assert_same_bits("relu(x0); square(t0); left_shift(t1, 2); bitwise_not(t2); cast(t3, dtype=float32)", x)


@pytest.mark.parametrize("n", SIZES)
def test_comparisons_where_and_casts(n: int, level: int) -> None:
    x, y, b = values(n), values(n, seed=1), values(n, "bool", seed=2)
    for program in (
        "less(x0, x1); where(t0, x0, x1); mul(t1, 2.0)",
        "greater(x0, 0.5); logical_and(t0, x2); logical_not(t1); where(t2, x1, -inf)",
        "where(x2, 1.0, 0.0, of=float32); sub(1.0, t0); mul(t1, x0); add(t2, x1)",
        "cast(x0, dtype=float64); exp(t0); cast(t1, dtype=float32); equal(t2, x1)",
        "cast(x2, dtype=float32); sub(1.0, t0); mul(t1, -10000.0); add(t2, x0)",
        "equal(x0, x1); cast(t0, dtype=int64); mul(t1, 5); cast(t2, dtype=float32); add(t3, x0)",
    ):
        used = max(int(c) for c in "012" if f"x{c}" in program) + 1
        assert_same_bits(program, *[x, y, b][:used])


SHAPES = [
    ((3, 5), (5,)),
    ((3, 5), (3, 1)),
    ((64, 384), (384,)),
    ((700, 3), (3,)),
    ((1000, 3), (1000, 1)),
    ((2, 7, 9, 11), (7, 1, 1)),
    ((2, 7, 20, 31), (7, 1, 1)),
    ((4, 1, 6), (5, 1)),
    ((2, 3, 4, 5), (2, 1, 4, 1)),
    ((33, 40), (1, 40)),
    ((6000,), ()),
    ((6000,), (1,)),
    ((0, 5), (5,)),
    ((1, 1), (1,)),
    ((5, 300), (5, 300)),
    ((13, 4, 40), (4, 40)),
    ((3, 2, 400, 3), (2, 1, 3)),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_broadcasting(shapes: tuple[tuple[int, ...], ...]) -> None:
    x, y, s = values(shapes[0]), values(shapes[1], seed=1), values((), seed=3)
    for program in (
        "mul(x0, x1); add(t0, x2); tanh(t1); sub(t2, x0)",
        "add(x2, 1.0); exp(t0); mul(t1, x1); add(t2, x0)",
        "less(x0, x1); where(t0, x2, x1); add(t1, x0)",
        "maximum(x1, x0); sub(x2, t0); relu(t1); div(t2, x1)",
    ):
        assert_same_bits(program, x, y, s)


def test_condition_for_a_row() -> None:
    x, c = values((4, 600)), np.array([[True], [False], [True], [False]])
    assert_same_bits("where(x1, x0, 2.0); add(t0, x0)", x, c)
    assert_same_bits("abs(x0); where(x1, t0, x0)", x, c)
    assert_same_bits("abs(x0); where(x1, 1.0, t0)", x, np.array(True))


def test_a_single_value_fills_the_result() -> None:
    x, s = values(5000), values((), seed=1)
    assert_same_bits("abs(x1); mul(t0, 2.0); add(t1, x0)", x, s)
    out = np.zeros(5000, np.float32)
    call_kernel("fused_elementwise", words_of("abs(x1)", [x, s]), x, s, out)  # the input is there for the shape only
    assert (out == np.abs(s)).all()


@pytest.mark.parametrize("n", [5, 300, 5000])
def test_the_result_may_be_an_input(n: int, level: int) -> None:
    program = "mul(x0, x1); add(t0, x0); maximum(t1, x1); sub(t2, t0)"
    for position in (0, 1):
        arrays = [values(n, seed=2), values(n, seed=4)]
        expected = run_fused(program, *arrays)
        call_kernel("fused_elementwise", words_of(program, arrays), *arrays, arrays[position])
        assert arrays[position].tobytes() == expected.tobytes()


def test_overlap_is_refused() -> None:
    memory = np.zeros(100, np.float32)
    x, y = memory[:50], memory[10:60]
    with pytest.raises(errors.ExecutionError, match="overlaps"):
        call_kernel("fused_elementwise", words_of("abs(x0); neg(t0)", [x]), x, y)
    row = memory[:5]
    with pytest.raises(errors.ExecutionError, match="overlaps"):
        big = memory[:50].reshape(10, 5)
        call_kernel("fused_elementwise", words_of("add(x0, x1); neg(t0)", [big.copy(), row]), big.copy(), row, big)
    with pytest.raises(errors.ExecutionError, match="overlaps"):
        call_kernel("fused_elementwise", words_of("abs(x0); cast(t0, dtype=int32)", [x]), x, x.view(np.int32))


def test_threads_do_not_change_the_result() -> None:
    before = pyvm.get_num_threads()
    try:
        for shapes in (((700_000,), ()), ((900, 700), (900, 1)), ((40_000, 17), (17,))):
            x, y = values(shapes[0]), values(shapes[1], seed=1)
            program = "mul(x0, x1); sigmoid(t0); add(t1, x0); mul(t2, t1)"
            results = []
            for n in (1, 2, 5):
                pyvm.set_num_threads(n)
                results.append(run_fused(program, x, y).tobytes())
            assert len(set(results)) == 1
    finally:
        pyvm.set_num_threads(before)


def word(opcode: int, dtype: int, dst: int, a: int, b: int = 0, c: int = 0, extra: int = 0, top: int = 0) -> int:
    value = int.from_bytes(bytes([opcode, dtype, dst, a, b, c, extra, top]), "little")
    return value - (1 << 64) if value >> 63 else value


def head(n_in: int, n_constants: int, n_steps: int, n_registers: int, version: int = 1) -> int:
    return int.from_bytes(bytes([version, n_in, n_constants, n_steps, n_registers, 0, 0, 0]), "little")


CODES = {name: code for name, (code, _, _) in fused.opcodes().items()}
F32, I32, BOOL, F16 = (fused.DTYPES.index(name) for name in ("float32", "int32", "bool", "float16"))
ADD, RELU, CAST, LESS, DIV, LEAKY = (CODES[name] for name in ("add", "relu", "cast", "less", "div", "leaky_relu"))
R0, R1, C0, OUT = fused.FIRST_REGISTER, fused.FIRST_REGISTER + 1, fused.FIRST_CONSTANT, fused.RESULT

HOSTILE = {
    "empty": [],
    "head only": [head(1, 0, 0, 0)],
    "version": [head(1, 0, 1, 0, 2), word(RELU, F32, OUT, 0)],
    "inputs": [head(2, 0, 1, 0), word(RELU, F32, OUT, 0)],
    "missing words": [head(1, 0, 2, 1), word(RELU, F32, OUT, 0)],
    "words too many": [head(1, 0, 1, 0), word(RELU, F32, OUT, 0), 0],
    "registers": [head(1, 0, 1, 200), word(RELU, F32, OUT, 0)],
    "constants": [head(1, 200, 1, 0), *[0] * 200, word(RELU, F32, OUT, 0)],
    "steps": [head(1, 0, 200, 0), *[word(RELU, F32, OUT, 0)] * 200],
    "opcode": [head(1, 0, 1, 0), word(250, F32, OUT, 0)],
    "element type": [head(1, 0, 1, 0), word(RELU, 99, OUT, 0)],
    "half": [head(1, 0, 1, 0), word(RELU, F16, OUT, 0)],
    "no such loop": [head(1, 0, 1, 0), word(CODES["bitwise_not"], F32, OUT, 0)],
    "high byte": [head(1, 0, 1, 0), word(RELU, F32, OUT, 0, top=1)],
    "input out of range": [head(1, 0, 1, 0), word(RELU, F32, OUT, 5)],
    "register not written": [head(1, 0, 1, 1), word(RELU, F32, OUT, R0)],
    "register out of range": [head(1, 0, 2, 1), word(RELU, F32, R1, 0), word(RELU, F32, OUT, R1)],
    "register above all": [head(1, 0, 2, 16), word(RELU, F32, R0 + 40, 0), word(RELU, F32, OUT, 0)],
    "constant out of range": [head(1, 1, 1, 0), 0, word(ADD, F32, OUT, 0, C0 + 1)],
    "parameters out of range": [head(1, 1, 1, 0), 0, word(LEAKY, F32, OUT, 0, extra=0)],
    "type of an input": [head(1, 0, 1, 0), word(RELU, I32, OUT, 0)],
    "type of a register": [head(1, 0, 2, 1), word(LESS, F32, R0, 0, 0), word(ADD, F32, OUT, 0, R0)],
    "type of the result": [head(1, 0, 1, 0), word(LESS, F32, OUT, 0, 0)],
    "integer division": [head(1, 0, 2, 1), word(CAST, F32, R0, 0, extra=I32), word(DIV, I32, OUT, R0, R0)],
    "cast to the same": [head(1, 0, 1, 0), word(CAST, F32, OUT, 0, extra=F32)],
    "cast to half": [head(1, 0, 1, 0), word(CAST, F32, OUT, 0, extra=F16)],
    "cast to nothing": [head(1, 0, 1, 0), word(CAST, F32, OUT, 0, extra=77)],
    "result in the middle": [head(1, 0, 2, 1), word(RELU, F32, OUT, 0), word(RELU, F32, OUT, 0)],
    "no result": [head(1, 0, 1, 1), word(RELU, F32, R0, 0)],
    "writes an input": [head(1, 0, 2, 1), word(RELU, F32, 0, 0), word(RELU, F32, OUT, 0)],
    "writes a constant": [head(1, 1, 2, 1), 0, word(RELU, F32, C0, 0), word(RELU, F32, OUT, 0)],
    "narrower over what it reads": [
        head(1, 0, 3, 1),
        word(RELU, F32, R0, 0),
        word(LESS, F32, R0, R0, 0),
        word(CAST, BOOL, OUT, R0, extra=F32),
    ],
    "cast over what it reads": [
        head(1, 0, 3, 1),
        word(RELU, F32, R0, 0),
        word(CAST, F32, R0, R0, extra=I32),
        word(CAST, I32, OUT, R0, extra=F32),
    ],
    "row over a single value": [
        head(1, 1, 3, 1),
        0,
        word(RELU, F32, R0, C0),
        word(ADD, F32, R0, R0, 0),
        word(RELU, F32, OUT, R0),
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_refused(name: str) -> None:
    x, out = values(300, seed=5), np.zeros(300, np.float32)
    with pytest.raises(errors.ExecutionError, match="fused_elementwise"):
        call_kernel("fused_elementwise", Shape(HOSTILE[name]), x, out)
    assert not out.any()


def test_other_arguments_are_checked() -> None:
    x, out = values(8), np.zeros(8, np.float32)
    good = words_of("abs(x0); neg(t0)", [x])
    for args, error in (
        ((good, x), errors.ExecutionError),
        ((x, x, out), errors.ExecutionError),
        ((good, x.astype(np.float16), out), errors.ExecutionError),
        ((good, x, np.zeros(9, np.float32)), errors.ExecutionError),
        ((good, x, np.zeros(8)), errors.ExecutionError),
        ((good, *[x] * 17, out), errors.ExecutionError),
        ((good, x, None), errors.ExecutionError),
    ):
        with pytest.raises(error):
            call_kernel("fused_elementwise", *args)
    frozen = out.copy()
    frozen.flags.writeable = False
    with pytest.raises(errors.ExecutionError, match="read-only"):
        call_kernel("fused_elementwise", good, x, frozen)


MUTATIONS = """
import sys
import numpy as np
import pyvm
from vmcore import errors
from vmcore.kernels import fused
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

def site(program):
    b = pyvm.ExecBuilder()
    with b.function("main", num_inputs=3):
        b.emit_call("kernel.fused_elementwise", [b.convert_constant(program), b.r(0), b.r(1), b.r(2)])
        b.emit_ret(b.r(2))
    return pyvm.VirtualMachine(b.get())["main"]

rng = np.random.default_rng(int(sys.argv[1]))
seeds = eval(sys.argv[3])
memory = np.zeros(1 << 16, np.uint8)
ran = 0
for _ in range(int(sys.argv[2])):
    words = bytearray(np.asarray(seeds[rng.integers(len(seeds))], np.int64).tobytes())
    for _ in range(rng.integers(1, 4)):
        at = rng.integers(len(words))
        words[at] = rng.choice([0, 1, 2, 3, 11, 12, 64, 65, 66, 128, 129, 255, rng.integers(256)])
    if rng.random() < 0.1:
        words = words[: 8 * rng.integers(len(words) // 8 + 1)]
    n = int(rng.choice([0, 1, 5, 70, 700, 3000]))
    start = 4096 + 8 * int(rng.integers(100))
    out = memory[start : start + 4 * n].view(np.float32)
    shapes = [(n,), (n,), ()]
    inputs = [np.ones(shapes[rng.integers(3)], rng.choice(["float32", "float32", "float32", "int32", "bool"]))
              for _ in range(2)]
    program = Shape(np.frombuffer(bytes(words), np.int64).tolist())
    try:
        if rng.random() < 0.05:  # a call site keeps what it has decoded
            run = site(program)
            for _ in range(3):
                run(*inputs, out)
                inputs.reverse()
        call_kernel("fused_elementwise", program, *inputs, out)
        ran += 1
    except errors.ExecutionError as error:
        assert str(error)
    assert not memory[:start].any() and not memory[start + 4 * n :].any()
    memory[:] = 0
print("ran", ran)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_programs(
    seed: int, run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    two = [np.ones(4, np.float32)] * 2
    seeds = [
        list(words_of(program, two))
        for program in (
            "mul(x0, x1); add(t0, 1.5); tanh(t1); sub(t2, x0); maximum(t3, x1); leaky_relu(t4, alpha=0.5); sub(t5, t0)",
            "less(x0, x1); where(t0, x0, 2.0); cast(t1, dtype=int32); add(t2, 3); cast(t3, dtype=float32); mul(t4, x1)",
            "exp(x0); mul(t0, t0); add(t1, t0); div(t2, x1)",
        )
    ]
    result = run_python("-W", "ignore", "-c", MUTATIONS, str(seed), "6000", repr(seeds), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) > 300


def site(program: str, example: list[np.ndarray]) -> Callable[..., pyvm.Tensor]:
    """A function of the example's inputs and an output, with one call site; the program is its literal."""
    n = len(example)
    b = pyvm.ExecBuilder()
    with b.function("main", num_inputs=n + 1):
        operands = [b.convert_constant(words_of(program, example)), *map(b.r, range(n + 1))]
        b.emit_call("kernel.fused_elementwise", operands)
        b.emit_ret(b.r(n))
    return pyvm.VirtualMachine(b.get())["main"]


CHAIN = "mul(x0, x1); add(t0, 1.5); tanh(t1); maximum(t2, -0.25); sub(t3, x0); square(t4); sub(0.5, t5); div(t6, x1)"


def test_a_call_site_meets_other_operands() -> None:
    """What a site has decoded for one kind of operands is not used for another."""
    run = site(CHAIN, [values(4), values(4)])
    row = ((2, 300), (300,))
    shapes = [((4,), (4,)), ((), (40,)), ((300,), (300,)), row, ((30, 1), (30, 7)), ((0,), (0,)), ((), ())]
    for round in range(3):
        for number, (a, b) in enumerate(shapes[round:] + shapes[:round]):
            x, y = values(a, seed=number), values(b, seed=round)
            expected = run_fused(CHAIN, x, y)
            out = np.full_like(expected, 7)
            run(x, y, out)
            assert out.tobytes() == expected.tobytes()
            with pytest.raises(errors.ExecutionError):
                run(x.astype(np.float64), y, out)
            with pytest.raises(errors.ExecutionError):
                run(x, y, np.empty((3, *out.shape), np.float32))
    x = values(64)
    wanted = run_fused(CHAIN, x, x[::-1].copy())
    run(x, x[::-1].copy(), x)  # in place
    assert x.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("program", ["less(x0, x1); where(t0, x0, 2.0); cast(t1, dtype=int32)", "exp(x0); mul(t0, x1)"])
@pytest.mark.parametrize("n", [1, 5, 255, 256, 4097, 16384, 16385, 70001])
def test_a_call_site_at_every_size(program: str, n: int) -> None:
    x, y = values(n), values(n, seed=1)
    expected = run_fused(program, x, y)
    run = site(program, [x, y])
    for _ in range(2):
        out = np.zeros_like(expected)
        run(x, y, out)
        assert out.tobytes() == expected.tobytes()


def test_threads_share_a_call_site() -> None:
    """Eight threads, half of them with operands of another kind, from the first call on."""
    cases = []
    for number in range(8):
        x, y = values((16, 40), seed=number), values((16, 40) if number % 2 else (40,), seed=99)
        cases.append((x, y, run_fused(CHAIN, x, y)))
    for _ in range(20):
        run = site(CHAIN, [values(4), values(4)])
        start = threading.Barrier(8)

        def work(number: int, run=run, start=start) -> bool:
            x, y, expected = cases[number]
            out = np.zeros_like(expected)
            start.wait()
            for _ in range(50):
                out[:] = 0
                run(x, y, out)
                if out.tobytes() != expected.tobytes():
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


def test_operators_are_the_compilers() -> None:
    """The opcodes that files hold keep their numbers."""
    assert [CODES[name] for name in ("relu", "clip", "gelu", "add", "logical_xor", "where", "cast")] == [
        0, 16, 23, 44, 69, 70, 71,
    ]  # fmt: skip
