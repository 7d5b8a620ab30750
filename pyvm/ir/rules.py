"""What a well-formed module is, as a table of named rules, and the check of all of them in one walk.

Each rule looks at one binding (or function) and the state of the walk, and returns what is wrong or None. The walk
visits bindings in order of execution; branches see what is visible where they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vmcore.errors import WellFormedError
from vmcore.types import DataType

from .expr import (
    LEAVES,
    Binding,
    BindingBlock,
    Call,
    DataflowBlock,
    DataflowVar,
    Expr,
    ExternFunc,
    Function,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    Tuple,
    TupleGetItem,
    Var,
)
from .nesting import typed_nesting
from .prim import PrimExpr, SymVar, free_vars
from .printer import format_binding
from .struct_info import (
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    StructInfo,
    TensorStructInfo,
    TupleStructInfo,
    struct_info_vars,
)

MAKE_CLOSURE = "vm.builtin.make_closure"  # (function, captured...): the one builtin known here to have no effect


@dataclass
class _Walk:
    """Where the walk is and what is visible there."""

    module: IRModule
    function: str
    block: BindingBlock | None = None
    visible: dict[Var, BindingBlock | None] = field(default_factory=dict)  # variable -> block that bound it
    bound: set[Var] = field(default_factory=set)  # in the whole module
    symbols: set[SymVar] = field(default_factory=set)


BindingCheck = Callable[[_Walk, Binding], str | None]
FunctionCheck = Callable[[_Walk, Function], str | None]


@dataclass(frozen=True)
class Rule:
    """One rule: its name, what it demands, and the check of a function or of a binding."""

    name: str
    demand: str
    on_function: FunctionCheck | None = None
    on_binding: BindingCheck | None = None


def _operands(value: Expr) -> tuple[Expr, ...]:
    if isinstance(value, Call):
        return (*value.args, value.op) if isinstance(value.op, Expr) else value.args
    if isinstance(value, Tuple):
        return value.fields
    if isinstance(value, TupleGetItem):
        return (value.tuple,)
    if isinstance(value, If):
        return (value.cond,)
    return () if isinstance(value, Function) else (value,)


def _normal_form(walk: _Walk, binding: Binding) -> str | None:
    if not isinstance(binding.value, (*LEAVES, Call, Tuple, TupleGetItem, If, Function)):
        return f"a {type(binding.value).__name__} is bound"
    for operand in _operands(binding.value):
        if not isinstance(operand, LEAVES):
            return f"operand {operand} is neither a variable nor a constant"
    return None


def _body_is_leaf(walk: _Walk, function: Function) -> str | None:
    if not isinstance(function.body, SeqExpr):
        return f"the body is a {type(function.body).__name__}, not a SeqExpr"
    return None if isinstance(function.body.body, LEAVES) else f"the result {function.body.body} is not a variable"


def _single_assignment(walk: _Walk, binding: Binding) -> str | None:
    return f"variable {binding.var.name} is bound twice" if binding.var in walk.bound else None


def _distinct_params(walk: _Walk, function: Function) -> str | None:
    names = [param.name for param in function.params]
    if len(set(names)) != len(names):
        return f"parameter names repeat: {', '.join(names)}"
    return None


def _unseen(walk: _Walk, operand: Expr) -> str | None:
    if not isinstance(operand, Var):
        return None
    if operand not in walk.visible:
        return f"variable {operand.name} is used where it is not defined"
    return None


def _scoping(walk: _Walk, binding: Binding) -> str | None:
    for operand in _operands(binding.value):
        problem = _unseen(walk, operand)
        if problem:
            return problem
    return None


def _dataflow_scoping(walk: _Walk, binding: Binding) -> str | None:
    if isinstance(binding.var, DataflowVar) and not isinstance(walk.block, DataflowBlock):
        return f"dataflow variable {binding.var.name} is bound outside a dataflow block"
    for operand in _operands(binding.value):
        if isinstance(operand, DataflowVar) and walk.visible.get(operand, walk.block) is not walk.block:
            return f"dataflow variable {operand.name} is used outside its block"
    return None


def is_pure(value: Expr) -> bool:
    """Whether evaluating `value` does nothing but compute it, so that it may be removed, repeated or merged."""
    if isinstance(value, Call):
        op = value.op
        if isinstance(op, ExternFunc):
            return bool(value.attrs.get("dps")) or op.name == MAKE_CLOSURE
        return not isinstance(op, (GlobalVar, Var)) and op.is_pure
    if isinstance(value, If):
        branches = value.true_branch, value.false_branch
        return all(
            not isinstance(binding, MatchCast) and is_pure(binding.value)
            for branch in branches
            for binding in branch.bindings()
        )
    return True


def _dataflow_purity(walk: _Walk, binding: Binding) -> str | None:
    if not isinstance(walk.block, DataflowBlock):
        return None
    if isinstance(binding.value, If):
        return "control flow in a dataflow block"
    if isinstance(binding.value, Function):
        return "a local function in a dataflow block"
    return None if is_pure(binding.value) else "a call with side effects in a dataflow block"


def _struct_info_present(walk: _Walk, binding: Binding) -> str | None:
    if binding.value.struct_info is None:
        return "the value has no struct info"
    return None if binding.var.struct_info is not None else f"variable {binding.var.name} has no struct info"


def _params_have_info(walk: _Walk, function: Function) -> str | None:
    for param in function.params:
        if param.struct_info is None:
            return f"parameter {param.name} has no struct info"
    return None


def dtype_problem(info: StructInfo | None) -> str | None:
    """What is wrong with the element types of struct info, if anything is."""
    if isinstance(info, (TensorStructInfo, PrimStructInfo)) and info.dtype is not None:
        try:
            DataType(info.dtype)
        except ValueError as error:
            return str(error)
    if isinstance(info, TensorStructInfo) and info.dtype is not None:
        dtype = DataType(info.dtype)
        if dtype.lanes != 1 or dtype.bits % 8 or dtype.code not in (0, 1, 2, 4, 5, 6):
            return f"a tensor cannot have dtype {info.dtype}"
    elif isinstance(info, PrimStructInfo):
        if DataType(info.dtype).code not in (0, 1, 2, 6):
            return f"a scalar cannot have dtype {info.dtype}"
    elif isinstance(info, TupleStructInfo):
        for inner in info.fields:
            problem = dtype_problem(inner)
            if problem:
                return problem
    return None


def _dtypes(walk: _Walk, binding: Binding) -> str | None:
    return dtype_problem(binding.var.struct_info)


def _param_dtypes(walk: _Walk, function: Function) -> str | None:
    for param in function.params:
        problem = dtype_problem(param.struct_info)
        if problem:
            return f"parameter {param.name}: {problem}"
    return None


def defined_symbols(info: StructInfo | None) -> Iterator[SymVar]:
    """Symbols that a value of this struct info gives a value to: those that are a whole dimension."""
    if isinstance(info, TensorStructInfo):
        yield from (dim for dim in info.shape or () if isinstance(dim, SymVar))
    elif isinstance(info, ShapeStructInfo):
        yield from (dim for dim in info.values or () if isinstance(dim, SymVar))
    elif isinstance(info, PrimStructInfo):
        if isinstance(info.value, SymVar):
            yield info.value
    elif isinstance(info, TupleStructInfo):
        for inner in info.fields:
            yield from defined_symbols(inner)


def _undefined_symbol(walk: _Walk, used: frozenset[SymVar]) -> str | None:
    missing = sorted(str(symbol) for symbol in used - walk.symbols)
    return f"symbol {', '.join(missing)} has no definition here" if missing else None


def _symbols_of(expr: Expr) -> frozenset[SymVar]:
    if isinstance(expr, ShapeExpr):
        return frozenset().union(*map(free_vars, expr.values))
    if isinstance(expr, PrimValue) and isinstance(expr.value, PrimExpr):
        return free_vars(expr.value)
    return frozenset()


def _symbol_scoping(walk: _Walk, binding: Binding) -> str | None:
    used = struct_info_vars(binding.var.struct_info)
    for operand in _operands(binding.value):
        if isinstance(operand, (ShapeExpr, PrimValue)):
            used |= _symbols_of(operand)
    if isinstance(binding, MatchCast):
        used -= set(defined_symbols(binding.struct_info))
    return _undefined_symbol(walk, used) if used else None


def _param_symbols(walk: _Walk, function: Function) -> str | None:
    # The walk has already collected what the parameters define.
    for param in function.params:
        problem = _undefined_symbol(walk, struct_info_vars(param.struct_info))
        if problem:
            return f"parameter {param.name}: {problem}"
    return None


def contradict(a: StructInfo | None, b: StructInfo | None) -> bool:
    """Whether no value can have both struct infos (as far as it can be seen)."""
    if a is None or b is None or isinstance(a, ObjectStructInfo) or isinstance(b, ObjectStructInfo):
        return False
    if type(a) is not type(b):
        return True
    if isinstance(a, TensorStructInfo) and isinstance(b, TensorStructInfo):
        if None not in (a.dtype, b.dtype) and a.dtype != b.dtype:
            return True
        if a.ndim >= 0 and b.ndim >= 0 and a.ndim != b.ndim:
            return True
        if a.shape is not None and b.shape is not None:
            pairs = zip(a.shape, b.shape, strict=True)
            return any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in pairs)
        return False
    if isinstance(a, TupleStructInfo) and isinstance(b, TupleStructInfo):
        return len(a.fields) != len(b.fields) or any(map(contradict, a.fields, b.fields))
    if isinstance(a, PrimStructInfo) and isinstance(b, PrimStructInfo):
        return a.dtype != b.dtype
    return False


def _agreement(walk: _Walk, binding: Binding) -> str | None:
    info = binding.struct_info if isinstance(binding, MatchCast) else binding.value.struct_info
    if contradict(binding.var.struct_info, info):
        return f"variable {binding.var.name} is {binding.var.struct_info}, its value {info}"
    return None


def _result_agreement(walk: _Walk, function: Function) -> str | None:
    if contradict(function.ret_struct_info, function.body.body.struct_info):
        return f"the result is {function.body.body.struct_info}, declared {function.ret_struct_info}"
    return None


def _callee(walk: _Walk, binding: Binding) -> str | None:
    value = binding.value
    for operand in _operands(value):
        if isinstance(operand, GlobalVar) and operand not in walk.module:
            return f"function @{operand.name} is not in the module"
    if isinstance(value, Call) and isinstance(value.op, GlobalVar):
        params = walk.module[value.op].params
        if len(params) != len(value.args):
            return f"@{value.op.name} takes {len(params)} arguments, {len(value.args)} are given"
        for param, arg in zip(params, value.args, strict=True):
            if contradict(param.struct_info, arg.struct_info):
                return f"@{value.op.name}: parameter {param.name} is {param.struct_info}, given {arg.struct_info}"
    elif isinstance(value, Call) and not isinstance(value.op, (GlobalVar, Var)):
        return value.op.misuse(value)
    return None


def _condition(walk: _Walk, binding: Binding) -> str | None:
    if not isinstance(binding.value, If):
        return None
    info = binding.value.cond.struct_info
    if isinstance(info, TensorStructInfo):
        one_elem = info.shape is None or all(not isinstance(dim, int) or dim == 1 for dim in info.shape)
        if one_elem and (info.dtype is None or DataType(info.dtype).code in (0, 1, 6)):
            return None
    elif isinstance(info, ObjectStructInfo) or (isinstance(info, PrimStructInfo) and info.dtype != "float64"):
        return None
    return f"a condition is a bool or an integer with one element, not {info}"


def _tuple_index(walk: _Walk, binding: Binding) -> str | None:
    value = binding.value
    if isinstance(value, TupleGetItem):
        info = value.tuple.struct_info
        if not isinstance(info, (TupleStructInfo, ObjectStructInfo)):
            return f"field {value.index} of {info}, which is no tuple"
        if isinstance(info, TupleStructInfo) and not 0 <= value.index < len(info.fields):
            return f"field {value.index} of a tuple with {len(info.fields)} fields"
    return None


RULES: tuple[Rule, ...] = (
    Rule("normal-form", "operands are variables or constants", _body_is_leaf, _normal_form),
    Rule("struct-info-present", "every parameter, variable and value has struct info", _params_have_info,
         _struct_info_present),
    Rule("single-assignment", "every variable is bound once", _distinct_params, _single_assignment),
    Rule("scoping", "variables are used after their definition, in its scope", None, _scoping),
    Rule("dataflow-scoping", "dataflow variables stay in their block", None, _dataflow_scoping),
    Rule("dataflow-purity", "dataflow blocks have no side effects and no control flow", None, _dataflow_purity),
    Rule("symbol-scoping", "symbols are defined by a parameter or a match_cast before", _param_symbols,
         _symbol_scoping),
    Rule("dtype-legality", "element types are whole bytes and one lane", _param_dtypes, _dtypes),
    Rule("struct-info-agreement", "a variable's struct info fits its value's", _result_agreement, _agreement),
    Rule("callee", "called functions exist and fit their arguments", None, _callee),
    Rule("condition", "conditions are single booleans or integers", None, _condition),
    Rule("tuple-index", "tuple fields exist", None, _tuple_index),
)  # fmt: skip

_FUNCTION_RULES = [(rule, rule.on_function) for rule in RULES if rule.on_function]
_BINDING_RULES = [(rule, rule.on_binding) for rule in RULES if rule.on_binding]


@typed_nesting("check_well_formed")
def check_well_formed(module: IRModule, after: str | None = None) -> IRModule:
    """Checks all rules and returns `module`.

    Parameters
    ----------
    module : IRModule
    after : str, optional
        The pass that made the module, for the message.

    Raises
    ------
    WellFormedError
        Names the first broken rule, what breaks it, the binding, the function and the pass.
    """
    bound: set[Var] = set()
    for name, function in module.functions.items():
        _check_function(_Walk(module, name, bound=bound), function, after)
    return module


def _check_function(walk: _Walk, function: Function, after: str | None) -> None:
    for param in function.params:
        walk.visible[param] = None
        walk.symbols.update(defined_symbols(param.struct_info))
    for rule, on_function in _FUNCTION_RULES:
        problem = on_function(walk, function)
        if problem:
            raise _error(rule, problem, walk, None, after)
    for param in function.params:
        if param in walk.bound:
            raise _error(_rule("single-assignment"), f"parameter {param.name} is bound twice", walk, None, after)
        walk.bound.add(param)
    _check_sequence(walk, function.body, after)


def _check_local_function(walk: _Walk, binding: Binding, function: Function, after: str | None) -> None:
    """A local function sees what is visible where it is defined, itself included; not the dataflow variables there."""
    visible = {var: block for var, block in walk.visible.items() if not isinstance(var, DataflowVar)}
    visible[binding.var] = None
    inner = _Walk(walk.module, f"{walk.function}/{binding.var.name}", None, visible, walk.bound, set(walk.symbols))
    _check_function(inner, function, after)


def _check_sequence(walk: _Walk, seq: SeqExpr, after: str | None) -> None:
    added: list[Var] = []
    outer_symbols = set(walk.symbols)
    outer_block = walk.block
    for block in seq.blocks:
        walk.block = block
        for binding in block.bindings:
            for rule, on_binding in _BINDING_RULES:
                problem = on_binding(walk, binding)
                if problem:
                    raise _error(rule, problem, walk, binding, after)
            if isinstance(binding, MatchCast):
                walk.symbols.update(defined_symbols(binding.struct_info))
            elif isinstance(binding.value, Function):
                _check_local_function(walk, binding, binding.value, after)
            elif isinstance(binding.value, If):
                _check_sequence(walk, binding.value.true_branch, after)
                _check_sequence(walk, binding.value.false_branch, after)
                walk.block = block
            walk.visible[binding.var] = block
            walk.bound.add(binding.var)
            added.append(binding.var)
    walk.block = None
    problem = None if isinstance(seq.body, LEAVES) else f"the value {seq.body} is not a variable or constant"
    if problem:
        raise _error(_rule("normal-form"), problem, walk, None, after)
    problem = _unseen(walk, seq.body)
    if problem:
        raise _error(_rule("scoping"), problem, walk, None, after)
    if isinstance(seq.body, DataflowVar):
        problem = f"dataflow variable {seq.body.name} is the value of a sequence"
        raise _error(_rule("dataflow-scoping"), problem, walk, None, after)
    problem = _undefined_symbol(walk, _symbols_of(seq.body))
    if problem:
        raise _error(_rule("symbol-scoping"), problem, walk, None, after)
    for var in added:
        del walk.visible[var]
    walk.symbols = outer_symbols
    walk.block = outer_block


def _rule(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


def _error(rule: Rule, problem: str, walk: _Walk, binding: Binding | None, after: str | None) -> WellFormedError:
    error = WellFormedError(
        f"rule {rule.name}: {problem} (the rule: {rule.demand}), in @{walk.function}"
        + (f", after pass {after}" if after else "")
    )
    if binding is not None:
        error.add_note(f"binding: {format_binding(binding)}")
        if binding.source:
            error.add_note(f"source: {binding.source}")
    return error
