"""Which converter handles an operator at an opset. The families list theirs in tables named `CONVERTERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Union

from pyvm.checked_calls import checked

if TYPE_CHECKING:
    from pyvm.frontend.onnx.node import Node
    from pyvm.frontend.onnx.shape_values import Content
    from pyvm.ir import Expr

# What a converter returns: one expression per output, where a single one may come alone and None stands for an optional
# output that is not computed; or the elements of its only output, if those are integers known as symbols.
Result = Union["Expr", "Content", Sequence[Union["Expr", None]]]
Converter = Callable[["Node"], Result]
# Operator -> first opset of each behaviour -> its converter.
ConverterTable = Mapping[str, Mapping[int, Converter]]


@cache
def _tables() -> dict[str, ConverterTable]:
    from pyvm.frontend.onnx import (
        control_flow,
        convert_elementwise,
        convert_linalg,
        convert_movement,
        convert_nn,
        convert_norm,
        convert_recurrent,
        convert_reduce,
        convert_resize,
        convert_select,
        convert_shape,
    )

    families = (
        convert_elementwise,
        convert_linalg,
        convert_movement,
        convert_nn,
        convert_norm,
        convert_recurrent,
        convert_reduce,
        convert_resize,
        convert_select,
        convert_shape,
        control_flow,
    )
    standard: dict[str, Mapping[int, Converter]] = {}
    for family in families:
        twice = standard.keys() & family.CONVERTERS.keys()
        assert not twice, f"two families convert {twice}"
        standard.update(family.CONVERTERS)
    return {"": standard}


def find_converter(domain: str, op_type: str, opset: int) -> Converter | None:
    """The newest converter that is not newer than `opset`; None if there is none."""
    versions = _tables().get(domain, {}).get(op_type, {})
    since = max((version for version in versions if version <= opset), default=None)
    return None if since is None else versions[since]


@checked
def supported_ops(domain: str = "") -> list[str]:
    """Operators of a domain that have a converter for some opset, sorted."""
    return sorted(_tables().get(domain, {}))
