"""The intermediate representation of the compiler: modules of functions in normal form with struct info."""

from .builder import BlockBuilder, infer_call
from .equal import structural_equal
from .expr import (
    Binding,
    BindingBlock,
    Call,
    Callee,
    Constant,
    DataflowBlock,
    DataflowVar,
    DataTypeImm,
    Expr,
    ExternFunc,
    Function,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    NoneImm,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    StringImm,
    Tuple,
    TupleGetItem,
    Var,
    VarBinding,
    as_expr,
    call_dps_packed,
    call_packed,
)
from .parser import parse, parse_struct_info
from .prim import (
    Extremum,
    FloorDiv,
    FloorMod,
    Poly,
    Prim,
    PrimExpr,
    SymVar,
    as_prim,
    bounds,
    evaluate,
    free_vars,
    parse_prim,
    prove_equal,
    substitute,
    sym_max,
    sym_min,
)
from .rules import check_well_formed
from .struct_info import (
    CallableStructInfo,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    StructInfo,
    TensorStructInfo,
    TupleStructInfo,
    common_struct_info,
    dtype_bytes,
    dtype_name,
    format_shape,
    struct_info_vars,
    substitute_struct_info,
)

__all__ = [
    "Binding",
    "BindingBlock",
    "BlockBuilder",
    "Call",
    "CallableStructInfo",
    "Callee",
    "Constant",
    "DataTypeImm",
    "DataflowBlock",
    "DataflowVar",
    "Expr",
    "ExternFunc",
    "Extremum",
    "FloorDiv",
    "FloorMod",
    "Function",
    "GlobalVar",
    "IRModule",
    "If",
    "MatchCast",
    "NoneImm",
    "ObjectStructInfo",
    "Poly",
    "Prim",
    "PrimExpr",
    "PrimStructInfo",
    "PrimValue",
    "SeqExpr",
    "ShapeExpr",
    "ShapeStructInfo",
    "StringImm",
    "StructInfo",
    "SymVar",
    "TensorStructInfo",
    "Tuple",
    "TupleGetItem",
    "TupleStructInfo",
    "Var",
    "VarBinding",
    "as_expr",
    "as_prim",
    "bounds",
    "call_dps_packed",
    "call_packed",
    "check_well_formed",
    "common_struct_info",
    "dtype_bytes",
    "dtype_name",
    "evaluate",
    "format_shape",
    "free_vars",
    "infer_call",
    "parse",
    "parse_prim",
    "parse_struct_info",
    "prove_equal",
    "struct_info_vars",
    "structural_equal",
    "substitute",
    "substitute_struct_info",
    "sym_max",
    "sym_min",
]


# Asked about every node by passes.
_ASKED_OFTEN = (
    "as_prim", "bounds", "common_struct_info", "dtype_bytes", "dtype_name", "free_vars", "infer_call", "prove_equal",
    "struct_info_vars", "substitute", "substitute_struct_info", "sym_max", "sym_min",
)  # fmt: skip

_MADE_SELDOM = ("BlockBuilder", "ExternFunc", "Extremum", "Function", "GlobalVar", "IRModule", "If", "StringImm")


def _check_arguments() -> None:
    """Makes what people build programs with say what it takes when it is given something else."""
    from types import FunctionType

    from pyvm.checked_calls import checked, checked_method, explained

    for name in __all__:
        value = globals()[name]
        if isinstance(value, FunctionType):
            globals()[name] = explained(value) if name in _ASKED_OFTEN else checked(value)
        elif isinstance(value, type) and isinstance(vars(value).get("__init__"), FunctionType):
            make = vars(value)["__init__"]
            made = checked_method(make) if name in _MADE_SELDOM else explained(make, method=True)
            type.__setattr__(value, "__init__", made)


_check_arguments()
