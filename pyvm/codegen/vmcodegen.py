"""VMCodeGen: emits the instructions of a lowered module through ExecBuilder."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyvm.checked_calls import checked
from pyvm.exec_builder import ExecBuilder, Operand
from pyvm.executable import VMExecutable
from pyvm.ir import (
    Binding,
    Call,
    Constant,
    DataTypeImm,
    Expr,
    ExternFunc,
    Function,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    NoneImm,
    Prim,
    PrimExpr,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StringImm,
    StructInfo,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
)
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.source import notes_of
from pyvm.signature import MAX_SPEC_DEPTH, ObjectSpec, ScalarSpec, ShapeSpec, Signature, Spec, TensorSpec, TupleSpec
from pyvm.transform.kill_after_last_use import takes_over
from pyvm.transform.liveness import Liveness, find_deaths
from pyvm.transform.lowered import ALLOC_STORAGE, ALLOC_TENSOR_AT, KILL, NEEDS_VM, RESHAPE, extern_name
from vmcore.errors import LoweringError
from vmcore.types import DataType, Shape

from .registers import RegisterFile

# Instructions that carry no notes of passes: those are about the call that does the work.
_NO_WORK = frozenset({ALLOC_STORAGE, ALLOC_TENSOR_AT, RESHAPE})


@typed_nesting("generate")
@checked
def generate(module: IRModule, signatures: dict[str, Signature] | None = None) -> VMExecutable:
    """The executable of a lowered module.

    Parameters
    ----------
    module : IRModule
        What the pipeline of `pyvm.transform` leaves: calls of external functions, of functions of the module and of
        closures; no symbols, no `MatchCast`.
    signatures : dict, optional
        Signatures by function name; `signature_of` makes them from a module that was not lowered yet.

    Raises
    ------
    LoweringError
        If something that a pass should have lowered is left.
    """
    builder = ExecBuilder()
    constants = _ConstantPool(builder)
    for name, function in module.functions.items():
        param_names = [param.name for param in function.params]
        with builder.function(name, num_inputs=len(param_names), param_names=param_names):
            _FunctionCodeGen(builder, constants, name, function).emit()
    for name, signature in (signatures or {}).items():
        builder.set_signature(name, signature)
    for name, function in module.functions.items():
        for fact in ("arena_bytes", "live_bytes", "tensor_bytes"):
            if fact in function.attrs:
                builder.set_metadata(f"{fact}:{name}", str(function.attrs[fact]))
    return builder.get()


class _ConstantPool:
    """Constants by value; the bytes of a large array are looked at once, however often it is an operand."""

    def __init__(self, builder: ExecBuilder) -> None:
        self._builder = builder
        self._arrays: dict[int, tuple[np.ndarray, Operand]] = {}
        self._dtypes: dict[str, Operand] = {}

    def add(self, value: Any) -> Operand:
        if not isinstance(value, np.ndarray):
            return self._builder.convert_constant(value)
        known = self._arrays.get(id(value))
        if known is None:
            # The array is kept so that its id stays its own.
            known = self._arrays[id(value)] = value, self._builder.convert_constant(value)
        return known[1]

    def add_dtype(self, name: str) -> Operand:
        """A data type by name; every allocation has one."""
        known = self._dtypes.get(name)
        if known is None:
            known = self._dtypes[name] = self._builder.convert_constant(DataType(name))
        return known


class _FunctionCodeGen:
    def __init__(self, builder: ExecBuilder, constants: _ConstantPool, name: str, function: Function) -> None:
        self._builder = builder
        self._constants = constants
        self._name = name
        self._function = function
        self._liveness: Liveness = find_deaths(function)
        self._registers = RegisterFile(len(function.params))
        self._start = builder.label()

    def emit(self) -> None:
        for index, param in enumerate(self._function.params):
            self._registers.bind(param, index)
        body = self._function.body
        self._builder.place(self._start)
        if self._sequence(body, tail=True):
            return
        result = body.body
        if isinstance(result, NoneImm):
            self._builder.emit_ret(None)
        elif isinstance(result, Var):
            self._builder.emit_ret(self._register(result))
        else:
            register = self._builder.r(self._registers.take())
            self._builder.emit_call("vm.builtin.copy", [self._operand(result)], dst=register)
            self._builder.emit_ret(register)

    def _sequence(self, seq: SeqExpr, tail: bool = False) -> bool:
        """Emits the bindings of a sequence. With `tail`, its value is what the function returns.

        Returns whether control goes elsewhere in the end: a function that returns what it returns itself for other
        arguments goes back to its start with these, in the same frame.
        """
        for var in self._liveness.at_entry.get(seq, ()):
            self._registers.release(var)
        bindings = list(seq.bindings())
        last = len(bindings) - 1
        while last >= 0 and extern_name(bindings[last].value) == KILL:
            last -= 1
        for index, binding in enumerate(bindings):
            is_result = tail and index == last and binding.var is seq.body
            if is_result and self._calls_itself(binding.value):
                self._go_back(binding, bindings[index + 1 :])
                return True
            self._binding(binding, is_result)
        return False

    def _calls_itself(self, value: Expr) -> bool:
        return (
            isinstance(value, Call)
            and isinstance(value.op, GlobalVar)
            and value.op.name == self._name
            and len(value.args) == len(self._function.params)
        )

    def _go_back(self, binding: Binding, kills: list[Binding]) -> None:
        """Emits a call of the function itself whose result it returns: arguments become parameters, then a Goto."""
        builder, value = self._builder, binding.value
        assert isinstance(value, Call)
        # INVARIANT: a parameter's register is written when no pending move reads it.
        pending: dict[int, Operand] = {}
        reads: dict[int, int] = {}
        for target, arg in enumerate(value.args):
            source = self._registers[arg] if isinstance(arg, Var) else None
            if source != target:
                pending[target] = self._operand(arg)
                if source is not None:
                    reads[target] = source
        spare: list[int] = []
        while pending:
            ready = next((t for t in pending if all(reads[u] != t for u in reads if u != t)), None)
            target = next(iter(pending)) if ready is None else ready
            if ready is None:  # only cycles are left: one value steps aside
                self._registers.size += 1
                spare.append(self._registers.size - 1)
                builder.emit_call(
                    "vm.builtin.copy", [builder.r(target)], dst=builder.r(spare[-1]), source=binding.source
                )
                for reader, read in list(reads.items()):
                    if read == target:
                        reads[reader] = spare[-1]
                        pending[reader] = builder.r(spare[-1])
            builder.emit_call("vm.builtin.copy", [pending.pop(target)], dst=builder.r(target), source=binding.source)
            reads.pop(target, None)
        n_params = len(self._function.params)
        dead = [self._registers[kill.value.args[0]] for kill in kills]  # type: ignore[attr-defined]
        for register in (*spare, *(register for register in dead if register >= n_params)):
            builder.emit_call("vm.builtin.null_value", [], dst=builder.r(register), source=binding.source)
        builder.emit_goto(self._start, source=binding.source)

    def _binding(self, binding: Binding, tail: bool = False) -> None:
        value = binding.value
        if isinstance(binding, MatchCast):
            raise LoweringError(f"@{self._name}: a match_cast is left; the pass lower_shapes comes before codegen")
        if isinstance(value, If):
            self._if(binding, value, tail)
            return
        if extern_name(value) == KILL:
            # Emitted before its register is given away: the variable dies at this very binding.
            victim = value.args[0]  # type: ignore[attr-defined]
            self._builder.emit_call("vm.builtin.null_value", [], dst=self._register(victim), source=binding.source)
            self._release_dead(binding)
            return
        name, args = self._call_of(value)
        dead = self._liveness.after[binding]
        if takes_over(binding, dead):
            self._take_over(binding, name, args, value.args[0])  # type: ignore[attr-defined]
            return
        # Operands are read before the result is written, so the result may take the register of one that dies here.
        self._release_dead(binding)
        unused = binding.var in dead
        if unused and isinstance(value, Call) and isinstance(value.op, ExternFunc):
            dst = None
        else:
            dst = self._builder.r(self._destination(binding.var))
            if unused:
                self._registers.release(binding.var)
        note = None if name in _NO_WORK else "\n".join(notes_of(binding.source)) or None
        self._builder.emit_call(name, args, dst=dst, source=binding.source, note=note)

    def _take_over(self, binding: Binding, name: str, args: list[Operand], viewed: Var) -> None:
        """Emits a view in the register of what it looks at, which dies here and has no kill of its own."""
        registers, builder = self._registers, self._builder
        if binding.var in registers:  # the value of a branch has its register already
            builder.emit_call(name, args, dst=self._register(binding.var), source=binding.source)
            builder.emit_call("vm.builtin.null_value", [], dst=self._register(viewed), source=binding.source)
            self._release_dead(binding)
            return
        registers.bind(binding.var, registers[viewed])
        builder.emit_call(name, args, dst=self._register(binding.var), source=binding.source)
        for var in self._liveness.after[binding]:
            if var is not viewed:
                registers.release(var)

    def _release_dead(self, binding: Binding) -> None:
        for var in self._liveness.after[binding]:
            if var is not binding.var:
                self._registers.release(var)

    def _destination(self, var: Var) -> int:
        # The value of a branch has the register of the If already.
        return self._registers[var] if var in self._registers else self._registers.allocate(var)

    def _if(self, binding: Binding, value: If, tail: bool) -> None:
        builder, registers = self._builder, self._registers
        cond = registers.take()
        builder.emit_call(
            "vm.builtin.read_if_cond", [self._operand(value.cond)], dst=builder.r(cond), source=binding.source
        )
        otherwise, end = builder.label(), builder.label()
        builder.emit_if(builder.r(cond), otherwise, source=binding.source)
        registers.give_back(cond)
        result = self._destination(binding.var)
        state = registers.save()
        if not self._branch(value.true_branch, result, binding.source, tail):
            builder.emit_goto(end, source=binding.source)
        builder.place(otherwise)
        registers.restore(state)
        self._branch(value.false_branch, result, binding.source, tail)
        builder.place(end)
        if binding.var in self._liveness.after[binding]:
            registers.release(binding.var)

    def _branch(self, branch: SeqExpr, result: int, source: str | None, tail: bool) -> bool:
        """Emits a branch whose value ends up in the register `result`; returns whether control goes elsewhere."""
        body = branch.body
        defined_here = isinstance(body, Var) and any(b.var is body for b in branch.bindings())
        if defined_here:
            assert isinstance(body, Var)
            self._registers.bind(body, result)
        if self._sequence(branch, tail):
            return True
        if not defined_here:
            self._builder.emit_call(
                "vm.builtin.copy", [self._operand(body)], dst=self._builder.r(result), source=source
            )
            if branch in self._liveness.at_end:
                self._registers.release(self._liveness.at_end[branch])
        return False

    def _call_of(self, value: Expr) -> tuple[str, list[Operand]]:
        """Callee and operands of the instruction that computes a bound value."""
        if isinstance(value, Call):
            args = [self._operand(arg) for arg in value.args]
            op = value.op
            if isinstance(op, (ExternFunc, GlobalVar)):
                if op.name in NEEDS_VM:
                    args.insert(0, self._builder.vm_state())
                return op.name, args
            if isinstance(op, Var):
                return "vm.builtin.invoke_closure", [self._builder.vm_state(), self._register(op), *args]
            raise LoweringError(f"@{self._name}: operator {op.name} is left; the pass legalize comes before codegen")
        if isinstance(value, Tuple):
            return "vm.builtin.make_tuple", [self._operand(field) for field in value.fields]
        if isinstance(value, TupleGetItem):
            return "vm.builtin.tuple_getitem", [self._operand(value.tuple), self._builder.imm(value.index)]
        return "vm.builtin.copy", [self._operand(value)]

    def _register(self, var: Var) -> Operand:
        return self._builder.r(self._registers[var])

    def _operand(self, leaf: Expr) -> Operand:
        builder = self._builder
        if isinstance(leaf, Var):
            return self._register(leaf)
        if isinstance(leaf, Constant):
            return self._constants.add(leaf.data)
        if isinstance(leaf, NoneImm):
            return builder.void_arg()
        if isinstance(leaf, PrimValue) and not isinstance(leaf.value, PrimExpr):
            if isinstance(leaf.value, (bool, np.bool_)):
                return builder.imm(int(leaf.value))
            if isinstance(leaf.value, (float, np.floating)):
                return builder.convert_constant(float(leaf.value))
            return self._integer(int(leaf.value))
        if isinstance(leaf, ShapeExpr) and not any(isinstance(dim, PrimExpr) for dim in leaf.values):
            return self._constant(tuple(map(int, leaf.values)))  # type: ignore[arg-type]
        if isinstance(leaf, StringImm):
            return builder.convert_constant(leaf.value)
        if isinstance(leaf, DataTypeImm):
            return self._constants.add_dtype(leaf.value)
        if isinstance(leaf, (GlobalVar, ExternFunc)):
            return builder.f(leaf.name)
        raise LoweringError(f"@{self._name}: {leaf} cannot be an operand of an instruction")

    def _integer(self, value: int) -> Operand:
        try:
            return self._builder.imm(value)
        except ValueError:  # wider than an immediate
            return self._constant(value)

    def _constant(self, value: int | tuple[int, ...]) -> Operand:
        try:
            return self._builder.convert_constant(Shape(value) if isinstance(value, tuple) else value)
        except (OverflowError, ValueError) as error:
            raise LoweringError(f"@{self._name}: {error}") from error


# --- signatures


@checked
def signature_of(function: Function) -> Signature:
    """What a function takes and returns, from its struct info and its attribute "output_names"."""
    params = [_spec(param.name, param.struct_info) for param in function.params]
    names = list(function.attrs.get("output_names", ()))
    ret = function.ret_struct_info
    fields = ret.fields if isinstance(ret, TupleStructInfo) else (ret,)
    names += [f"output{i}" for i in range(len(names), len(fields))]
    return Signature(params, [_spec(name, field) for name, field in zip(names, fields, strict=False)])


def _spec(name: str, info: StructInfo | None, depth: int = 0) -> Spec:
    if isinstance(info, TensorStructInfo):
        return TensorSpec(name, _dims(info.shape), info.dtype)
    if isinstance(info, ShapeStructInfo):
        return ShapeSpec(name, _dims(info.values))
    if isinstance(info, PrimStructInfo):
        return ScalarSpec(name, info.dtype)
    if isinstance(info, TupleStructInfo) and depth < MAX_SPEC_DEPTH:
        return TupleSpec(name, tuple(_spec(f"{name}[{i}]", field, depth + 1) for i, field in enumerate(info.fields)))
    return ObjectSpec(name)


def _dims(dims: tuple[Prim, ...] | None) -> tuple[int | str, ...] | None:
    return None if dims is None else tuple(dim if isinstance(dim, int) else str(dim) for dim in dims)
