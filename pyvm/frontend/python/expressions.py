"""Expressions of a Python function: evaluated while they are read, or made part of the program."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvm import op
from pyvm.ir import (
    Call,
    CallableStructInfo,
    Expr,
    GlobalVar,
    If,
    ObjectStructInfo,
    PrimExpr,
    PrimStructInfo,
    StructInfo,
    SymVar,
    TensorStructInfo,
    TupleStructInfo,
    Var,
    expr,
    substitute_struct_info,
    sym_max,
    sym_min,
)
from pyvm.ir.builder import match_symbols
from pyvm.ir.rules import contradict
from vmcore.errors import CompileError, FrontendError

from .annotations import struct_info_of
from .decorator import PythonFunction, call_dps_packed, call_packed
from .operators import Method, Operators, conjunction, disjunction
from .source import Source, assigned
from .values import (
    Condition,
    Emitter,
    Fields,
    LocalFunction,
    Slot,
    Undefined,
    Value,
    absolute,
    describe,
    difference,
    flatten,
    is_integer,
    is_known,
    join,
    same_value,
    unflatten,
)

if TYPE_CHECKING:
    from .program import ProgramBuilder

Env = dict[str, Value]
_PLACE = "    at "


class Range:
    """`range(...)` with bounds of run time."""

    def __init__(self, start: Value, stop: Value, step: int) -> None:
        self.start, self.stop, self.step = start, stop, step


class Inline:
    """A lambda, whose body is read where it is called."""

    def __init__(self, node: ast.Lambda, env: Env) -> None:
        self.node, self.env = node, env


class Expressions:
    """Evaluates expressions of one Python function."""

    def __init__(self, program: ProgramBuilder, emitter: Emitter, source: Source) -> None:
        self.program = program
        self.emitter = emitter
        self.source = source
        self.operators = Operators(emitter)
        self.locals = frozenset(assigned(source.tree.body))
        self._lists: dict[int, tuple[list[Value], int]] = {}  # lists made here, and how deep in branches and loops

    # --- places

    @contextmanager
    def at(self, node: ast.AST) -> Iterator[None]:
        """Errors inside name the line of `node`, and bindings come from it."""
        line = getattr(node, "lineno", self.source.first)
        place = f"{self.source.file}:{line}"
        try:
            with self.emitter.bb.source(place):
                yield
        except Exception as error:
            notes: list[str] = getattr(error, "__notes__", None) or []
            if isinstance(error, CompileError) and any(note.startswith(_PLACE) for note in notes):
                raise  # by what is called here: its place is named
            kind = "" if isinstance(error, CompileError) else f"{type(error).__name__}: "
            located = FrontendError(f"{place}: in {self.source.function.__name__}: {kind}{error}")
            located.add_note(f"{_PLACE}{place}: {self.source.line(line)}")
            raise located from (None if isinstance(error, CompileError) else error)

    # --- names

    def name(self, name: str, env: Env) -> Value:
        """What a name stands for: here, around the function, in its module, in Python."""
        if name in env:
            value = env[name]
            if isinstance(value, Undefined):
                raise FrontendError(value.why)
            return value
        if name in self.locals:
            raise FrontendError(f"{name} is read before it has a value")
        if name in self.source.outside:
            return self.source.outside[name]
        function = self.source.function
        closure: tuple[Any, ...] = function.__closure__ or ()
        for free, cell in zip(function.__code__.co_freevars, closure, strict=True):
            if free == name:
                try:
                    return cell.cell_contents
                except ValueError:
                    raise FrontendError(f"{name} has no value yet") from None
        if name in function.__globals__:
            return function.__globals__[name]
        try:
            return getattr(builtins, name)
        except AttributeError:
            raise FrontendError(f"there is no name {name!r}") from None

    def annotation(self, node: ast.expr, env: Env, name: str = "") -> StructInfo:
        """The struct info of an annotation."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                return struct_info_of(node.value, name)
            except CompileError:
                try:
                    inner = ast.parse(node.value, mode="eval").body
                except SyntaxError:
                    raise
                if isinstance(inner, ast.Call):  # struct info as text, and wrong
                    raise
                return self.annotation(inner, env, name)
        return struct_info_of(self._annotation_value(node, env), name)

    def _annotation_value(self, node: ast.expr, env: Env) -> Any:
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        known = {n: self.name(n, env) for n in names}
        code = compile(ast.Expression(node), f"<annotation in {self.source.file}>", "eval")
        return eval(code, {"__builtins__": builtins}, known)

    # --- expressions

    def eval(self, node: ast.expr, env: Env) -> Value:
        """The value of an expression."""
        method = getattr(self, f"_eval_{type(node).__name__}", None)
        if method is None:
            raise FrontendError(f"{type(node).__name__} ({ast.unparse(node)[:60]}) cannot be part of a program")
        return method(node, env)

    def _eval_Constant(self, node: ast.Constant, env: Env) -> Value:
        return node.value

    def _eval_Name(self, node: ast.Name, env: Env) -> Value:
        return self.name(node.id, env)

    def _eval_Attribute(self, node: ast.Attribute, env: Env) -> Value:
        base = self.eval(node.value, env)
        if isinstance(base, list) and not isinstance(base, Fields) and node.attr in _MUTATING:
            made = self._lists.get(id(base))
            if made is None or made[1] != self.emitter.bb.scope_depth:
                raise FrontendError(
                    f".{node.attr} changes a list in a branch or loop that is decided at run time, or one from outside"
                )
        return self.operators.attribute(base, node.attr)

    def _eval_Subscript(self, node: ast.Subscript, env: Env) -> Value:
        return self.operators.subscript(self.eval(node.value, env), self.eval(node.slice, env))

    def _eval_Slice(self, node: ast.Slice, env: Env) -> Value:
        parts = (None if part is None else self.eval(part, env) for part in (node.lower, node.upper, node.step))
        return slice(*parts)

    def _items(self, nodes: list[ast.expr], env: Env) -> list[Value]:
        items: list[Value] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items += self.sequence(self.eval(node.value, env))
            else:
                items.append(self.eval(node, env))
        return items

    def _eval_Tuple(self, node: ast.Tuple, env: Env) -> Value:
        return tuple(self._items(node.elts, env))

    def _eval_List(self, node: ast.List, env: Env) -> Value:
        return self._new_list(self._items(node.elts, env))

    def _new_list(self, made: list[Value]) -> list[Value]:
        self._lists[id(made)] = made, self.emitter.bb.scope_depth
        return made

    def _eval_Dict(self, node: ast.Dict, env: Env) -> Value:
        if any(key is None for key in node.keys):
            raise FrontendError("** in a dict")
        return {self.eval(k, env): self.eval(v, env) for k, v in zip(node.keys, node.values, strict=True) if k}

    def _eval_JoinedStr(self, node: ast.JoinedStr, env: Env) -> Value:
        parts = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                value = self.eval(part.value, env)
                if not is_known(value):
                    raise FrontendError(f"{describe(value)} in a string: it is known at run time only")
                spec = "" if part.format_spec is None else self.eval(part.format_spec, env)
                convert: dict[int, Callable[[Any], Any]] = {ord("r"): repr, ord("s"): str, ord("a"): ascii}
                parts.append(format(convert.get(part.conversion, _same)(value), spec))
            else:
                parts.append(self.eval(part, env))
        return "".join(parts)

    def _eval_Lambda(self, node: ast.Lambda, env: Env) -> Value:
        return Inline(node, dict(env))

    def _eval_BinOp(self, node: ast.BinOp, env: Env) -> Value:
        return self.operators.binary(type(node.op), self.eval(node.left, env), self.eval(node.right, env))

    def _eval_UnaryOp(self, node: ast.UnaryOp, env: Env) -> Value:
        return self.operators.unary(type(node.op), self.eval(node.operand, env))

    def _eval_Compare(self, node: ast.Compare, env: Env) -> Value:
        left = self.eval(node.left, env)
        result: Value = True
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.eval(right_node, env)
            one = self.operators.compare(type(kind), left, right)
            if result is True:
                result = one
            elif isinstance(result, Condition) and isinstance(one, Condition):
                result = conjunction(result, one)
            elif result is False or one is False:
                result = False
            elif one is not True:
                result = self.operators.binary(ast.BitAnd, self.emitter.tensor(result), self.emitter.tensor(one))
            left = right
        return result

    def _eval_BoolOp(self, node: ast.BoolOp, env: Env) -> Value:
        is_and = isinstance(node.op, ast.And)
        value = self.eval(node.values[0], env)
        for index, right in enumerate(node.values[1:], 1):
            truth = self.emitter.truth(value)
            if isinstance(truth, bool):
                if truth != is_and:
                    return value
                value = self.eval(right, env)
                continue
            rest = ast.BoolOp(node.op, node.values[index:]) if index < len(node.values) - 1 else right
            return self._short_circuit(is_and, value, truth, rest, env)
        return value

    def _short_circuit(self, is_and: bool, left: Value, truth: Expr, right: ast.expr, env: Env) -> Value:
        """The right side is computed only where the left one does not decide."""
        bb, emitter = self.emitter.bb, self.emitter
        symbols = set(emitter.symbols)
        bb.open_scope()
        value = self.eval(right, env)
        blocks = bb.close_scope(0)
        emitter.symbols = symbols
        if not any(block.bindings for block in blocks.blocks):
            if isinstance(left, Condition) and isinstance(value, Condition):
                return (conjunction if is_and else disjunction)(left, value)
            known = emitter.truth(value)
            if isinstance(known, bool):
                return (left if known == is_and else known) if not isinstance(left, PrimExpr) else known
        bb.open_scope()
        for binding in blocks.bindings():
            bb.emit_binding(binding)
        other = bb.close_scope(self._bool_tensor(value))
        bb.open_scope()
        decided = bb.close_scope(emitter.tensor(not is_and))
        branches = (other, decided) if is_and else (decided, other)
        info = TensorStructInfo((), "bool")
        return emitter.value(If(truth, *branches, info))

    def _bool_tensor(self, value: Value) -> Expr:
        """The truth of a value as a bool tensor without axes."""
        if isinstance(value, Condition):
            return self.emitter.tensor(value)
        truth = self.emitter.truth(value)
        if isinstance(truth, bool):
            return self.emitter.tensor(truth)
        if not isinstance(truth.struct_info, TensorStructInfo):
            if isinstance(value, PrimExpr):
                return self.emitter.tensor(Condition(absolute(value)))  # type: ignore[arg-type]
            raise FrontendError(f"{describe(value)} has no truth value here")
        bb = self.emitter.bb
        if truth.struct_info.dtype != "bool":
            truth = bb.emit(op.cast(truth, "bool"))
        return truth if truth.struct_info.ndim == 0 else bb.emit(op.reshape(truth, ()))  # type: ignore[union-attr]

    def _eval_IfExp(self, node: ast.IfExp, env: Env) -> Value:
        truth = self.emitter.truth(self.eval(node.test, env))
        if isinstance(truth, bool):
            return self.eval(node.body if truth else node.orelse, env)
        first, second = (self.branch(partial(self.eval, part, env)) for part in (node.body, node.orelse))
        return self.meet(truth, [first, second], [("the value", first[0], second[0])])[0]

    # --- branches

    def branch(self, read: Callable[[], Value]) -> tuple[Value, Any, set[SymVar]]:
        """What `read` returns, the bindings that it makes, and the symbols that are defined outside."""
        emitter = self.emitter
        outside = set(emitter.symbols)
        emitter.bb.open_scope()
        value = read()
        sequence = emitter.bb.close_scope(0)
        emitter.symbols = set(outside)
        return value, sequence, outside

    def meet(
        self, cond: Expr, branches: list[tuple[Value, Any, set[SymVar]]], names: list[tuple[str, Value, Value]]
    ) -> list[Value]:
        """Emits an If of two branches; returns what each of (name, value in the first, in the second) is after it."""
        bb, emitter = self.emitter.bb, self.emitter
        outside = branches[0][2]
        slots: list[Slot] = []
        leaves: tuple[list[Value], list[Value]] = ([], [])
        plans: list[tuple[Any, list[int | None], list[Value]]] = []
        for name, first, second in names:
            (a, tree), (b, other) = flatten(first), flatten(second)
            if tree != other:
                raise FrontendError(f"{name} is {describe(first)} on one path and {describe(second)} on another")
            places: list[int | None] = []
            for left, right in zip(a, b, strict=True):
                if same_value(left, right):
                    places.append(None)
                    continue
                slot = join(
                    emitter.hidden(emitter.slot(left), outside), emitter.hidden(emitter.slot(right), outside), name
                )
                places.append(len(slots))
                slots.append(slot)
                leaves[0].append(left)
                leaves[1].append(right)
            plans.append((tree, places, a))
        infos = [slot.struct_info() for slot in slots]
        ends = []
        for (_, sequence, _), values in zip(branches, leaves, strict=True):
            bb.open_scope()
            for binding in sequence.bindings():
                bb.emit_binding(binding)
            put = [emitter.put(value, slot) for value, slot in zip(values, slots, strict=True)]
            ends.append(bb.close_scope(put[0] if len(put) == 1 else bb.emit(expr.Tuple(put)) if put else 0))
        info = infos[0] if len(infos) == 1 else TupleStructInfo(infos) if infos else PrimStructInfo("int64")
        if not slots and not any(block.bindings for end in ends for block in end.blocks):
            result: Expr | None = None
        else:
            result = bb.emit(If(cond, ends[0], ends[1], info))
        after: list[Value] = []
        for (name, _, _), (tree, places, known) in zip(names, plans, strict=True):
            values = []
            for place, same in zip(places, known, strict=True):
                if place is None:
                    values.append(same)
                    continue
                assert result is not None
                one = result if len(slots) == 1 else expr.TupleGetItem(result, place)
                values.append(emitter.take(one, slots[place], name if name.isidentifier() else "d"))
            after.append(unflatten(values, tree))
        return after

    # --- sequences and comprehensions

    def sequence(self, value: Value) -> list[Value]:
        """The items of a value whose number is known."""
        if isinstance(value, Expr):
            info = value.struct_info
            if isinstance(info, TensorStructInfo) and info.shape and isinstance(info.shape[0], int):
                return [self.operators.subscript(value, i) for i in range(info.shape[0])]
            raise FrontendError(
                f"{describe(value)} cannot be taken apart: the number of its parts is not known; "
                "`for i in range(n)` loops at run time"
            )
        if isinstance(value, Range):
            raise FrontendError("a range with bounds of run time: `for i in range(n)` is the one place for it")
        if isinstance(value, (PrimExpr, Condition, LocalFunction)):
            raise FrontendError(f"{describe(value)} has no parts")
        return list(value)

    def _comprehension(self, node: Any, env: Env) -> list[Value]:
        results: list[Value] = []

        def visit(depth: int, inner: Env) -> None:
            if depth == len(node.generators):
                results.append(self.eval(node.elt, inner))
                return
            generator = node.generators[depth]
            for item in self.sequence(self.eval(generator.iter, inner)):
                scope = dict(inner)
                self.assign(generator.target, item, scope)
                keep = [self.emitter.truth(self.eval(test, scope)) for test in generator.ifs]
                if not all(isinstance(truth, bool) for truth in keep):
                    raise FrontendError("a condition of a comprehension must be known while the function is read")
                if all(keep):
                    visit(depth + 1, scope)

        visit(0, dict(env))
        return results

    def _eval_ListComp(self, node: ast.ListComp, env: Env) -> Value:
        return self._new_list(self._comprehension(node, env))

    def _eval_GeneratorExp(self, node: ast.GeneratorExp, env: Env) -> Value:
        return tuple(self._comprehension(node, env))

    def assign(self, target: ast.expr, value: Value, env: Env) -> None:
        """target = value."""
        if isinstance(target, ast.Name):
            if isinstance(value, Var) and _UNNAMED.match(value.name):
                value.name = self.emitter.bb.unique_name(target.id)
            env[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            items = self.sequence(value)
            starred = [i for i, t in enumerate(target.elts) if isinstance(t, ast.Starred)]
            if starred:
                at = starred[0]
                tail = len(target.elts) - at - 1
                if len(items) < at + tail:
                    raise FrontendError(f"{len(items)} values for {len(target.elts)} names")
                items = [*items[:at], list(items[at : len(items) - tail]), *items[len(items) - tail :]]
            if len(items) != len(target.elts):
                raise FrontendError(f"{len(items)} values for {len(target.elts)} names")
            for part, item in zip(target.elts, items, strict=True):
                self.assign(part.value if isinstance(part, ast.Starred) else part, item, env)
        elif isinstance(target, ast.Subscript):
            base = self.eval(target.value, env)
            changed = self.operators.with_item(base, self.eval(target.slice, env), value)
            self.assign(_stored(target.value), changed, env)
        else:
            raise FrontendError(f"{ast.unparse(target)} cannot be assigned to in a program")

    # --- calls

    def _eval_Call(self, node: ast.Call, env: Env) -> Value:
        return self.emitter.value(self.call(node, env))

    def call(self, node: ast.Call, env: Env) -> Value:
        """The result of a call as it is: tuples and integers are not taken apart."""
        callee = self.eval(node.func, env)
        if callee is call_packed or callee is call_dps_packed:
            return self._call_packed(node, callee, env)
        args = self._items(node.args, env)
        kwargs: dict[str, Value] = {}
        for keyword in node.keywords:
            value = self.eval(keyword.value, env)
            if keyword.arg is None:
                kwargs.update(value)
            else:
                kwargs[keyword.arg] = value
        return self.apply(callee, args, kwargs)

    def apply(self, callee: Value, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """callee(*args, **kwargs)."""
        try:
            special = _BUILTINS.get(callee)
        except TypeError:
            special = None
        if special is not None and not (is_known(args) and is_known(kwargs) and callee not in _ALWAYS):
            return special(self, *args, **kwargs)
        if isinstance(callee, PythonFunction):
            return self._call_global(callee, args, kwargs)
        if isinstance(callee, LocalFunction):
            return self._call_value(callee.var, callee.name, args, kwargs, callee.params)
        if isinstance(callee, Expr):
            return self._call_value(callee, getattr(callee, "name", "function"), args, kwargs, ())
        if isinstance(callee, Method) or str(getattr(callee, "__module__", "")).startswith("pyvm.op"):
            return self._call_op(callee, args, kwargs)
        if isinstance(callee, Inline):
            return self._call_lambda(callee, args, kwargs)
        if not callable(callee):
            raise FrontendError(f"{describe(callee)} cannot be called")
        if is_known(args) and is_known(kwargs):
            result = callee(*args, **kwargs)
            return self._new_list(result) if isinstance(result, list) else result
        if getattr(callee, "__self__", None) is not None and isinstance(callee.__self__, (list, tuple, dict)):
            return callee(*args, **kwargs)  # a list of values
        if callee in (tuple, list, zip, enumerate, reversed, dict):
            made = callee(*(self.sequence(arg) if i == 0 or callee is zip else arg for i, arg in enumerate(args)))
            return self._new_list(made) if isinstance(made, list) else made if isinstance(made, tuple) else tuple(made)
        return self._inline(callee, args, kwargs)

    def _call_op(self, callee: Callable[..., Any], args: list[Value], kwargs: dict[str, Value]) -> Value:
        emitter = self.emitter
        weak = [value for value in (*args, *kwargs.values()) if emitter.is_weak(value)]
        if weak:
            first = [callee.x] if isinstance(callee, Method) else []
            strong = next((v for v in (*first, *args) if isinstance(v, Expr) and not emitter.is_weak(v)), None)
            info = strong.struct_info if strong is not None else None
            if isinstance(info, TensorStructInfo) and info.dtype is not None:
                args = [emitter.tensor(v, info.dtype) if emitter.is_weak(v) else v for v in args]
        return callee(*map(self._op_argument, args), **{k: self._op_argument(v) for k, v in kwargs.items()})

    def _op_argument(self, value: Value) -> Value:
        if isinstance(value, Condition):
            return self.emitter.tensor(value)
        if isinstance(value, LocalFunction):
            return value.var
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._op_argument, value)) if not isinstance(value, Fields) else tuple(value)
        if isinstance(value, np.generic) and not isinstance(value, (float, bool)):
            return np.asarray(value)
        if type(value).__name__ == "Tensor" and hasattr(value, "numpy"):
            return np.asarray(value)
        return value

    def _call_global(self, callee: PythonFunction, args: list[Value], kwargs: dict[str, Value]) -> Value:
        target = self.program.global_var(callee)
        try:
            bound = inspect.signature(callee.function).bind(*args, **kwargs)
        except TypeError as error:
            raise FrontendError(f"{callee.name}: {error}") from None
        bound.apply_defaults()
        names = tuple(bound.arguments)
        return self._call_value(target, callee.name, list(bound.arguments.values()), {}, names)

    def _call_value(
        self, target: Expr, name: str, args: list[Value], kwargs: dict[str, Value], names: tuple[str, ...]
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
            leaf = self.emitter.leaf(arg, wanted)
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
        return self.emitter.bb.emit(Call(target, leaves))

    def _call_packed(self, node: ast.Call, callee: Any, env: Env) -> Value:
        annotation = "returns" if callee is call_packed else "out"
        nodes = {keyword.arg: keyword.value for keyword in node.keywords}
        if set(nodes) - {annotation} or (callee is call_dps_packed and not nodes):
            raise FrontendError(f"{callee.__name__} has the keyword {annotation}")
        info = self.annotation(nodes[annotation], env) if nodes else ObjectStructInfo()
        name, *args = self._items(node.args, env)
        if not isinstance(name, str):
            raise FrontendError(f"{callee.__name__}: the name of the function must be known, it is {describe(name)}")
        leaves = [self.emitter.leaf(arg) for arg in args]
        if callee is call_dps_packed:
            return self.emitter.bb.emit(expr.call_dps_packed(name, leaves, info))
        result = self.emitter.bb.emit(expr.call_packed(name, *leaves))
        return result if isinstance(info, ObjectStructInfo) else self.emitter.cast_checked(result, info, name)

    def _call_lambda(self, callee: Inline, args: list[Value], kwargs: dict[str, Value]) -> Value:
        params = [param.arg for param in callee.node.args.args]
        if kwargs or len(params) != len(args):
            raise FrontendError(f"the lambda takes {len(params)} arguments, {len(args) + len(kwargs)} were given")
        return self.eval(callee.node.body, {**callee.env, **dict(zip(params, args, strict=True))})

    def _inline(self, callee: Any, args: list[Value], kwargs: dict[str, Value]) -> Value:
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
            return self._inline(call, [callee, *args], kwargs)
        if inspect.ismethod(callee):
            return self._inline(callee.__func__, [callee.__self__, *args], kwargs)
        return self.program.inline(callee, args, kwargs, self.emitter)


_UNNAMED = re.compile(r"gv(_\d+)?\Z")  # variables that the builder named
_MUTATING = frozenset({"append", "extend", "insert", "pop", "remove", "clear", "reverse", "sort"})


def _same(value: Any) -> Any:
    return value


def _stored(node: ast.expr) -> ast.expr:
    """What is read, as what is written."""
    if isinstance(node, ast.Name):
        return ast.copy_location(ast.Name(node.id, ast.Store()), node)
    if isinstance(node, ast.Subscript):
        return ast.copy_location(ast.Subscript(node.value, node.slice, ast.Store()), node)
    raise FrontendError(f"{ast.unparse(node)} cannot be assigned to in a program")


# --- Python's own functions on values of the program


def _len(reader: Expressions, value: Value) -> Value:
    if isinstance(value, (tuple, list)):
        return len(value)
    shape = reader.operators.attribute(value, "shape") if isinstance(value, Expr) else ()
    if not shape:
        raise FrontendError(f"len of {describe(value)}")
    return shape[0]


def _int(reader: Expressions, value: Value = 0) -> Value:
    return reader.emitter.integer(value)


def _float(reader: Expressions, value: Value = 0.0) -> Value:
    tensor = reader.emitter.tensor(value, "float64")
    return reader.emitter.value(reader.emitter.bb.emit(op.cast(op.reshape(tensor, ()), "float64")), weak=True)


def _bool(reader: Expressions, value: Value = False) -> Value:
    return value if isinstance(value, Condition) else reader._bool_tensor(value)


def _abs(reader: Expressions, value: Value) -> Value:
    return absolute(value) if isinstance(value, PrimExpr) else op.abs(reader.emitter.tensor(value))


def _extremum(prim: Callable[..., Any], make: Callable[..., Any]) -> Callable[..., Value]:
    def of(reader: Expressions, *values: Value) -> Value:
        items = reader.sequence(values[0]) if len(values) == 1 else list(values)
        result = items[0]
        for item in items[1:]:
            if is_integer(result) and is_integer(item):
                result = prim(result, item)
            else:
                weak, left, right = reader.operators.same_dtype(result, item)
                result = reader.emitter.value(make(left, right), weak=weak)
        return result

    return of


def _sum(reader: Expressions, values: Value, start: Value = 0) -> Value:
    items = reader.sequence(values)
    result = start
    for index, item in enumerate(items):
        result = item if index == 0 and isinstance(start, int) and start == 0 else reader.operators.binary(
            ast.Add, result, item
        )  # fmt: skip
    return result


def _range(reader: Expressions, *bounds: Value) -> Value:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1) if len(bounds) == 2 else bounds
    if not isinstance(step, int) or step == 0:
        raise FrontendError("the step of a range is a number known while the function is read, and not 0")
    return Range(reader.emitter.integer(start), reader.emitter.integer(stop), step)


def _isinstance(reader: Expressions, value: Value, kinds: Any) -> bool:
    return False if not is_known(value) and not isinstance(value, (tuple, list)) else isinstance(value, kinds)


def _print(reader: Expressions, *values: Value, **options: Any) -> Value:
    raise FrontendError("print in a program: register a function that prints, and use pyvm.call_packed")


_BUILTINS: dict[Any, Callable[..., Value]] = {
    len: _len,
    int: _int,
    float: _float,
    bool: _bool,
    abs: _abs,
    min: _extremum(sym_min, op.minimum),
    max: _extremum(sym_max, op.maximum),
    sum: _sum,
    range: _range,
    isinstance: _isinstance,
    print: _print,
}
_ALWAYS = frozenset({print})
