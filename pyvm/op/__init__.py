"""Operators: one module per family, each with struct-info rule, numpy reference, lowering and public constructor."""

from pyvm.op.registry import (
    Decompose,
    KernelCall,
    Lowered,
    Op,
    PackedCall,
    View,
    get_op,
    list_op_names,
    ops,
    register_op,
)

__all__ = [
    "Decompose",
    "KernelCall",
    "Lowered",
    "Op",
    "PackedCall",
    "View",
    "get_op",
    "list_op_names",
    "ops",
    "register_op",
]
