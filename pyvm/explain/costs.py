"""What a call does: which operands it reads and writes, its arithmetic, its memory traffic, and how the kernel goes
about it.

Arithmetic is that of the formula: a multiply-add is two operations, a transcendental function one, a comparison one.
Traffic is the least there can be: every element that is used is read once, every element of the result written once.
Kernels outside the table (other people's functions) get their operands and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import sizes
from .sizes import Size, add, mul, product
from .values import Arg, NoneValue, ScalarValue, ShapeValue, TensorValue, TupleValue, element_bytes, tensors_in

PRODUCT, ELEMENTWISE, REDUCTION, MOVEMENT = "product", "elementwise", "reduction", "movement"
MEMORY, SHAPES, CHECKS, CONTROL, CALLS, OTHER = "memory", "shapes", "checks", "control", "calls", "other"
CATEGORIES = (PRODUCT, ELEMENTWISE, REDUCTION, MOVEMENT, CALLS, OTHER, MEMORY, SHAPES, CHECKS, CONTROL)


@dataclass
class Operand:
    """An argument by its name in the kernel's signature."""

    name: str
    arg: Arg

    @property
    def tensor(self) -> TensorValue | None:
        return self.arg.value if isinstance(self.arg.value, TensorValue) else None


@dataclass
class Work:
    """What one call does. Sizes that are not known are None; `kernel` is the name without its prefix.

    `label` is what a short title adds to the name.
    """

    kernel: str
    category: str
    inputs: list[Operand] = field(default_factory=list)
    outputs: list[Operand] = field(default_factory=list)
    settings: list[Operand] = field(default_factory=list)  # operands that are no tensors
    flops: Size = 0
    macs: Size = 0  # multiply-adds of matrix products and convolutions
    bytes_read: Size = 0
    bytes_written: Size = 0
    way: list[str] = field(default_factory=list)
    label: str = ""

    def operand(self, name: str) -> Arg | None:
        """The operand of this name."""
        for operand in (*self.inputs, *self.outputs, *self.settings):
            if operand.name == name:
                return operand.arg
        return None

    def tensor(self, name: str) -> TensorValue | None:
        """The operand of this name if it is a tensor."""
        arg = self.operand(name)
        return arg.value if arg is not None and isinstance(arg.value, TensorValue) else None

    def shape(self, name: str) -> tuple[Size, ...] | None:
        """The shape of a tensor operand, or the values of a shape operand."""
        arg = self.operand(name)
        if arg is None:
            return None
        if isinstance(arg.value, TensorValue):
            return arg.value.shape
        return arg.value.dims if isinstance(arg.value, ShapeValue) else None

    def number(self, name: str) -> Size:
        """An integer operand."""
        arg = self.operand(name)
        if arg is not None and isinstance(arg.value, ScalarValue) and not isinstance(arg.value.number, float):
            return arg.value.number
        return None

    def out_elements(self) -> Size:
        """Elements of the first result."""
        tensor = self.outputs[0].tensor if self.outputs else None
        return None if tensor is None else tensor.n_elements


@dataclass(frozen=True)
class Kernel:
    """A row of the table: operands in order (outputs last, "*" takes what is left), cost of an element of the result or
    a function for the arithmetic, and a function for what is unusual."""

    params: str
    category: str
    per_element: int | None = None
    finish: Callable[[Work], None] | None = None
    n_outputs: int = 1


_TABLE: dict[str, Kernel] = {}


def _row(
    names: str,
    params: str,
    category: str,
    per_element: int | None = None,
    finish: Callable[[Work], None] | None = None,
    n_outputs: int = 1,
) -> None:
    for name in names.split():
        _TABLE[name] = Kernel(params, category, per_element, finish, n_outputs)


# ---- arithmetic that is no fixed cost per element of the result


def _dim(shape: Sequence[Size] | None, index: int) -> Size:
    return shape[index] if shape is not None and -len(shape) <= index < len(shape) else None


# What a kernel may do to its results before it writes them, by number (vmcore/kernels/gemm.h).
_ACTIVATIONS = (
    "none", "relu", "clip", "sigmoid", "silu", "gelu", "gelu_tanh", "hard_swish", "leaky_relu", "tanh", "hard_sigmoid"
)  # fmt: skip


def _epilogue(work: Work) -> Size:
    """Bias, residual and activation: their arithmetic, and a word about them."""
    parts = [name for name in ("bias", "residual") if work.tensor(name) is not None]
    per_element = len(parts)
    number = work.number("activation")
    if isinstance(number, int) and 0 < number < len(_ACTIVATIONS):
        name = _ACTIVATIONS[number]
        parts.append(name)
        per_element += _TABLE[name].per_element or 1
    if parts:
        listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[:-1] else parts)
        work.way.append(f"{listed} applied in registers, before the result is written")
        work.label = " + ".join(["", *(part for part in parts if part != "bias")])
    return mul(work.out_elements(), per_element)


def _conv(work: Work) -> None:
    x, w, out = work.shape("x"), work.shape("w"), work.shape("out")
    taps = product(w[1:]) if w is not None else None
    work.macs = mul(product(out), taps)
    work.way += _conv_way(work, x, w, out)
    work.flops = add(mul(work.macs, 2), _epilogue(work))


def _conv_way(work: Work, x: Sequence[Size] | None, w: Sequence[Size] | None, out: Sequence[Size] | None) -> list[str]:
    """The way that the kernel takes for these shapes: it is asked, with some large number for each symbol."""
    from vmcore.kernels.conv import way

    pads, strides, dilations = work.shape("pads"), work.shape("strides"), work.shape("dilations")
    if x is None or w is None or out is None or pads is None or strides is None or dilations is None:
        return []
    if not (3 <= len(x) == len(w) == len(out) <= 5) or not 2 * len(strides) == 2 * len(dilations) == len(pads):
        return []
    group = _typical(work.number("group"))
    numbers: list[list[Any]] = [list(map(_typical, s)) for s in (x, w, out, pads, strides, dilations)]
    if group is None or group < 1 or any(n is None for one in numbers for n in one) or len(strides) != len(x) - 2:
        return []
    window = "x".join(map(str, w[2:]))
    given, weights, result, padding, steps, spread = numbers
    chosen = way(given, weights, result, padding, steps, spread, group)
    if chosen == "whole":
        return [f"the {window} window is the whole input: one matrix product"]
    if chosen == "pointwise":
        return [
            f"a {window} window, stride 1, no padding reads one position per output: a plain matrix product, "
            "nothing is copied"
        ]
    if chosen == "direct":
        per_group = sizes.div(w[0], work.number("group"))
        depthwise = " (depthwise)" if _dim(w, 1) == 1 else ""
        return [
            f"{per_group} output channel{'s' * (per_group != 1)} per group{depthwise}: direct sums over padded "
            "planes beat a packed product"
        ]
    stretched = any(dilation != 1 for dilation in dilations)
    return [
        f"{window} window{', dilated' * stretched}: packed panels (im2col a cache-sized block at a time) and our "
        "own matrix product"
    ]


def _typical(size: Size) -> int | None:
    """A size, or what it is when every symbol is a large number of its own; None for what is not known."""
    names = sorted(sizes.symbols(size))
    return sizes.number(size, {name: 1009 + sum(map(ord, name)) for name in names})


def _conv_winograd(work: Work) -> None:
    points, out = work.shape("w"), work.shape("out")
    work.macs = mul(product(out), mul(_dim(points, 2), 9))
    work.way.append(
        "3x3 window, stride 1: Winograd F(2x2, 3x3), which makes 2x2 results with 16 multiplications instead of 36; "
        "its weights were transformed at compile time"
    )
    tiles = mul(*(sizes.div(add(size, 1), 2) for size in out[-2:])) if out is not None else None
    work.way.append(
        f"chosen because {_dim(points, 2)} channels by {sizes.div(_dim(out, 1), work.number('group'))} on {tiles} "
        "tiles pay for the transforms of inputs and results"
    )
    work.flops = add(mul(work.macs, 2), _epilogue(work))


def _conv_transpose(work: Work) -> None:
    x, w = work.shape("x"), work.shape("w")
    work.macs = mul(product(x), product(w[1:]) if w is not None else None)
    work.flops = add(mul(work.macs, 2), work.out_elements() if work.tensor("bias") is not None else 0)
    work.way.append("one matrix product per block of positions, its columns scattered onto the output")


def _matmul(work: Work) -> None:
    a, b = work.shape("a"), work.shape("b")
    inner = _dim(a, -1)
    work.macs = mul(work.out_elements(), inner)
    work.flops = mul(work.macs, 2)
    if a is None or b is None or not a or not b:
        return
    rows = 1 if len(a) == 1 else a[-2]
    columns = 1 if len(b) == 1 else b[-1]
    n_batch = product(work.shape("out")[:-2]) if work.shape("out") else None  # type: ignore[index]
    if len(b) == 2 and len(a) > 2:
        rows = mul(rows, n_batch)
        work.way.append("the right side is one matrix: the batch of the left continues its rows, one product")
    elif len(a) > 2 or len(b) > 2:
        work.way.append(
            f"{'a' if n_batch is None else n_batch} product{'s' * (n_batch != 1)} of "
            f"{rows} x {inner} by {inner} x {columns}"
        )
    work.way += _product_way(work, rows, columns, inner)


def _gemm(work: Work) -> None:
    a, b = work.shape("a"), work.shape("b")
    trans_a, trans_b = work.number("trans_a"), work.number("trans_b")
    inner = _dim(a, 0 if trans_a == 1 else 1)
    work.macs = mul(work.out_elements(), inner)
    extra = work.out_elements() if work.tensor("c") is not None else 0
    work.flops = add(mul(work.macs, 2), extra)
    rows, columns = _dim(a, 1 if trans_a == 1 else 0), _dim(b, 0 if trans_b == 1 else 1)
    if work.tensor("c") is not None:
        work.way.append("the addend is spread over the result first, the product adds to it")
    work.way += _product_way(work, rows, columns, inner)


def _product_way(work: Work, rows: Size, columns: Size, inner: Size) -> list[str]:
    """The way that `gemm_rm` takes: it is asked."""
    from vmcore.blas import runs_on_tiles

    tensor = work.outputs[0].tensor if work.outputs else None
    if tensor is not None and tensor.dtype not in ("float32", "float64", None):
        return ["an integer product: loops that the compiler vectorised"]
    shape = f"{rows} x {inner} x {columns}"
    typical = [_typical(size) for size in (rows, columns, inner)]
    if any(size is None for size in typical) or any(sizes.symbols(size) for size in (rows, columns)):
        return [f"{shape}: BLAS when a side is a vector at run time, our own register tiles otherwise"]
    if runs_on_tiles(*typical):  # type: ignore[arg-type]
        return [f"{shape}: our own register tiles (AVX2 or AVX-512)"]
    if rows == 1 or columns == 1:
        return ["a matrix times a vector: BLAS, which is bound by memory here anyway"]
    return [f"{shape}: BLAS, as our own register tiles need AVX2 or AVX-512"]


def _matmul_packed(work: Work) -> None:
    work.macs = mul(work.out_elements(), _dim(work.shape("a"), -1))
    work.way.append("the constant matrix lies in panels as the kernel reads them: packed at compile time, not per call")
    work.flops = add(mul(work.macs, 2), _epilogue(work))


def _fused(work: Work) -> None:
    """A chain of elementwise operators: the program is in the first operand (vmcore/kernels/fused.h)."""
    words = work.shape("program")
    names = _chain(words) if words is not None else []
    if not names:
        work.flops = None
        return
    costs = [_TABLE[name].per_element if name in _TABLE else 1 for name in names]
    work.flops = mul(work.out_elements(), sum(cost or 0 for cost in costs))
    work.way.append(f"{len(names)} operators in one pass over the data, block by block in cache: {', '.join(names)}")
    work.label = " ".join(names)


def _chain(words: Sequence[Size]) -> list[str]:
    """The operators of a chain; empty if the words are no program."""
    from vmcore.kernels.fused import opcodes

    by_number = {number: name for name, (number, _, _) in opcodes().items()}
    if not words or not all(isinstance(word, int) for word in words):
        return []
    head = int(words[0]).to_bytes(8, "little", signed=True)  # type: ignore[arg-type]
    first, n_steps = 1 + head[2], head[3]
    steps = [int(word) & 255 for word in words[first : first + n_steps]]  # type: ignore[arg-type]
    return [by_number[step] for step in steps] if all(step in by_number for step in steps) else []


def _matmul_integer(work: Work) -> None:
    work.macs = mul(work.out_elements(), _dim(work.shape("a"), -1))
    work.flops = mul(work.macs, 2)
    work.way.append("8-bit operands are widened to 32 bits, zero points subtracted on the way")


def _pool(work: Work) -> None:
    work.flops = mul(work.out_elements(), product(work.shape("kernel")))


def _of_input(per_element: int) -> Callable[[Work], None]:
    def finish(work: Work) -> None:
        tensor = work.inputs[0].tensor if work.inputs else None
        work.flops = mul(None if tensor is None else tensor.n_elements, per_element)

    return finish


def _reads_result(work: Work) -> None:
    """Only what ends up in the result is read of the first operand."""
    first = work.inputs[0].tensor if work.inputs else None
    size = element_bytes(first.dtype) if first is not None else None
    read = mul(work.out_elements(), size)
    for operand in work.inputs[1:]:
        read = add(read, operand.tensor.nbytes if operand.tensor is not None else 0)
    work.bytes_read = read


def _scatter(work: Work) -> None:
    work.way.append("a copy of the first operand, then its updates")


def _lrn(work: Work) -> None:
    work.flops = mul(work.out_elements(), add(mul(work.number("size"), 2), 4))


def _fill(work: Work) -> None:
    work.bytes_read = 0


_row(
    "conv",
    "x w bias strides pads dilations group activation out"
    "|x w bias strides pads dilations group activation p0 p1 out"
    "|x w bias strides pads dilations group activation p0 p1 residual out",
    PRODUCT,
    finish=_conv,
)
_row("conv_winograd", "x w bias pads group activation p0 p1 residual out", PRODUCT, finish=_conv_winograd)
_row("matmul_packed", "a b bias residual activation p0 p1 out", PRODUCT, finish=_matmul_packed)
_row("fused_elementwise", "program * out", ELEMENTWISE, finish=_fused)
_row("conv_transpose", "x w bias strides pads dilations output_padding group out", PRODUCT, finish=_conv_transpose)
_row("matmul", "a b out", PRODUCT, finish=_matmul)
_row("gemm", "a b c alpha beta trans_a trans_b out", PRODUCT, finish=_gemm)
_row("matmul_integer", "a b a_zero b_zero out", PRODUCT, finish=_matmul_integer)

_row(
    "add sub mul div mod fmod floor_div pow maximum minimum atan2 equal not_equal less less_equal greater "
    "greater_equal logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor left_shift right_shift",
    "a b out",
    ELEMENTWISE,
    1,
)
_row(
    "abs acos acosh asin asinh atan atanh bitwise_not ceil cos cosh erf exp floor log logical_not neg reciprocal relu "
    "round sign sin sinh sqrt square tan tanh is_inf is_nan",
    "x * out",
    ELEMENTWISE,
    1,
)
_row("rsqrt cast", "x * out", ELEMENTWISE, 2)
_TABLE["cast"] = Kernel("x out", ELEMENTWISE, 0)
_row("leaky_relu", "x alpha out", ELEMENTWISE, 2)
_row("prelu", "x slope out", ELEMENTWISE, 2)
_row("clip", "x lo hi out", ELEMENTWISE, 2)
_row("where", "condition a b out", ELEMENTWISE, 1)
_row("elu celu softplus softsign thresholded_relu shrink", "x * out", ELEMENTWISE, 3)
_row("sigmoid selu hard_sigmoid", "x * out", ELEMENTWISE, 4)
_row("silu gelu hard_swish", "x * out", ELEMENTWISE, 5)
_row("mish", "x out", ELEMENTWISE, 6)
_row("gelu_tanh", "x out", ELEMENTWISE, 9)

_row("softmax log_softmax", "x axis out", REDUCTION, 5)
_row("hardmax", "x axis out", REDUCTION, 1)
_row("layer_norm", "x scale bias axis eps out", REDUCTION, 8)
_row("rms_norm", "x scale axis eps out", REDUCTION, 5)
_row("batch_norm", "x scale bias mean variance eps out", REDUCTION, 2)
_row("instance_norm", "x scale bias eps out", REDUCTION, 8)
_row("group_norm", "x scale bias groups eps out", REDUCTION, 8)
_row("lp_norm", "x axis p out", REDUCTION, 3)
_row("lrn", "x size alpha beta bias out", REDUCTION, finish=_lrn)
_row(
    "reduce_sum reduce_mean reduce_max reduce_min reduce_prod reduce_all reduce_any",
    "x axes out",
    REDUCTION,
    finish=_of_input(1),
)
_row(
    "reduce_l1 reduce_l2 reduce_sum_square reduce_log_sum reduce_log_sum_exp",
    "x axes out",
    REDUCTION,
    finish=_of_input(2),
)
_row("argmax argmin", "x axis select_last out", REDUCTION, finish=_of_input(1))
_row("cumsum", "x axis exclusive reverse out", REDUCTION, 1)
_row("global_avg_pool global_max_pool", "x out", REDUCTION, finish=_of_input(1))
_row("max_pool", "x kernel strides pads dilations out", REDUCTION, finish=_pool)
_row(
    "max_pool_with_indices",
    "x kernel strides pads dilations storage_order out indices",
    REDUCTION,
    finish=_pool,
    n_outputs=2,
)
_row("avg_pool", "x kernel strides pads dilations count_include_pad out", REDUCTION, finish=_pool)
_row("lp_pool", "x kernel strides pads dilations p out", REDUCTION, finish=_pool)
_row("topk", "x k axis largest sorted values indices", REDUCTION, finish=_of_input(1), n_outputs=2)
_row("nonzero_count", "x out", REDUCTION, finish=_of_input(1))

_row("transpose", "x perm out", MOVEMENT, 0)
_row("concat", "* axis out", MOVEMENT, 0)
_row("copy tile broadcast_to", "x out", MOVEMENT, 0)
_row("strided_slice", "x begin strides out", MOVEMENT, 0, _reads_result)
_row("gather gather_elements", "x indices axis out", MOVEMENT, 0, _reads_result)
_row("gather_nd", "x indices batch_dims out", MOVEMENT, 0, _reads_result)
_row("scatter_elements", "x indices updates axis reduction out", MOVEMENT, 0, _scatter)
_row("scatter_nd", "x indices updates reduction out", MOVEMENT, 0, _scatter)
_row("one_hot", "indices depth values axis out", MOVEMENT, 0)
_row("pad", "x pads mode value out", MOVEMENT, 0)
_row("trilu", "x k upper out", MOVEMENT, 0)
_row("depth_to_space", "x block mode out", MOVEMENT, 0)
_row("space_to_depth", "x block out", MOVEMENT, 0)
_row("reverse_sequence", "x lengths batch_axis time_axis out", MOVEMENT, 0)
_row("resize", "x * out", MOVEMENT, 8)
_row("nonzero", "x out", MOVEMENT, 0)
_row("fill", "value out", MOVEMENT, 0, _fill)
_row("arange", "start step out", MOVEMENT, 1)
_row("eye", "k out", MOVEMENT, 0)

_BUILTINS = {
    "alloc_storage": MEMORY,
    "alloc_tensor": MEMORY,
    "null_value": MEMORY,
    "copy": MEMORY,
    "reshape": MEMORY,
    "ensure_zero_offset": MEMORY,
    "alloc_shape_heap": SHAPES,
    "make_shape": SHAPES,
    "make_prim_value": SHAPES,
    "shape_of": SHAPES,
    "tensor_to_shape": SHAPES,
    "eval_shape_expr": SHAPES,
    "store_dim": SHAPES,
    "plan_arena": MEMORY,
    "tensor_scalar": SHAPES,
    "shape_to_tensor": SHAPES,
    "match_shape": CHECKS,
    "match_prim_value": CHECKS,
    "read_if_cond": CONTROL,
    "make_closure": CALLS,
    "invoke_closure": CALLS,
    "call_tir_dyn": CALLS,
    "call_py_func": CALLS,
    "invoke_debug_func": CALLS,
    "make_tuple": MEMORY,
    "tuple_getitem": MEMORY,
    "tuple_reset_item": MEMORY,
    "to_device": MOVEMENT,
}
_BUILTIN_PARAMS = {
    "alloc_storage": "vm shape device dtype scope",
    "alloc_tensor": "storage offset shape dtype scope",
    "alloc_shape_heap": "vm cells",
    "check_tensor_info": "value ndim dtype context",
    "reshape": "value shape",
    "check_shape_info": "value ndim context",
    "check_tuple_info": "value length context",
    "check_prim_value_info": "value dtype context",
    "copy": "value",
    "shape_of": "value",
    "tuple_getitem": "tuple index",
    "tuple_reset_item": "tuple index",
    "read_if_cond": "condition",
    "invoke_closure": "vm function *",
    "make_closure": "function *",
    "eval_shape_expr": "heap cell program",
}
_BUILTIN_WAYS = {
    "reshape": "a view: the same bytes under another shape",
    "copy": "the same value in another register, no data is copied",
    "null_value": "the value of this register is dead: it lets go of its memory",
    "plan_arena": "places the tensors of the arena now that their sizes are known",
    "read_if_cond": "the first element of the condition decides",
}


def is_kernel(name: str) -> bool:
    """Whether `name` is one of our kernels."""
    return name.startswith("kernel.")


def n_outputs(name: str) -> int:
    """How many of the last arguments a function that returns nothing fills."""
    row = _TABLE.get(name.removeprefix("kernel.")) if is_kernel(name) else None
    return row.n_outputs if row is not None else 1


def work_of_kernel(name: str, args: list[Arg]) -> Work:
    """What a kernel of ours does, or a function that takes its results as last arguments."""
    short = name.removeprefix("kernel.")
    row = _TABLE.get(short) if is_kernel(name) else None
    work = Work(short, row.category if row is not None else OTHER)
    names = _names(row.params, len(args)) if row is not None else None
    n_results = row.n_outputs if row is not None else 1
    if names is None:
        n_tensors = sum(isinstance(arg.value, TensorValue) for arg in args)
        names = [f"arg{i}" for i in range(len(args))]
        n_results = min(n_results, n_tensors)
        row = None
    first_output = len(args) - n_results
    for i, (operand, arg) in enumerate(zip(names, args, strict=True)):
        if i >= first_output and isinstance(arg.value, TensorValue):
            work.outputs.append(Operand(operand, arg))
        elif isinstance(arg.value, TensorValue):
            work.inputs.append(Operand(operand, arg))
        elif not isinstance(arg.value, NoneValue):
            work.settings.append(Operand(operand, arg))
    _traffic(work)
    if row is None:
        work.flops = work.macs = None
        return work
    if row.per_element is not None:
        work.flops = mul(work.out_elements(), row.per_element)
    if row.finish is not None:
        row.finish(work)
    return work


def _traffic(work: Work) -> None:
    work.bytes_read = add(*(operand.tensor.nbytes for operand in work.inputs if operand.tensor is not None))
    work.bytes_written = add(*(operand.tensor.nbytes for operand in work.outputs if operand.tensor is not None))


def _names(params: str, n_args: int) -> list[str] | None:
    """Names of `n_args` operands; None if the signature has another number of them."""
    if "|" in params:
        return next((found for one in params.split("|") if (found := _names(one, n_args)) is not None), None)
    names = params.split()
    if "*" in names:
        at = names.index("*")
        missing = n_args - (len(names) - 1)
        if missing < 0:
            return None
        return [
            *names[:at],
            *(f"{'arg' if at and names[0] == 'x' else 'x'}{i}" for i in range(missing)),
            *names[at + 1 :],
        ]
    return names if len(names) == n_args else None


def work_of_builtin(name: str, args: list[Arg]) -> Work:
    """What a builtin does: next to nothing, but its operands are listed."""
    short = name.rpartition(".")[2]
    category = _BUILTINS.get(short, CHECKS if short.startswith("check_") else OTHER)
    work = Work(short, category)
    if short in ("match_shape", "make_shape", "match_prim_value", "make_prim_value"):
        names = [f"arg{i}" for i in range(len(args))]
    else:
        names = (_BUILTIN_PARAMS.get(short) or "").split()
        if names and names[-1] == "*":
            names.pop()
        names = [*names[: len(args)], *(f"arg{i}" for i in range(len(names), len(args)))]
    for operand, arg in zip(names, args, strict=True):
        if arg.kind == "vm" or isinstance(arg.value, NoneValue):
            continue
        if any(True for _ in tensors_in(arg.value)):
            work.inputs.append(Operand(operand, arg))
        else:
            work.settings.append(Operand(operand, arg))
    if short == "to_device" and work.inputs:
        tensor = work.inputs[0].tensor
        work.bytes_read = work.bytes_written = None if tensor is None else tensor.nbytes
    if category == OTHER or category == CALLS:
        work.flops = work.macs = work.bytes_read = work.bytes_written = None
    if short in ("make_closure", "call_py_func") and short == "make_closure":
        work.flops = work.macs = work.bytes_read = work.bytes_written = 0
    if short in _BUILTIN_WAYS:
        work.way.append(_BUILTIN_WAYS[short])
    return work


def work_of_call(name: str, args: list[Arg], param_names: Sequence[str]) -> Work:
    """What a call of a function of the executable does: see there."""
    work = Work(name, CALLS)
    for i, arg in enumerate(args):
        operand = Operand(param_names[i] if i < len(param_names) else f"arg{i}", arg)
        is_data = isinstance(arg.value, (TensorValue, TupleValue))
        (work.inputs if is_data else work.settings).append(operand)
    work.flops = work.macs = work.bytes_read = work.bytes_written = None
    return work
