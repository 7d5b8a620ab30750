"""Activations that exporters spell out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Constant, Expr, IRModule, VarBinding
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.source import noted
from pyvm.op import gelu, hard_swish, silu

from .producers import FusingRewriter, is_call_of

_TOLERANCE = 1e-6  # constants were rounded to float32


@checked
@typed_nesting("recognize_activations")
def recognize_activations(module: IRModule) -> IRModule:
    """No gelu (by erf), hard swish or silu is spelled out as a product, if nothing else reads its parts.

    gelu(x) = x * (erf(x / sqrt(2)) + 1) / 2, hard_swish(x) = x * clip(x + 3, 0, 6) / 6, silu(x) = x * sigmoid(x), with
    the factors in any order and grouping.
    """
    return _RecognizeActivations(module).run()


@dataclass
class _Product:
    """A product of a number and of factors that are no number."""

    number: float = 1.0
    factors: list[Expr] = field(default_factory=list)


class _RecognizeActivations(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and (is_call_of(value, "mul") or is_call_of(value, "div")):
            activation = self._activation(value)
            if activation is not None:
                name = activation.op.name  # type: ignore[attr-defined]
                source = noted(binding.source, f"{name}: recognized in the products and sums that compute it")
                with self.bb.source(source):
                    new = self.bb.normalize(activation)
                if new.struct_info == value.struct_info:
                    self.keep(VarBinding(binding.var, new, source))
                    return
        self.keep(binding)

    def _activation(self, call: Call) -> Expr | None:
        product = _Product()
        self._multiply(call, product)
        if len(product.factors) != 2:
            return None
        for x, gate in (product.factors, product.factors[::-1]):
            if self._is_sigmoid(gate, x) and _close(product.number, 1.0):
                return silu(x)
            if self._is_erf_gate(gate, x) and _close(product.number, 0.5):
                return gelu(x)
            if self._is_clip_gate(gate, x) and _close(product.number, 1 / 6):
                return hard_swish(x)
        return None

    def _multiply(self, call: Call, product: _Product) -> None:
        """Multiplies `product` with what a mul or div computes, taking apart products that nothing else reads."""
        left, right = call.args
        number = _number(right)
        if is_call_of(call, "div"):
            if not number:
                product.factors += [call, call]  # no product: two factors that nothing matches
                return
            product.number /= number
            self._factor(left, product)
            return
        for operand in (left, right):
            number = _number(operand)
            if number is None:
                self._factor(operand, product)
            else:
                product.number *= number

    def _factor(self, operand: Expr, product: _Product) -> None:
        inner = self.sole_producer(operand, "mul")
        if inner is None:
            inner = self.sole_producer(operand, "div")
            if inner is not None and not _number(inner.args[1]):
                inner = None
        if inner is None or len(product.factors) > 2:
            product.factors.append(operand)
        else:
            self._multiply(inner, product)

    def _is_sigmoid(self, gate: Expr, x: Expr) -> bool:
        call = self.sole_producer(gate, "sigmoid")
        return call is not None and call.args[0] is x

    def _is_erf_gate(self, gate: Expr, x: Expr) -> bool:
        erf = self.sole_producer(self._minus(gate, 1.0), "erf")
        if erf is None:
            return False
        scaled = self.sole_producer(erf.args[0], "div") or self.sole_producer(erf.args[0], "mul")
        if scaled is None:
            return False
        product = _Product()
        self._multiply(scaled, product)
        return len(product.factors) == 1 and product.factors[0] is x and _close(product.number, math.sqrt(0.5))

    def _is_clip_gate(self, gate: Expr, x: Expr) -> bool:
        clip = self.sole_producer(gate, "clip")
        if clip is None or (clip.attrs["lo"], clip.attrs["hi"]) != (0, 6):
            return False
        return self._minus(clip.args[0], 3.0) is x

    def _minus(self, value: Expr, number: float) -> Expr:
        """y if `value` is y + number and nothing else reads it, else `value`."""
        total = self.sole_producer(value, "add")
        if total is not None:
            for index, operand in enumerate(total.args):
                constant = _number(operand)
                if constant is not None and _close(constant, number):
                    return total.args[1 - index]
        return value


def _number(operand: Expr) -> float | None:
    """A constant with one element as a number."""
    if isinstance(operand, Constant) and operand.data.size == 1 and operand.data.dtype.kind == "f":
        return float(operand.data.reshape(()))
    return None


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_TOLERANCE)
