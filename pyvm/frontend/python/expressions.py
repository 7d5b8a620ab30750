"""Expressions of a Python function: evaluated while they are read, or made part of the program."""
from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pyvm.ir import Expr, PrimExpr, StructInfo, TensorStructInfo, Var
from pyvm.ir.nesting import recursion_limit
from vmcore.errors import CompileError, FrontendError

from . import branches, calls
from .annotations import struct_info_of
from .operators import Operators, conjunction
from .source import Source, assigned
from .values import Condition, Emitter, Env, Fields, Inline, LocalFunction, Range, Undefined, Value, describe, is_known

if TYPE_CHECKING:
    from .program import ProgramBuilder

_PLACE = "    at "


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
            where = f"{place}: in {self.source.function.__name__}"
            kind = "" if isinstance(error, CompileError) else f"{type(error).__name__}: "
            located = FrontendError(f"{where}: {kind}{error}")
            if isinstance(error, RecursionError):
                nested = "calls, branches, early returns or parts of an expression are nested too deeply"
                located = FrontendError(f"{where}: {nested}; {recursion_limit()}")
            located.add_note(f"{_PLACE}{place}: {self.source.line(line)}")
            raise located from (None if isinstance(error, (CompileError, RecursionError)) else error)

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
        args = node.args
        if args.vararg or args.kwarg:
            raise FrontendError("a lambda of a program has no *args and **kwargs")
        names = [param.arg for param in (*args.posonlyargs, *args.args)]
        late = names[len(names) - len(args.defaults) :]
        defaults = {name: self.eval(value, env) for name, value in zip(late, args.defaults, strict=True)}
        for param, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
            if value is not None:
                defaults[param.arg] = self.eval(value, env)
        return Inline(node, env, defaults)

    def _eval_BinOp(self, node: ast.BinOp, env: Env) -> Value:
        chain = [node]  # a + b + c + ...: as deep as it is long
        while isinstance(chain[-1].left, ast.BinOp):
            chain.append(chain[-1].left)
        value = self.eval(chain[-1].left, env)
        for one in reversed(chain):
            value = self.operators.binary(type(one.op), value, self.eval(one.right, env))
        return value

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
            return branches.short_circuit(self, is_and, value, truth, rest, env)
        return value

    def _eval_IfExp(self, node: ast.IfExp, env: Env) -> Value:
        truth = self.emitter.truth(self.eval(node.test, env))
        if isinstance(truth, bool):
            return self.eval(node.body if truth else node.orelse, env)
        first, second = (branches.branch(self, partial(self.eval, part, env)) for part in (node.body, node.orelse))
        return branches.meet(self, truth, [first, second], [("the value", first[0], second[0])])[0]

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
        scope = dict(env)  # one for all rounds, as in Python

        def visit(depth: int) -> None:
            if depth == len(node.generators):
                results.append(self.eval(node.elt, scope))
                return
            generator = node.generators[depth]
            for item in self.sequence(self.eval(generator.iter, scope)):
                self.assign(generator.target, item, scope)
                keep = [self.emitter.truth(self.eval(test, scope)) for test in generator.ifs]
                if not all(isinstance(truth, bool) for truth in keep):
                    raise FrontendError("a condition of a comprehension must be known while the function is read")
                if all(keep):
                    visit(depth + 1)

        visit(0)
        for made in results:
            if isinstance(made, Inline):
                made.last = scope
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
        return self.emitter.value(calls.call(self, node, env))


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
