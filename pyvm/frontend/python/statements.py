"""Statements of a Python function: branches become `If`s, loops local functions that call themselves last.

Statements are read with a continuation: `after(env)` reads what follows and returns the value of the function (or of
the loop's step) that they belong to. A branch in which `return`, `break` or `continue` decides what follows reads the
rest of the function in its other path; any other branch ends, and what it assigned are values of the `If`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyvm.ir import (
    Call,
    Expr,
    If,
    NoneImm,
    ObjectStructInfo,
    Prim,
    PrimStructInfo,
    PrimValue,
    StructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    common_struct_info,
)
from pyvm.ir.rules import contradict
from pyvm.ir.struct_info import erase_unknown
from vmcore.errors import FrontendError

from . import branches, calls
from .expressions import Expressions
from .source import assigned, leaves_early, walk
from .values import (
    Env,
    LocalFunction,
    Range,
    Slot,
    Undefined,
    Value,
    describe,
    difference,
    flatten,
    is_known,
    join,
    same_value,
    satisfies,
    unflatten,
)

After = Callable[[Env], Expr]
_LEAVE = (ast.Return, ast.Break, ast.Continue)
_MAX_STATEMENTS = 20_000  # read for one function: what branches with `return` inside branches multiply
_MAX_ROUNDS = 20  # until the types of a loop's variables are stable


@dataclass(frozen=True)
class Exits:
    """Where control goes: each returns the value of the function or step."""

    on_return: Callable[[Value], Expr]
    on_break: After | None = None
    on_continue: After | None = None


@dataclass
class _Loop:
    """The variables of a loop: their leaves, and what is known of each where an iteration begins and after the loop."""

    names: list[str]
    trees: list[Any]
    initial: list[Value]
    enter: list[Slot]
    leave: list[Slot] | None = None  # None: no way out was seen yet
    returned: StructInfo | None = None  # of values that `return` in the loop gives
    outside: set[SymVar] = field(default_factory=set)

    @property
    def n_hidden(self) -> int:
        """Variables in front that nobody sees after the loop: the counter of a range."""
        return int(bool(self.names) and self.names[0].startswith("%"))

    def leaves(self, env: Env, hidden: bool = True) -> list[Value]:
        """The variables' leaves as they are in `env`."""
        found: list[Value] = []
        first = 0 if hidden else self.n_hidden
        for name, tree in zip(self.names[first:], self.trees[first:], strict=True):
            value = env.get(name, Undefined(f"{name} has no value"))
            leaves, other = flatten(value)
            if other != tree:
                raise FrontendError(f"{_shown(name)} is {describe(value)} after an iteration: its kind changes")
            found += leaves
        return found

    def assign(self, env: Env, values: list[Value], hidden: bool = True) -> None:
        """Gives the variables these leaves."""
        values = list(values)
        first = 0 if hidden else self.n_hidden
        for name, tree in zip(self.names[first:], self.trees[first:], strict=True):
            env[name] = unflatten(values, tree)

    def hints(self) -> list[str]:
        """A name for each leaf."""
        found = []
        for name, tree in zip(self.names, self.trees, strict=True):
            count = _count(tree)
            found += [_shown(name) if count == 1 else f"{_shown(name)}_{i}" for i in range(count)]
        return found


def _count(tree: Any) -> int:
    return 1 if tree is None else sum(map(_count, tree[1]))


def _shown(name: str) -> str:
    return name.lstrip("%").split("#")[0]


class Statements(Expressions):
    """Reads the statements of one Python function."""

    _read = 0

    def run(self, statements: Sequence[ast.stmt], env: Env, exits: Exits, after: After) -> Expr:
        """Reads statements, then what follows; returns the value of the function or step."""
        for index, statement in enumerate(statements):
            self._read += 1
            if self._read > _MAX_STATEMENTS:
                raise FrontendError(f"{self.source.function.__name__}: too many paths; return from fewer places")
            rest = statements[index + 1 :]
            with self.at(statement):
                if isinstance(statement, ast.Return):
                    return self._return(statement, env, exits)
                if isinstance(statement, ast.Break):
                    assert exits.on_break is not None
                    return exits.on_break(env)
                if isinstance(statement, ast.Continue):
                    assert exits.on_continue is not None
                    return exits.on_continue(env)
                if isinstance(statement, ast.If):
                    truth = self.emitter.truth(self.eval(statement.test, env))
                    if isinstance(truth, bool):
                        chosen = statement.body if truth else statement.orelse
                        return self.run([*chosen, *rest], env, exits, after)
                    if leaves_early([statement], _LEAVE):
                        return self._if_leaving(statement, truth, rest, env, exits, after)
                    self._if(statement, truth, env, exits)
                    continue
                if isinstance(statement, ast.For):
                    items = self.eval(statement.iter, env)
                    if statement.orelse:
                        raise FrontendError("`else` of a loop")
                    if not isinstance(items, Range) and not isinstance(items, range):
                        return self._unrolled(statement, self.sequence(items), 0, env, exits, after, rest)
                    result = self._loop(statement, _as_range(items), env, exits)
                    if result is not None:
                        return self._after_returning_loop(*result, rest, env, exits, after)
                    continue
                if isinstance(statement, ast.While):
                    if statement.orelse:
                        raise FrontendError("`else` of a loop")
                    result = self._loop(statement, None, env, exits)
                    if result is not None:
                        return self._after_returning_loop(*result, rest, env, exits, after)
                    continue
                self._simple(statement, env)
        return after(env)

    # --- simple statements

    def _simple(self, node: ast.stmt, env: Env) -> None:
        if isinstance(node, ast.Assign):
            value = self.eval(node.value, env)
            for target in node.targets:
                self.assign(target, value, env)
        elif isinstance(node, ast.AugAssign):
            current = self.eval(_loaded(node.target), env)
            self.assign(node.target, self.operators.binary(type(node.op), current, self.eval(node.value, env)), env)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                name = node.target.id if isinstance(node.target, ast.Name) else "value"
                info = self.annotation(node.annotation, env, name)
                value = self.eval(node.value, env)
                self.assign(node.target, self.emitter.cast_checked(value, info, name), env)
        elif isinstance(node, ast.Expr):
            self.eval(node.value, env)
        elif isinstance(node, ast.Pass):
            pass
        elif isinstance(node, ast.FunctionDef):
            env[node.name] = self._local_function(node, env)
        elif isinstance(node, ast.Assert):
            truth = self.emitter.truth(self.eval(node.test, env))
            if not isinstance(truth, bool):
                raise FrontendError("an assert of what is known at run time; see pyvm.call_packed")
            if not truth:
                message = "" if node.msg is None else f": {self.eval(node.msg, env)}"
                raise FrontendError(f"assertion{message} ({ast.unparse(node.test)})")
        elif isinstance(node, ast.Raise):
            raise FrontendError(f"reached {ast.unparse(node)}: errors of a program come from functions that it calls")
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if not isinstance(target, ast.Name):
                    raise FrontendError(f"del {ast.unparse(target)}")
                env[target.id] = Undefined(f"{target.id} was deleted")
        else:
            raise FrontendError(f"`{ast.unparse(node).splitlines()[0][:60]}` cannot be part of a program")

    def _return(self, node: ast.Return, env: Env, exits: Exits) -> Expr:
        value = node.value
        if isinstance(value, ast.IfExp):
            sides = [ast.copy_location(ast.Return(part), part) for part in (value.body, value.orelse)]
            choice = ast.copy_location(ast.If(value.test, [sides[0]], [sides[1]]), value)
            return self.run([choice], env, exits, lambda _: NoneImm())
        if isinstance(value, ast.Call):  # a call is kept as it is: the last one of a function costs no frame
            result = calls.call(self, value, env)
            return exits.on_return(result if isinstance(result, Var) else self.emitter.value(result))
        return exits.on_return(None if value is None else self.eval(value, env))

    # --- branches

    def _if_leaving(
        self, node: ast.If, cond: Expr, rest: Sequence[ast.stmt], env: Env, exits: Exits, after: After
    ) -> Expr:
        bb, emitter = self.emitter.bb, self.emitter
        outside = set(emitter.symbols)
        ends = []
        for body in (node.body, node.orelse):
            bb.open_scope()
            leaf = self.run(body, dict(env), exits, lambda inner: self.run(rest, inner, exits, after))
            ends.append(bb.close_scope(leaf))
            emitter.symbols = set(outside)
        infos = [erase_unknown(end.body.struct_info or ObjectStructInfo(), frozenset(outside)) for end in ends]
        info = common_struct_info(infos[0], infos[1])
        if isinstance(info, ObjectStructInfo) and contradict(*infos):
            raise FrontendError(f"{infos[0]} is returned on one path and {infos[1]} on another")
        return bb.emit(If(cond, ends[0], ends[1], info))

    def _if(self, node: ast.If, cond: Expr, env: Env, exits: Exits) -> None:
        sides = []
        for body in (node.body, node.orelse):
            inner = dict(env)

            def read(body: list[ast.stmt] = body, inner: Env = inner) -> Env:
                self.run(body, inner, exits, lambda _: PrimValue(0))
                return inner

            sides.append(branches.branch(self, read))
        first, second = sides[0][0], sides[1][0]
        names = []
        for name in assigned([*node.body, *node.orelse]):
            a, b = first.get(name), second.get(name)
            lines = f"lines {node.lineno}-{node.end_lineno}"
            if name not in first or name not in second or isinstance(a, Undefined) or isinstance(b, Undefined):
                if name in first or name in second:
                    env[name] = Undefined(f"{name} has a value on one path only, see the if at {lines}")
                continue
            if same_value(a, b) or (is_known(a) and is_known(b) and a is b):
                env[name] = a
            else:
                names.append((name, a, b))
        after = branches.meet(self, cond, sides, names)
        for (name, _, _), value in zip(names, after, strict=True):
            env[name] = value

    # --- loops

    def _unrolled(
        self,
        node: ast.For,
        items: list[Value],
        index: int,
        env: Env,
        exits: Exits,
        after: After,
        rest: Sequence[ast.stmt],
    ) -> Expr:
        """Steps of a loop over values, one after the other, then the rest."""
        def leave(inner: Env) -> Expr:
            return self.run(rest, inner, exits, after)

        if not leaves_early(node.body, _LEAVE):
            for item in items:
                self.assign(node.target, item, env)
                self.run(node.body, env, exits, lambda _: PrimValue(0))
            return leave(env)
        if index == len(items):
            return leave(env)

        def proceed(inner: Env) -> Expr:
            return self._unrolled(node, items, index + 1, inner, exits, after, rest)

        self.assign(node.target, items[index], env)
        return self.run(node.body, env, replace(exits, on_break=leave, on_continue=proceed), proceed)

    def _loop(
        self, node: ast.For | ast.While, over: Range | None, env: Env, exits: Exits
    ) -> tuple[Expr, _Loop] | None:
        """Emits a loop; `env` has its variables afterwards. If the loop may return from the function: its result."""
        emitter = self.emitter
        bb = emitter.bb
        target = node.target.id if isinstance(node, ast.For) and isinstance(node.target, ast.Name) else "i"
        index_name = f"%{target}#{node.lineno}.{node.col_offset}"
        names = [] if over is None else [index_name]
        inside = assigned(node.body) if isinstance(node, ast.While) else assigned([node])
        for name in inside:
            if name in env and not isinstance(env[name], Undefined):
                names.append(name)
        start = dict(env)
        if over is not None:
            start[index_name] = over.start
            if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
                names = [name for name in names if name != node.target.id]
        flat = [flatten(start[name]) for name in names]
        initial = [leaf for leaves, _ in flat for leaf in leaves]
        loop = _Loop(names, [tree for _, tree in flat], initial, [emitter.slot(leaf) for leaf in initial])
        loop.outside = set(emitter.symbols)
        returns = leaves_early(node.body, (ast.Return,))
        for _ in range(_MAX_ROUNDS):
            before = list(loop.enter), None if loop.leave is None else list(loop.leave), loop.returned
            state, depth = emitter.snapshot(), bb.scope_depth
            bb.open_scope()
            self._emit_loop(node, over, loop, start, returns, trial=True)
            bb.drop_scopes(depth)
            emitter.restore(state)
            if before == (loop.enter, loop.leave, loop.returned):
                break
        else:
            raise FrontendError("the types of the loop's variables do not settle")
        if loop.leave is None and not returns:
            raise FrontendError("the loop never ends: nothing in it leads out")
        itself = self._emit_loop(node, over, loop, start, returns, trial=False)
        args = [
            emitter.put(leaf, slot)
            for leaf, slot in zip(loop.initial, loop.enter, strict=True)
            if slot.kind != "static"
        ]
        result = bb.emit(Call(itself, args))
        for name in inside:
            if name not in loop.names:
                env[name] = Undefined(f"{name} has a value in the loop at line {node.lineno} only")
        if returns:
            return result, loop
        self._leave_loop(loop, result, env, as_tuple=False)
        return None

    def _leave_loop(self, loop: _Loop, result: Expr, env: Env, as_tuple: bool) -> None:
        """Gives the variables what the loop left in them."""
        slots = loop.leave or []
        live = [slot for slot in slots if slot.kind != "static"]
        values: list[Value] = []
        position = 0
        for slot, hint in zip(slots, loop.hints()[loop.n_hidden :], strict=True):
            one: Expr = result
            if slot.kind != "static" and (as_tuple or len(live) > 1):
                one = TupleGetItem(result, position)
            position += slot.kind != "static"
            values.append(self.emitter.take(one, slot, hint))
        loop.assign(env, values, hidden=False)

    def _after_returning_loop(
        self, result: Expr, loop: _Loop, rest: Sequence[ast.stmt], env: Env, exits: Exits, after: After
    ) -> Expr:
        """What follows a loop that may have returned: its result is (whether it has, the value or the variables)."""
        bb, emitter = self.emitter.bb, self.emitter
        has, payload = (bb.emit(TupleGetItem(result, i)) for i in range(2))
        outside = set(emitter.symbols)

        def returned() -> Expr:
            info = loop.returned or ObjectStructInfo()
            value: Value = payload if isinstance(info, ObjectStructInfo) else bb.match_cast(payload, info)
            return exits.on_return(emitter.value(value))

        def left() -> Expr:
            infos = [slot.struct_info() for slot in loop.leave or () if slot.kind != "static"]
            fields = bb.match_cast(payload, TupleStructInfo(infos))
            inner = dict(env)
            self._leave_loop(loop, fields, inner, as_tuple=True)
            return self.run(rest, inner, exits, after)

        if loop.leave is None:
            return returned()
        ends = []
        for read in (returned, left):
            bb.open_scope()
            ends.append(bb.close_scope(read()))
            emitter.symbols = set(outside)
        infos = [erase_unknown(end.body.struct_info or ObjectStructInfo(), frozenset(outside)) for end in ends]
        return bb.emit(If(has, ends[0], ends[1], common_struct_info(infos[0], infos[1])))

    def _emit_loop(
        self, node: ast.For | ast.While, over: Range | None, loop: _Loop, start: Env, returns: bool, trial: bool
    ) -> Var:
        """Emits the local function that runs a step and calls itself; a trial records types instead of calling."""
        emitter = self.emitter
        bb = emitter.bb
        outer_symbols = set(emitter.symbols)
        hints = loop.hints()
        params, values = self._loop_params(loop, hints)
        env = dict(start)
        loop.assign(env, values)
        index_name = loop.names[0] if over is not None else ""
        itself: list[Var] = []

        def again(inner: Env) -> Expr:
            if over is not None:
                inner = {**inner, index_name: inner[index_name] + over.step}
            leaves = loop.leaves(inner)
            if trial:
                for i, leaf in enumerate(leaves):
                    loop.enter[i] = self._joined(loop, loop.enter[i], leaf, hints[i])
                return NoneImm()
            pairs = zip(leaves, loop.enter, strict=True)
            return bb.emit(Call(itself[0], [emitter.put(v, slot) for v, slot in pairs if slot.kind != "static"]))

        def leave(inner: Env) -> Expr:
            leaves = loop.leaves(inner, hidden=False)
            if trial:
                if loop.leave is None:
                    loop.leave = [emitter.hidden(emitter.slot(leaf), loop.outside) for leaf in leaves]
                for i, leaf in enumerate(leaves):
                    loop.leave[i] = self._joined(loop, loop.leave[i], leaf, hints[i + loop.n_hidden])
                return NoneImm()
            assert loop.leave is not None
            pairs = zip(leaves, loop.leave, strict=True)
            put = [emitter.put(v, slot) for v, slot in pairs if slot.kind != "static"]
            if returns:
                return bb.emit(Tuple([PrimValue(False), bb.emit(Tuple(put))]))
            return put[0] if len(put) == 1 else bb.emit(Tuple(put)) if put else PrimValue(0)

        def give_back(value: Value) -> Expr:
            leaf = emitter.leaf(value)
            if trial:
                info = erase_unknown(leaf.struct_info or ObjectStructInfo(), frozenset(loop.outside))
                if isinstance(info, PrimStructInfo):
                    info = PrimStructInfo(info.dtype)
                loop.returned = info if loop.returned is None else common_struct_info(loop.returned, info)
                return NoneImm()
            return bb.emit(Tuple([PrimValue(True), leaf]))

        step = Exits(give_back, leave, again)

        def body(function: Var, *_: Var) -> Expr:
            itself.append(function)
            test = self._loop_test(node, over, env, index_name)
            if test is False:
                return leave(env)
            if test is True:
                return self._step(node, env, index_name, step, again)
            outside = set(emitter.symbols)
            ends = []
            for read in (lambda: self._step(node, dict(env), index_name, step, again), lambda: leave(env)):
                bb.open_scope()
                ends.append(bb.close_scope(read()))
                emitter.symbols = set(outside)
            return bb.emit(If(test, ends[0], ends[1], ret))

        ret = self._loop_ret(loop, returns)
        name = "loop" if not _is_taken(bb, "loop") else f"loop_{node.lineno}"
        function = bb.emit_function(name, params, body, ret)
        emitter.symbols = outer_symbols
        return function

    def _loop_params(self, loop: _Loop, hints: list[str]) -> tuple[list[Var], list[Value]]:
        emitter = self.emitter
        params: list[Var] = []
        values: list[Value] = []
        for slot, hint in zip(loop.enter, hints, strict=True):
            if slot.kind == "static":
                values.append(slot.value)
                continue
            name = emitter.bb.unique_name(hint)
            if slot.kind == "int":
                symbol = emitter.fresh(hint, nonnegative=False)
                params.append(Var(name, PrimStructInfo("int64", symbol)))
                values.append(symbol)
                continue
            info = slot.struct_info()
            if slot.kind == "tensor" and slot.dims is not None:
                dims: list[Prim] = [
                    emitter.fresh(f"{hint}_{i}") if dim is None else dim for i, dim in enumerate(slot.dims)
                ]
                info = TensorStructInfo(dims, slot.dtype)
            param = Var(name, info)
            params.append(param)
            values.append(emitter.weakened(param) if slot.weak else param)
        return params, values

    def _loop_ret(self, loop: _Loop, returns: bool) -> StructInfo:
        if returns:
            return TupleStructInfo([PrimStructInfo("bool"), ObjectStructInfo()])
        if loop.leave is None:
            return ObjectStructInfo()
        infos = [slot.struct_info() for slot in loop.leave if slot.kind != "static"]
        return infos[0] if len(infos) == 1 else TupleStructInfo(infos) if infos else PrimStructInfo("int64")

    def _joined(self, loop: _Loop, slot: Slot, leaf: Value, hint: str) -> Slot:
        if isinstance(leaf, Undefined):
            raise FrontendError(leaf.why)
        if slot.kind == "static" and same_value(slot.value, leaf):
            return slot
        new = self.emitter.hidden(self.emitter.slot(leaf), loop.outside)
        return join(self.emitter.hidden(slot, loop.outside), new, hint)

    def _loop_test(self, node: ast.For | ast.While, over: Range | None, env: Env, index_name: str) -> bool | Expr:
        if isinstance(node, ast.While):
            return self.emitter.truth(self.eval(node.test, env))
        assert over is not None
        kind = ast.Lt if over.step > 0 else ast.Gt
        return self.emitter.truth(self.operators.compare(kind, env[index_name], over.stop))

    def _step(self, node: ast.For | ast.While, env: Env, index_name: str, step: Exits, again: After) -> Expr:
        if isinstance(node, ast.For):
            self.assign(node.target, env[index_name], env)
        return self.run(node.body, env, step, again)

    # --- functions inside

    def _local_function(self, node: ast.FunctionDef, env: Env) -> LocalFunction:
        if node.decorator_list:
            raise FrontendError("a function inside a program has no decorators")
        args = node.args
        if args.defaults or args.kw_defaults or args.vararg or args.kwarg:
            raise FrontendError(f"{node.name}: defaults, *args and **kwargs")
        self._check_captures(node, env)
        emitter = self.emitter
        outer_symbols = set(emitter.symbols)
        params: list[Var] = []
        for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs):
            if arg.annotation is None:
                raise FrontendError(f"{node.name}: parameter {arg.arg} has no annotation")
            info = self.annotation(arg.annotation, env, arg.arg)
            emitter.define(info)
            params.append(Var(arg.arg, info))
        ret = None if node.returns is None else self.annotation(node.returns, env)
        names = tuple(param.name for param in params)

        def body(itself: Var, *_: Var) -> Expr:
            inner = {name: value for name, value in env.items() if name not in assigned(node.body)}
            inner[node.name] = LocalFunction(node.name, itself, names)
            for param in params:
                inner[param.name] = emitter.value(param)
            return self.run(node.body, inner, Exits(self.returner(node.name, ret)), lambda _: NoneImm())

        try:
            var = emitter.bb.emit_function(node.name, params, body, ret)
        finally:
            emitter.symbols = outer_symbols
        return LocalFunction(node.name, var, names)

    def _check_captures(self, node: ast.FunctionDef, env: Env) -> None:
        """What a function inside reads is what it was when the function was defined: nothing may change it later."""
        read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        for statement in walk(self.source.tree.body):
            if isinstance(statement, ast.stmt) and statement.lineno > (node.end_lineno or 0):
                changed = (read & set(env)).intersection(assigned([statement]))
                if changed:
                    name = sorted(changed)[0]
                    raise FrontendError(f"{node.name} reads {name}, which line {statement.lineno} changes afterwards")

    def returner(self, name: str, declared: StructInfo | None) -> Callable[[Value], Expr]:
        """What `return` does in a function: the value as an operand, checked against what the function declares."""
        emitter = self.emitter

        def on_return(value: Value) -> Expr:
            if declared is None:
                return emitter.leaf(_floats_as_tensors(emitter, value))
            leaf = emitter.leaf(value, declared)
            info = erase_unknown(declared, frozenset(emitter.symbols))
            if contradict(leaf.struct_info, info):
                raise FrontendError(f"{name} returns a value with {difference(leaf.struct_info, info)}")
            if satisfies(leaf.struct_info, info):
                return leaf
            if isinstance(leaf, PrimValue) and isinstance(info, PrimStructInfo):
                return leaf
            return emitter.bb.match_cast(leaf, info)

        return on_return


def _floats_as_tensors(emitter: Any, value: Value) -> Value:
    """A result: a float is a float64 tensor without axes, wherever it comes from."""
    if type(value) in (tuple, list):
        return tuple(_floats_as_tensors(emitter, item) for item in value)
    return emitter.tensor(value, "float64") if isinstance(value, float) else value


def _is_taken(bb: Any, name: str) -> bool:
    return name in bb._names


def _as_range(items: Range | range) -> Range:
    return items if isinstance(items, Range) else Range(items.start, items.stop, items.step)


def _loaded(node: ast.expr) -> ast.expr:
    """A target as an expression that reads it."""
    if isinstance(node, ast.Name):
        return ast.copy_location(ast.Name(node.id, ast.Load()), node)
    if isinstance(node, ast.Subscript):
        return ast.copy_location(ast.Subscript(node.value, node.slice, ast.Load()), node)
    raise FrontendError(f"{ast.unparse(node)} cannot be changed in a program")

