"""From the text of a program to the module: the exact inverse of `printer`.

Written by hand, a text may leave out more: struct info of results (it is inferred), `-> ...` of functions that are not
called before their result is known, and calls may be nested where the printer shows variables.
"""

from __future__ import annotations

from typing import Any

from vmcore.errors import CompileError, ParseError

from .builder import erase_branch, infer_call
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
)
from .nesting import typed_nesting
from .rules import contradict
from .struct_info import CallableStructInfo, ObjectStructInfo, StructInfo, common_struct_info
from .syntax import (
    BlockNode,
    CallNode,
    CastNode,
    FunctionNode,
    IfNode,
    ItemNode,
    RefNode,
    SequenceNode,
    StatementNode,
    TextParser,
    TupleNode,
)
from .tokens import Token, error_at


@typed_nesting("the text of a module", ParseError)
def parse(text: str) -> IRModule:
    """The module that a text describes.

    Parameters
    ----------
    text : str
        What `IRModule.script()` returns, or a program written by hand in the same form.

    Returns
    -------
    IRModule
        Equal to the one that was printed (`structural_equal`).

    Raises
    ------
    ParseError
        Names line, column and what is wrong there.
    """
    return _Builder(TextParser(text).module()).module()


@typed_nesting("struct info", ParseError)
def parse_struct_info(text: str) -> StructInfo:
    """The struct info that a text such as "Tensor((n, 4), float32)" describes.

    Raises
    ------
    ParseError
        Names line, column and what is wrong there.
    """
    return TextParser(text).struct_info()


class _Builder:
    def __init__(self, parsed: TextParser) -> None:
        self._parsed = parsed
        self._globals: dict[str, StructInfo] = {}
        self._reads: dict[str, list[BlockNode | None]] = {}
        self._scope: dict[str, Var] = {}
        self._bindings: list[Binding] = []
        self._dataflow = False

    def module(self) -> IRModule:
        for node in self._parsed.functions:
            self._globals[node.name.text] = _signature(node)
        functions = {}
        for node, reads in zip(self._parsed.functions, self._parsed.reads_of, strict=True):
            self._reads, self._scope = reads, {}
            function = self._function(node)
            functions[node.name.text] = function
            self._globals[node.name.text] = function.struct_info  # type: ignore[assignment]
        return IRModule(functions, self._parsed.attrs)

    def _function(self, node: FunctionNode) -> Function:
        params = []
        for name, info in node.params:
            params.append(self._define(name, Var(name.text, info)))
        return Function(params, self._sequence(node.body), node.ret, node.attrs)

    def _define(self, name: Token, var: Var) -> Var:
        if name.text == "_" and name.text not in self._reads:
            return var
        if name.text in self._scope:
            raise error_at(name, f"variable {name.text} is bound twice")
        self._scope[name.text] = var
        return var

    def _sequence(self, node: SequenceNode) -> SeqExpr:
        outer, outer_scope, dataflow = self._bindings, dict(self._scope), self._dataflow
        blocks: list[BindingBlock] = []
        self._dataflow = False
        for block in node.blocks:
            self._bindings = []
            self._dataflow = block.dataflow
            for statement in block.statements:
                self._statement(statement, block)
            self._dataflow = False
            missing = block.outputs - {statement.target.text for statement in block.statements}
            if missing:
                at = block.statements[0].target if block.statements else Token("mark", "", 1, 1)
                raise error_at(at, f"output({sorted(missing)[0]}): the dataflow block does not bind it")
            blocks.append((DataflowBlock if block.dataflow else BindingBlock)(self._bindings))
        self._bindings = []
        body = self._leaf(node.result)
        if self._bindings:
            blocks.append(BindingBlock(self._bindings))
        self._bindings, self._scope, self._dataflow = outer, outer_scope, dataflow
        return SeqExpr(blocks, body)

    def _statement(self, node: StatementNode, block: BlockNode) -> None:
        name, value = node.target, node.value
        # Visible outside its dataflow block: listed there, or read elsewhere.
        hidden = block.dataflow and name.text not in block.outputs
        hidden = hidden and all(reader is block for reader in self._reads.get(name.text, ()))
        kind = DataflowVar if hidden else Var
        if isinstance(value, CastNode):
            cast = self._leaf(value.value)
            var = self._define(name, kind(name.text, node.info or value.info))
            self._bindings.append(MatchCast(var, cast, value.info, node.source))
            return
        if isinstance(value, FunctionNode):
            var = self._define(name, kind(name.text, node.info or _signature(value)))
            scope, bindings, dataflow = dict(self._scope), self._bindings, self._dataflow
            function = self._function(value)
            self._scope, self._bindings, self._dataflow = scope, bindings, dataflow
            if node.info is None:
                var.struct_info = function.struct_info
            self._bindings.append(VarBinding(var, function, node.source))
            return
        bound = self._value(value, node.value_info or node.info, node.source)
        if node.info is not None and contradict(node.info, bound.struct_info):
            raise error_at(name, f"{name.text} is declared {node.info}, but its value is {bound.struct_info}")
        var = self._define(name, kind(name.text, node.info or bound.struct_info or ObjectStructInfo()))
        self._bindings.append(VarBinding(var, bound, node.source))

    def _value(self, node: Any, info: StructInfo | None, source: str | None) -> Expr:
        """A bound value; `info` is what the text says about it."""
        if isinstance(node, CallNode):
            return self._call(node, info, source)
        if isinstance(node, TupleNode):
            return Tuple([self._leaf(item) for item in node.fields])
        if isinstance(node, ItemNode):
            base = self._leaf(node.base)
            try:
                return TupleGetItem(base, node.index, info or ObjectStructInfo())
            except IndexError as error:
                raise error_at(node.at, str(error)) from error
        if isinstance(node, IfNode):
            cond = self._leaf(node.cond)
            taken, other = (self._sequence(branch) for branch in node.branches)
            if info is None:
                info = common_struct_info(erase_branch(taken), erase_branch(other))
            return If(cond, taken, other, info)
        return self._leaf(node)

    def _call(self, node: CallNode, info: StructInfo | None, source: str | None) -> Call:
        args = [self._leaf(arg) for arg in node.args]
        callee: Any = node.callee
        if isinstance(callee, str):
            from pyvm.op.registry import get_op

            try:
                callee = get_op(callee)
            except CompileError as error:
                raise error_at(node.at, str(error)) from error
        else:
            callee = self._leaf(callee)
            if not isinstance(callee, (GlobalVar, ExternFunc, Var)):
                raise error_at(node.at, f"{callee} cannot be called")
        try:
            inferred = infer_call(Call(callee, args, node.attrs, info, source))
        except CompileError as error:
            raise error_at(node.at, str(error)) from error
        if info is not None and contradict(info, inferred):
            raise error_at(node.at, f"the value is declared {info}, but it is {inferred}")
        return Call(callee, args, node.attrs, info or inferred, source)

    def _leaf(self, node: Any) -> Expr:
        """An operand; what is no leaf is bound to a variable first."""
        if isinstance(node, RefNode):
            var = self._scope.get(node.name)
            if var is None:
                raise error_at(node.at, f"variable {node.name} is used where it is not defined")
            return var
        if isinstance(node, GlobalVar):
            if node.name not in self._globals:
                return node  # the check of the module says so, with the binding
            return GlobalVar(node.name, self._globals[node.name])
        if isinstance(node, LEAVES):
            return node
        value = self._value(node, None, None)
        var = (DataflowVar if self._dataflow else Var)("v", value.struct_info or ObjectStructInfo())
        self._bindings.append(VarBinding(var, value))
        return var


def _signature(node: FunctionNode) -> StructInfo:
    return CallableStructInfo([info for _, info in node.params], node.ret)
