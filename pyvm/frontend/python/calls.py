"""Calls in a Python function: of ops, of other functions of the program, of Python while it is read."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvm import op
from pyvm.ir import (
    Call,
    CallableStructInfo,
    Expr,
    GlobalVar,
    ObjectStructInfo,
    PrimStructInfo,
    SymVar,
    TensorStructInfo,
    Var,
    expr,
    substitute_struct_info,
)
from pyvm.ir.builder import match_symbols
from pyvm.ir.rules import contradict
from vmcore.errors import FrontendError

from .decorator import PythonFunction, call_dps_packed, call_packed
from .operators import Method
from .python_builtins import ALWAYS, BUILTINS
from .values import Condition, Env, Fields, Inline, LocalFunction, Value, describe, difference, is_known, same_value

if TYPE_CHECKING:
    from .expressions import Expressions

_MISSING = object()


def call(reader: Expressions, node: ast.Call, env: Env) -> Value:
    """The result of a call as it is: tuples and integers are not taken apart."""
    callee = reader.eval(node.func, env)
    if callee is call_packed or callee is call_dps_packed:
        return _call_packed(reader, node, callee, env)
    args = reader._items(node.args, env)
    kwargs: dict[str, Value] = {}
    for keyword in node.keywords:
        value = reader.eval(keyword.value, env)
        if keyword.arg is None:
            kwargs.update(value)
        else:
            kwargs[keyword.arg] = value
    return apply(reader, callee, args, kwargs, env)


def apply(
    reader: Expressions, callee: Value, args: list[Value], kwargs: dict[str, Value], env: Env | None = None
) -> Value:
    """callee(*args, **kwargs)."""
    try:
        special = BUILTINS.get(callee)
    except TypeError:
        special = None
    if special is not None and not (is_known(args) and is_known(kwargs) and callee not in ALWAYS):
        return special(reader, *args, **kwargs)
    if isinstance(callee, PythonFunction):
        return _call_global(reader, callee, args, kwargs)
    if isinstance(callee, LocalFunction):
        return _call_value(reader, callee.var, callee.name, args, kwargs, callee.params)
    if isinstance(callee, Expr):
        return _call_value(reader, callee, getattr(callee, "name", "function"), args, kwargs, ())
    if isinstance(callee, Method) or str(getattr(callee, "__module__", "")).startswith("pyvm.op"):
        return _call_op(reader, callee, args, kwargs)
    if isinstance(callee, Inline):
        return _call_lambda(reader, callee, args, kwargs, env)
    if not callable(callee):
        raise FrontendError(f"{describe(callee)} cannot be called")
    if is_known(args) and is_known(kwargs):
        result = callee(*args, **kwargs)
        return reader._new_list(result) if isinstance(result, list) else result
    if getattr(callee, "__self__", None) is not None and isinstance(callee.__self__, (list, tuple, dict)):
        return callee(*args, **kwargs)  # a list of values
    if callee in (tuple, list, zip, enumerate, reversed, dict):
        made = callee(*(reader.sequence(arg) if i == 0 or callee is zip else arg for i, arg in enumerate(args)))
        return reader._new_list(made) if isinstance(made, list) else made if isinstance(made, tuple) else tuple(made)
    return _inline(reader, callee, args, kwargs)


def _call_op(reader: Expressions, callee: Callable[..., Any], args: list[Value], kwargs: dict[str, Value]) -> Value:
    emitter = reader.emitter
    weak = [value for value in (*args, *kwargs.values()) if emitter.is_weak(value)]
    if weak:
        first = [callee.x] if isinstance(callee, Method) else []
        strong = next((v for v in (*first, *args) if isinstance(v, Expr) and not emitter.is_weak(v)), None)
        info = strong.struct_info if strong is not None else None
        if isinstance(info, TensorStructInfo) and info.dtype is not None:
            args = [emitter.tensor(v, info.dtype) if emitter.is_weak(v) else v for v in args]
    return callee(*map(partial(_op_argument, reader), args), **{k: _op_argument(reader, v) for k, v in kwargs.items()})


def _op_argument(reader: Expressions, value: Value) -> Value:
    if isinstance(value, Condition):
        return reader.emitter.tensor(value)
    if isinstance(value, LocalFunction):
        return value.var
    if isinstance(value, (tuple, list)):
        return type(value)(map(partial(_op_argument, reader), value)) if not isinstance(value, Fields) else tuple(value)
    if isinstance(value, np.generic) and not isinstance(value, (float, bool)):
        return np.asarray(value)
    if type(value).__name__ == "Tensor" and hasattr(value, "numpy"):
        return np.asarray(value)
    return value


def _call_global(reader: Expressions, callee: PythonFunction, args: list[Value], kwargs: dict[str, Value]) -> Value:
    target = reader.program.global_var(callee)
    try:
        bound = inspect.signature(callee.function).bind(*args, **kwargs)
    except TypeError as error:
        raise FrontendError(f"{callee.name}: {error}") from None
    bound.apply_defaults()
    names = tuple(bound.arguments)
    return _call_value(reader, target, callee.name, list(bound.arguments.values()), {}, names)


def _call_value(
    reader: Expressions, target: Expr, name: str, args: list[Value], kwargs: dict[str, Value], names: tuple[str, ...]
) -> Value:
    info = target.struct_info
    if kwargs:
        if not names or set(kwargs) - set(names[len(args) :]):
            raise FrontendError(f"{name}: no parameter {', '.join(kwargs)} is left")
        args = [*args, *(kwargs[n] for n in names[len(args) :] if n in kwargs)]
    if not isinstance(info, (CallableStructInfo, ObjectStructInfo)):
        raise FrontendError(f"{name} is {info}, which cannot be called")
    params = info.params if isinstance(info, CallableStructInfo) else None
    if params is not None and len(params) != len(args):
        raise FrontendError(f"{name} takes {len(params)} arguments, {len(args)} were given")
    leaves: list[Expr] = []
    mapping: dict[SymVar, Any] = {}
    for index, arg in enumerate(args):
        wanted = params[index] if params is not None else None
        leaf = reader.emitter.leaf(arg, wanted)
        if wanted is not None:
            match_symbols(wanted, leaf.struct_info, mapping)
        leaves.append(leaf)
    for index, leaf in enumerate(leaves):
        if params is None:
            break
        wanted = substitute_struct_info(params[index], mapping)
        if contradict(wanted, leaf.struct_info):
            which = names[index] if index < len(names) else str(index)
            hint = "; a float of run time is a tensor: declare it pyvm.Tensor['float64']"
            is_float = isinstance(wanted, PrimStructInfo) and wanted.dtype == "float64"
            problem = f"{name}: parameter {which}: {difference(leaf.struct_info, wanted)}"
            raise FrontendError(problem + hint if is_float else problem)
    assert isinstance(target, (GlobalVar, Var))
    return reader.emitter.bb.emit(Call(target, leaves))


def _call_packed(reader: Expressions, node: ast.Call, callee: Any, env: Env) -> Value:
    annotation = "returns" if callee is call_packed else "out"
    nodes = {keyword.arg: keyword.value for keyword in node.keywords}
    if set(nodes) - {annotation} or (callee is call_dps_packed and not nodes):
        raise FrontendError(f"{callee.__name__} has the keyword {annotation}")
    info = reader.annotation(nodes[annotation], env) if nodes else ObjectStructInfo()
    name, *args = reader._items(node.args, env)
    if not isinstance(name, str):
        raise FrontendError(f"{callee.__name__}: the name of the function must be known, it is {describe(name)}")
    leaves = [reader.emitter.leaf(arg) for arg in args]
    if callee is call_dps_packed:
        return reader.emitter.bb.emit(expr.call_dps_packed(name, leaves, info))
    result = reader.emitter.bb.emit(expr.call_packed(name, *leaves))
    return result if isinstance(info, ObjectStructInfo) else reader.emitter.cast_checked(result, info, name)


def _call_lambda(
    reader: Expressions, callee: Inline, args: list[Value], kwargs: dict[str, Value], env: Env | None
) -> Value:
    """Reads the body of a lambda; a name that it takes from around it must be what it was when it was made."""
    spec = callee.node.args
    positional = [param.arg for param in (*spec.posonlyargs, *spec.args)]
    names = [*positional, *(param.arg for param in spec.kwonlyargs)]
    by_name = {name for name in names if name not in {param.arg for param in spec.posonlyargs}}
    given = dict(zip(positional, args, strict=False))
    wrong = [name for name in kwargs if name in given or name not in by_name]
    if len(args) > len(positional) or wrong:
        taken = ", ".join(names) or "nothing"
        raise FrontendError(f"the lambda takes {taken}; {len(args)} values and {wrong} were given")
    bound = {**callee.defaults, **given, **kwargs}
    missing = [name for name in names if name not in bound]
    if missing:
        raise FrontendError(f"the lambda takes {', '.join(names)}; {', '.join(missing)} is missing")
    later = callee.last if callee.last is not None else env
    for node in ast.walk(callee.node.body) if later is not None else ():
        if isinstance(node, ast.Name) and node.id not in names and node.id in callee.env and later is not None:
            now, then = later.get(node.id, _MISSING), callee.env[node.id]
            if now is not _MISSING and now is not then and not same_value(now, then):
                name = node.id
                raise FrontendError(
                    f"the lambda reads {name}, which has another value by now; keep the one it had with a default: "
                    f"`lambda {', '.join([*names, f'{name}={name}'])}: ...`"
                )
    return reader.eval(callee.node.body, {**callee.env, **bound})


def _inline(reader: Expressions, callee: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A plain Python function with values of the program: its body is read here."""
    module = str(getattr(callee, "__module__", "") or type(callee).__module__)
    name = getattr(callee, "__name__", type(callee).__name__)
    if isinstance(callee, np.ufunc) or module.split(".")[0] == "numpy":
        hint = f"; pyvm.op.{name} can" if hasattr(op, name) else ""
        raise FrontendError(f"numpy.{name} cannot take {', '.join(map(describe, args))}{hint}")
    if inspect.isclass(callee) or not (inspect.isfunction(callee) or inspect.ismethod(callee)):
        call = inspect.getattr_static(type(callee), "__call__", None)
        if inspect.isclass(callee) or not inspect.isfunction(call):
            raise FrontendError(
                f"{name} is no function of a program: register it and use pyvm.call_packed(name, ...)"
            )
        return _inline(reader, call, [callee, *args], kwargs)
    if inspect.ismethod(callee):
        return _inline(reader, callee.__func__, [callee.__self__, *args], kwargs)
    return reader.program.inline(callee, args, kwargs, reader.emitter)
