"""From Python functions to a module: each `@pyvm.function` that is called becomes one function of it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from pyvm.ir import (
    BlockBuilder,
    CallableStructInfo,
    Expr,
    Function,
    GlobalVar,
    IRModule,
    NoneImm,
    PrimStructInfo,
    StructInfo,
    TensorStructInfo,
    TupleStructInfo,
    Var,
    check_well_formed,
)
from pyvm.ir.rules import defined_symbols
from pyvm.ir.struct_info import erase_unknown, struct_info_vars
from vmcore.errors import FrontendError

from .decorator import PythonFunction
from .source import Source, source_of
from .statements import Exits, Statements
from .values import Emitter, Value


def build_module(function: PythonFunction) -> IRModule:
    """The module of a function and of all that it calls.

    Raises
    ------
    FrontendError
        Names file, line and function.
    """
    program = ProgramBuilder()
    program.global_var(function)
    order = [program.names[function], *(name for name in program.functions if name != program.names[function])]
    module = IRModule({name: program.functions[name] for name in order})
    check_well_formed(module)
    return module


class ProgramBuilder:
    """Functions of one module, read as they are called."""

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}
        self.names: dict[PythonFunction, str] = {}
        self._declared: dict[str, CallableStructInfo | None] = {}  # of functions that are being read
        self._inlined: list[Any] = []

    def to_global(self, value: Any) -> GlobalVar | None:
        """The function of the module that a Python value is, if it is one."""
        return self.global_var(value) if isinstance(value, PythonFunction) else None

    def global_var(self, function: PythonFunction) -> GlobalVar:
        """The function of the module that a `@pyvm.function` is; read now if it was not before."""
        name = self.names.get(function)
        if name is None:
            name = function.name
            while name in self.names.values():
                name += "_"
            self.names[function] = name
            self.functions[name] = self._read(function, name)
        if name in self.functions:
            return GlobalVar(name, self.functions[name].struct_info)
        declared = self._declared.get(name)
        if declared is None:
            raise FrontendError(f"{name} is called before its result is known: declare it (`-> ...`)")
        return GlobalVar(name, declared)

    def _read(self, function: PythonFunction, name: str) -> Function:
        source = source_of(function.function)
        bb = BlockBuilder()
        emitter = Emitter(bb, self.to_global)
        reader = Statements(self, emitter, source)
        tree = source.tree
        with reader.at(tree):
            args = tree.args
            if args.vararg or args.kwarg:
                raise FrontendError("a program has no *args and **kwargs")
            params = []
            for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs):
                if arg.annotation is None:
                    raise FrontendError(f"parameter {arg.arg} has no annotation: `{arg.arg}: pyvm.Tensor[...]`")
                params.append(Var(arg.arg, reader.annotation(arg.annotation, {}, arg.arg)))
            infos = [param.struct_info for param in params]
            known = frozenset(symbol for info in infos for symbol in defined_symbols(info))
            for param in params:
                missing = sorted(map(str, struct_info_vars(param.struct_info) - known))
                if missing:
                    raise FrontendError(
                        f"parameter {param.name}: no parameter has {missing[0]} as a size by itself, so it has no value"
                    )
            ret: StructInfo | None = None
            if tree.returns is not None and not (isinstance(tree.returns, ast.Constant) and tree.returns.value is None):
                ret = _of_result(erase_unknown(reader.annotation(tree.returns, {}), known))
            self._declared[name] = None if ret is None else CallableStructInfo(infos, ret)  # type: ignore[arg-type]
        for param in params:
            emitter.define(param.struct_info)
        with bb.function(name, params):
            with reader.at(tree):
                env = {param.name: emitter.value(param, weak=False) for param in params}
            exits = Exits(reader.returner(name, ret))
            result = reader.run(tree.body, env, exits, lambda _: exits.on_return(None) if ret else NoneImm())
            with reader.at(tree):
                bb.emit_func_output(result)
        made = bb.get()[name]
        info = ret or erase_unknown(_of_result(made.ret_struct_info), known)
        return Function(made.params, made.body, info, made.attrs)

    def inline(
        self, function: Callable[..., Any], args: list[Value], kwargs: dict[str, Value], emitter: Emitter
    ) -> Value:
        """The result of a plain Python function whose body is read where it is called."""
        if function in self._inlined:
            raise FrontendError(
                f"{function.__name__} calls itself: make it a @pyvm.function, so that it can at run time"
            )
        source: Source = source_of(function)
        if inspect.isgeneratorfunction(function):
            raise FrontendError(f"{function.__name__} is a generator")
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        reader = Statements(self, emitter, source)
        depth = emitter.bb.scope_depth
        results: list[Value] = []
        here = NoneImm()

        def on_return(value: Value) -> Expr:
            if emitter.bb.scope_depth == depth:  # not in a branch: the value itself
                results.append(value)
                return here
            return emitter.leaf(value)

        self._inlined.append(function)
        try:
            result = reader.run(source.tree.body, dict(bound.arguments), Exits(on_return), lambda _: on_return(None))
        finally:
            self._inlined.pop()
        return results[-1] if result is here else emitter.value(result)


def _of_result(info: StructInfo) -> StructInfo:
    """`info` as that of a result: any integer where it is one, and a tensor without axes where it is a float."""
    if isinstance(info, PrimStructInfo):
        return TensorStructInfo((), "float64") if info.dtype == "float64" else PrimStructInfo(info.dtype)
    if isinstance(info, TupleStructInfo):
        return TupleStructInfo(map(_of_result, info.fields))
    return info

