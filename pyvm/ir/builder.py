"""BlockBuilder: writes functions binding by binding, in normal form and with struct info."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vmcore.errors import CompileError

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
    SeqExpr,
    Tuple,
    TupleGetItem,
    Var,
    VarBinding,
    as_expr,
)
from .prim import Prim, SymVar
from .struct_info import (
    CallableStructInfo,
    ObjectStructInfo,
    StructInfo,
    common_struct_info,
    erase_unknown,
    match_symbols,
    struct_info_vars,
    substitute_struct_info,
)


class _Scope:
    """Blocks under construction: of a function body or of a branch."""

    __slots__ = ("blocks", "bindings", "dataflow")

    def __init__(self) -> None:
        self.blocks: list[BindingBlock] = []
        self.bindings: list[Binding] = []
        self.dataflow = False

    def close_block(self) -> None:
        if self.bindings:
            self.blocks.append((DataflowBlock if self.dataflow else BindingBlock)(self.bindings))
            self.bindings = []


class BlockBuilder:
    """Builds an `IRModule`.

    ::

        bb = BlockBuilder()
        x = Var("x", TensorStructInfo((SymVar("n"), 4), "float32"))
        with bb.function("main", params=[x]):
            with bb.dataflow():
                y = bb.emit(op.relu(op.add(x, x)))
                out = bb.emit_output(y)
            bb.emit_func_output(out)
        module = bb.get()

    Parameters
    ----------
    module : IRModule, optional
        Functions to start from; `get` returns them with those that were added. Not modified.
    """

    def __init__(self, module: IRModule | None = None) -> None:
        self._functions: dict[str, Function] = dict(module.functions) if module else {}
        self._attrs: dict[str, Any] = dict(module.attrs) if module else {}
        self._declared: dict[str, StructInfo] = {}
        self._scopes: list[_Scope] = []
        self._names: dict[str, int] = {}
        self._source: str | None = None
        self._params: tuple[Var, ...] = ()
        self._result: Expr | None = None

    # --- functions

    @contextmanager
    def function(
        self, name: str, params: Iterable[Var] = (), attrs: Mapping[str, Any] | None = None
    ) -> Iterator[GlobalVar]:
        """Opens a function; what is emitted inside becomes its body. Ends with one `emit_func_output`."""
        if self._scopes:
            raise CompileError(f"BlockBuilder: function {name!r} begins inside another function")
        self._params = tuple(params)
        self._names = {}
        for param in self._params:
            self.unique_name(param.name)
        self._result = None
        self._scopes.append(_Scope())
        try:
            yield GlobalVar(name, self._declared.get(name))
            if self._result is None:
                raise CompileError(f"BlockBuilder: function {name!r} has no emit_func_output")
            scope = self._scopes[-1]
            scope.close_block()
            body = SeqExpr(scope.blocks, self._result)
        finally:
            self._scopes.clear()
        self.add_func(Function(self._params, body, attrs=attrs), name)

    def declare(self, name: str, struct_info: CallableStructInfo) -> GlobalVar:
        """Announces a function before it is built, so that calls of it (recursion too) have struct info."""
        self._declared[name] = struct_info
        return GlobalVar(name, struct_info)

    def add_func(self, function: Function, name: str) -> GlobalVar:
        """Adds a finished function."""
        if name in self._functions:
            raise CompileError(f"BlockBuilder: there are two functions {name!r}")
        declared = self._declared.get(name)
        if isinstance(declared, CallableStructInfo):
            function = Function(function.params, function.body, declared.ret, function.attrs)
        self._functions[name] = function
        return GlobalVar(name, function.struct_info)

    def get(self) -> IRModule:
        """The module with everything added so far."""
        return IRModule(self._functions, self._attrs)

    # --- blocks

    @contextmanager
    def dataflow(self) -> Iterator[None]:
        """Opens a dataflow block: no side effects, no control flow; `emit_output` makes values visible outside."""
        scope = self._scope()
        if scope.dataflow:
            raise CompileError("BlockBuilder: a dataflow block begins inside a dataflow block")
        scope.close_block()
        scope.dataflow = True
        try:
            yield
            scope.close_block()
        finally:
            scope.dataflow = False

    @contextmanager
    def source(self, text: str | None) -> Iterator[None]:
        """Everything emitted inside comes from this operator of the original model."""
        previous, self._source = self._source, text
        try:
            yield
        finally:
            self._source = previous

    @property
    def current_source(self) -> str | None:
        """The source operator that `source` set; a pass that visits many bindings sets it directly."""
        return self._source

    @current_source.setter
    def current_source(self, text: str | None) -> None:
        self._source = text

    def open_scope(self) -> None:
        """Starts collecting bindings into a new sequence, until `close_scope`. For branches and for passes."""
        self._scopes.append(_Scope())

    def close_scope(self, body: Any) -> SeqExpr:
        """Ends what `open_scope` began; the value of the sequence is `body`."""
        value = self._atom(self.normalize(as_expr(body)))
        scope = self._scopes.pop()
        scope.close_block()
        return SeqExpr(scope.blocks, value)

    @property
    def scope_depth(self) -> int:
        """How many sequences are being collected."""
        return len(self._scopes)

    def drop_scopes(self, depth: int) -> None:
        """Forgets the sequences begun since `scope_depth` was `depth`, and what was emitted into them."""
        del self._scopes[depth:]

    # --- bindings

    def emit(self, expr: Any, name_hint: str = "") -> Var:
        """Binds `expr` to a new variable, after its nested calls; infers struct info."""
        value = self.normalize(as_expr(expr))
        return self._bind(value, name_hint, output=False)

    def emit_output(self, expr: Any, name_hint: str = "") -> Var:
        """Like `emit`, for a value of a dataflow block that is used after it."""
        value = self.normalize(as_expr(expr))
        return self._bind(value, name_hint, output=True)

    def emit_if(self, cond: Any, then: Callable[[], Any], otherwise: Callable[[], Any], name_hint: str = "") -> Var:
        """Binds an `If`; each callable emits the bindings of its branch and returns the branch's value."""
        condition = self._atom(self.normalize(as_expr(cond)))
        branches = []
        for make in (then, otherwise):
            self.open_scope()
            branches.append(self.close_scope(make()))
        return self.emit(If(condition, branches[0], branches[1]), name_hint)

    def emit_function(
        self,
        name: str,
        params: Iterable[Var],
        body: Callable[..., Any],
        ret: StructInfo | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> Var:
        """Binds a local function, which may read whatever is visible here; `body(itself, *params)` emits its bindings
        and returns its value.

        Parameters
        ----------
        name : str
            Hint for the variable; errors name the function by it.
        params : iterable of Var
        body : callable
        ret : StructInfo, optional
            What it returns; needed if the function calls itself. Known from the body otherwise.
        attrs : mapping, optional
        """
        params = tuple(params)
        scope = self._scope()
        infos = [param.struct_info or ObjectStructInfo() for param in params]
        var = self._new_var(name, CallableStructInfo(infos, ret), scope.dataflow)
        for param in params:
            self.unique_name(param.name)
        self.open_scope()
        sequence = self.close_scope(body(var, *params))
        function = Function(params, sequence, ret, attrs)
        var.struct_info = function.struct_info
        scope.bindings.append(VarBinding(var, function, self._source))
        return var

    def match_cast(self, expr: Any, struct_info: StructInfo, name_hint: str = "") -> Var:
        """Binds `expr` with a check at run time that it has `struct_info`; new symbols in it get their values."""
        value = self._atom(self.normalize(as_expr(expr)))
        scope = self._scope()
        var = self._new_var(name_hint or getattr(value, "name", ""), struct_info, scope.dataflow)
        scope.bindings.append(MatchCast(var, value, struct_info, self._source))
        return var

    def emit_binding(self, binding: Binding) -> None:
        """Appends a finished binding as it is. For passes: its value must be in normal form with struct info."""
        self._scope().bindings.append(binding)

    def reserve_names(self, names: Iterable[str]) -> None:
        """New variables get none of these names."""
        for name in names:
            self._names.setdefault(name, 0)

    def emit_func_output(self, expr: Any) -> None:
        """Sets the value of the function."""
        if len(self._scopes) != 1:
            raise CompileError("BlockBuilder: emit_func_output outside a function, or inside a branch")
        if self._result is not None:
            raise CompileError("BlockBuilder: a function has one emit_func_output")
        self._result = self._atom(self.normalize(as_expr(expr)))

    # --- normal form and inference

    def normalize(self, expr: Expr) -> Expr:
        """`expr` with struct info and only leaves as operands; nested calls are bound to variables first."""
        if isinstance(expr, LEAVES):
            return expr
        if isinstance(expr, Call):
            args = tuple(self._atom(self.normalize(arg)) for arg in expr.args)
            info = expr.struct_info
            source = expr.source if expr.source is not None else self._source
            changed = any(new is not old for new, old in zip(args, expr.args, strict=True))
            if not changed and info is not None and source == expr.source:
                return expr
            if info is None or changed:
                info = infer_call(Call(expr.op, args, expr.attrs, info, source))
            return Call(expr.op, args, expr.attrs, info, source)
        if isinstance(expr, Tuple):
            fields = tuple(self._atom(self.normalize(field)) for field in expr.fields)
            return Tuple(fields)
        if isinstance(expr, TupleGetItem):
            base = self.normalize(expr.tuple)
            if isinstance(base, Tuple):
                return base.fields[expr.index]
            return TupleGetItem(self._atom(base), expr.index, expr.struct_info or ObjectStructInfo())
        if isinstance(expr, If):
            return self._normalize_if(expr)
        if isinstance(expr, SeqExpr):
            for binding in expr.bindings():
                self.emit_binding(binding)
            return self.normalize(expr.body)
        if isinstance(expr, Function):
            return expr
        raise CompileError(f"BlockBuilder: a {type(expr).__name__} cannot be bound")

    def _normalize_if(self, expr: If) -> If:
        info = expr.struct_info
        if info is None:
            outer = erase_branch(expr.true_branch), erase_branch(expr.false_branch)
            info = common_struct_info(*outer)
        return If(self._atom(self.normalize(expr.cond)), expr.true_branch, expr.false_branch, info)

    def _atom(self, value: Expr) -> Expr:
        """`value` if it may be an operand, else a new variable bound to it."""
        if isinstance(value, LEAVES):
            return value
        return self._bind(value, "", output=False)

    def _bind(self, value: Expr, name_hint: str, output: bool) -> Var:
        scope = self._scope()
        var = self._new_var(name_hint, value.struct_info, scope.dataflow and not output)
        scope.bindings.append(VarBinding(var, value, self._source))
        return var

    def _new_var(self, name_hint: str, struct_info: StructInfo | None, dataflow: bool) -> Var:
        name = self.unique_name(name_hint or ("lv" if dataflow else "gv"))
        return (DataflowVar if dataflow else Var)(name, struct_info or ObjectStructInfo())

    def unique_name(self, hint: str) -> str:
        """`hint`, or with a number after it if the function has such a name already. The name is taken from now on."""
        count = self._names.get(hint)
        if count is None:
            self._names[hint] = 0
            return hint
        while True:
            count += 1
            name = f"{hint}_{count}"
            if name not in self._names:
                self._names[hint] = count
                self._names[name] = 0
                return name

    def _scope(self) -> _Scope:
        if not self._scopes:
            raise CompileError("BlockBuilder: emitting outside a function")
        return self._scopes[-1]


def erase_branch(branch: SeqExpr) -> StructInfo:
    """Struct info of a branch's value without the symbols that the branch itself defines."""
    info = branch.body.struct_info or ObjectStructInfo()
    defined: set[SymVar] = set()
    for binding in branch.bindings():
        if isinstance(binding, MatchCast):
            defined |= struct_info_vars(binding.struct_info)
    return erase_unknown(info, frozenset(struct_info_vars(info) - defined)) if defined else info


def infer_call(call: Call) -> StructInfo:
    """Struct info of a call whose arguments have theirs.

    Raises
    ------
    CompileError
        If the operator refuses its arguments; the message is the operator's, with the source operator as a note.
    """
    op = call.op
    if isinstance(op, (GlobalVar, Var)):
        return _infer_function_call(op, call)
    problem = op.misuse(call)
    if problem is not None:
        raise CompileError(problem if call.source is None else f"{problem} in {call.source}")
    if isinstance(op, ExternFunc):
        return call.struct_info or ObjectStructInfo()
    try:
        return op.infer(call)
    except CompileError as error:
        if call.source is not None:
            error.add_note(f"in {call.source}")
        raise
    except (ValueError, TypeError, IndexError, KeyError, ArithmeticError) as error:
        where = f" in {call.source}" if call.source is not None else ""
        problem = f"attribute {error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CompileError(f"{op.name}: {problem}{where}") from error


def _infer_function_call(op: GlobalVar | Var, call: Call) -> StructInfo:
    info = op.struct_info
    if not isinstance(info, CallableStructInfo):
        return call.struct_info or ObjectStructInfo()
    if info.params is None:
        return info.ret
    if len(info.params) != len(call.args):
        raise CompileError(f"{op.name}: takes {len(info.params)} arguments, {len(call.args)} were given")
    # The callee's symbols have its scope: what cannot be expressed in the caller's symbols is forgotten.
    mapping: dict[SymVar, Prim] = {}
    for param, arg in zip(info.params, call.args, strict=True):
        match_symbols(param, arg.struct_info, mapping)
    ret = erase_unknown(info.ret, frozenset(mapping))
    return substitute_struct_info(ret, mapping)
