"""Convolution and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import Converter, ConverterTable
from pyvm.frontend.onnx.shape_values import are_numbers, ceil_div, larger
from pyvm.ir import Call, Expr, Prim


class _Window:
    """Kernel size, strides, dilations and pads of a node, with `auto_pad` worked out."""

    def __init__(self, node: Node, x: Expr, kernel: Sequence[int]) -> None:
        self.spatial = node.shape(x)[2:]
        n = len(self.spatial)
        if n == 0:
            raise node.error(f"the input has {node.ndim(x)} dimensions, expected at least 3")
        self.kernel = tuple(kernel)
        self.strides = tuple(node.attr("strides", (1,) * n))
        self.dilations = tuple(node.attr("dilations", (1,) * n))
        for what, values in (("kernel", self.kernel), ("strides", self.strides), ("dilations", self.dilations)):
            if len(values) != n or any(value < 1 for value in values):
                raise node.error(f"{what} {values} does not fit an input with {n} spatial dimensions")
        self.auto_pad = node.attr("auto_pad", "NOTSET")
        if self.auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise node.error(f"auto_pad {self.auto_pad!r} is not known")
        pads = tuple(node.attr("pads", (0,) * (2 * n))) if self.auto_pad in ("NOTSET", "") else (0,) * (2 * n)
        if len(pads) != 2 * n:
            raise node.error(f"pads {pads} do not fit an input with {n} spatial dimensions")
        self.explicit_pads: tuple[int, ...] = pads

    def extent(self, axis: int) -> int:
        """Elements that the dilated kernel covers along a spatial axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def same_pads(self) -> tuple[Prim, ...]:
        """The pads that make the result as big as the input over the strides, if `auto_pad` asks for that."""
        if not self.auto_pad.startswith("SAME"):
            return self.explicit_pads
        begins, ends = [], []
        for axis, size in enumerate(self.spatial):
            stride = self.strides[axis]
            if stride == 1:
                total: Prim = self.extent(axis) - 1
            else:
                total = larger(0, (ceil_div(size, stride) - 1) * stride + self.extent(axis) - size)
            small, big = total // 2, total - total // 2
            begins.append(small if self.auto_pad == "SAME_UPPER" else big)
            ends.append(big if self.auto_pad == "SAME_UPPER" else small)
        return (*begins, *ends)

    def padded(self, node: Node, x: Expr, value: float) -> tuple[Expr, tuple[int, ...]]:
        """The input and the pads for the operator; pads that depend on a symbolic size are applied beforehand."""
        pads = self.same_pads()
        if are_numbers(pads):
            return x, tuple(pads)
        n = len(self.spatial)
        x = node.emit(op.pad(x, (0, 0, *pads[:n], 0, 0, *pads[n:]), value=value))
        return x, (0,) * (2 * n)


def _kernel_of(node: Node, w: Expr) -> tuple[int, ...]:
    kernel = node.static_shape(w)[2:]
    declared = tuple(node.attr("kernel_shape", kernel))
    if declared != kernel:
        raise node.error(f"kernel_shape is {declared}, the weights have {kernel}")
    return kernel


def _conv(node: Node) -> Expr:
    x, w = node.tensor(0), node.tensor(1)
    window = _Window(node, x, _kernel_of(node, w))
    x, pads = window.padded(node, x, 0.0)
    return op.conv(
        x,
        w,
        node.optional(2),
        strides=window.strides,
        pads=pads,
        dilations=window.dilations,
        group=node.attr("group", 1),
    )


def _conv_transpose(node: Node) -> Expr:
    x, w = node.tensor(0), node.tensor(1)
    window = _Window(node, x, _kernel_of(node, w))
    n = len(window.spatial)
    extra = list(node.attr("output_padding", (0,) * n))
    pads = window.explicit_pads
    wanted = node.attr("output_shape", None)
    if wanted is not None or window.auto_pad.startswith("SAME"):
        begins, ends = [0] * n, [0] * n
        for axis in range(n):
            size, stride = window.spatial[axis], window.strides[axis]
            # What comes out without padding, minus what is wanted, is cut off; if more is wanted, it is appended.
            target = wanted[len(wanted) - n + axis] if wanted is not None else size * stride
            total = stride * (size - 1) + extra[axis] + window.extent(axis) - target
            if not isinstance(total, int):
                raise node.error(f"output_shape of a symbolic dimension {size}; fix it with shape_dict")
            extra[axis] -= min(total, 0)
            total = max(total, 0)
            begins[axis] = total // 2 if window.auto_pad == "SAME_UPPER" else total - total // 2
            ends[axis] = total - begins[axis]
        pads = (*begins, *ends)
    return op.conv_transpose(
        x,
        w,
        node.optional(2),
        strides=window.strides,
        pads=pads,
        dilations=window.dilations,
        output_padding=tuple(extra),
        group=node.attr("group", 1),
    )


# --- pooling


def _max_pool(node: Node) -> Sequence[Expr] | Expr:
    x = node.tensor(0)
    window = _Window(node, x, node.attr("kernel_shape"))
    dtype = node.dtype(x)
    lowest = float("-inf") if dtype.startswith("float") else 0 if dtype == "uint8" else -128
    x, pads = window.padded(node, x, lowest)
    arguments: dict[str, Any] = {
        "strides": window.strides,
        "pads": pads,
        "dilations": window.dilations,
        "ceil_mode": bool(node.attr("ceil_mode", 0)),
    }
    if not node.wants(1):
        return op.max_pool(x, window.kernel, **arguments)
    if x is not node.tensor(0):
        raise node.error("indices with auto_pad need a known input size; fix it with shape_dict")
    order = node.attr("storage_order", 0)
    return node.emit_all(op.max_pool_with_indices(x, window.kernel, **arguments, storage_order=order), 2)


def _avg_pool(node: Node) -> Expr:
    x = node.tensor(0)
    window = _Window(node, x, node.attr("kernel_shape"))
    counts_pads = bool(node.attr("count_include_pad", 0))
    if not are_numbers(window.same_pads()) and not counts_pads:
        raise node.error("auto_pad of a symbolic dimension; fix it with shape_dict")
    x, pads = window.padded(node, x, 0.0)
    return op.avg_pool(
        x,
        window.kernel,
        strides=window.strides,
        pads=pads,
        dilations=window.dilations,
        ceil_mode=bool(node.attr("ceil_mode", 0)),
        count_include_pad=counts_pads,
    )


def _lp_pool(node: Node) -> Expr:
    x = node.tensor(0)
    window = _Window(node, x, node.attr("kernel_shape"))
    x, pads = window.padded(node, x, 0.0)
    return op.lp_pool(
        x,
        window.kernel,
        strides=window.strides,
        pads=pads,
        dilations=window.dilations,
        ceil_mode=bool(node.attr("ceil_mode", 0)),
        p=int(node.attr("p", 2)),
    )


def _global(fn: Callable[[Expr], Call]) -> Converter:
    return lambda node: fn(node.tensor(0))


def _global_lp_pool(node: Node) -> Expr:
    x, p = node.tensor(0), int(node.attr("p", 2))
    axes = tuple(range(2, node.ndim(x)))
    if p == 1:
        return op.reduce_l1(x, axes=axes, keepdims=True)
    if p == 2:
        return op.reduce_l2(x, axes=axes, keepdims=True)
    powers = node.emit(op.pow(node.emit(op.abs(x)), node.scalar_like(p, x)))
    return op.pow(node.emit(op.reduce_sum(powers, axes=axes, keepdims=True)), node.scalar_like(1 / p, x))


CONVERTERS: ConverterTable = {
    "AveragePool": {1: _avg_pool},
    "Conv": {1: _conv},
    "ConvTranspose": {1: _conv_transpose},
    "GlobalAveragePool": {1: _global(op.global_avg_pool)},
    "GlobalLpPool": {1: _global_lp_pool},
    "GlobalMaxPool": {1: _global(op.global_max_pool)},
    "LpPool": {1: _lp_pool},
    "MaxPool": {1: _max_pool},
}
