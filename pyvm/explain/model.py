"""What an explanation consists of: plain data, for programs and for the text, JSON and HTML that show it.

A `Size` is an int, an expression in the symbolic dimensions of the program, or None where it is not known. Positions in
time are instructions (pc); sizes of memory are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyvm.checked_calls import checked_method
from vmcore import arguments
from vmcore.errors import FunctionNotFoundError, IndexRangeError

from . import sizes
from .sizes import Dims, Size


@dataclass
class Operand:
    """One operand of an instruction.

    Attributes
    ----------
    name : str
        In the signature of the callee; arg0, arg1, ... where that is not known.
    role : str
        "input", "output" or "setting" (what is no tensor).
    where : str
        `%3`, `c[2]`, `@f`, or the immediate itself.
    text : str
        The value as far as it is known: `float32(1, 64, n)`, `shape(2, 2)`, `3`.
    shape, dtype, nbytes
        Of a tensor; None where not known.
    buffers : tuple of int
        Buffers that it may lie in.
    """

    name: str
    role: str
    where: str
    text: str
    shape: Dims | None = None
    dtype: str | None = None
    nbytes: Size = None
    buffers: tuple[int, ...] = ()


@dataclass
class Instruction:
    """One instruction.

    Attributes
    ----------
    pc : int
    opcode : str
        "call", "ret", "goto", "if", or "malformed".
    text : str
        The instruction as the disassembler prints it.
    callee : str
        Empty for what is no call.
    label : str
        What a short title adds to the kernel: the operators that it contains.
    kernel : str
        The callee without its prefix, or the opcode.
    category : str
        One of `pyvm.explain.CATEGORIES`.
    source : str or None
        The operators of the model that it does the work of.
    why : list of str
        Why it is this instruction: what the compiler recorded, the way the kernel takes, what happens in place.
    operands : list of Operand
    flops, macs, bytes_read, bytes_written : Size
        One execution. `macs` are the multiply-adds of products, which count twice in `flops`.
    target : int or None
        Where a jump goes.
    reached : bool
        False if no path leads here.
    result : str
        What it leaves in `dst`.
    dst : int or None
        Register of the result.
    allocates, ends, releases : lists of int
        Buffers that begin here and that are used here for the last time; storages that nothing holds any more.
    fed_by, feeds : lists of int
        Instructions that computed what it reads, and that read what it computes. Parameters are -1, -2, ...
    calls, total_ns, self_ns
        Measured, where a profile was given; `self_ns` without the calls inside.
    """

    pc: int
    opcode: str
    text: str
    callee: str = ""
    kernel: str = ""
    category: str = "other"
    source: str | None = None
    why: list[str] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    flops: Size = 0
    macs: Size = 0
    bytes_read: Size = 0
    bytes_written: Size = 0
    target: int | None = None
    reached: bool = True
    result: str = ""
    dst: int | None = None
    allocates: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)
    fed_by: list[int] = field(default_factory=list)
    feeds: list[int] = field(default_factory=list)
    calls: int = 0
    total_ns: int | None = None
    self_ns: int | None = None
    label: str = ""

    @property
    def bytes_moved(self) -> Size:
        """Bytes read and written."""
        return sizes.add(self.bytes_read, self.bytes_written)

    @property
    def inputs(self) -> list[Operand]:
        """The tensors that it reads."""
        return [operand for operand in self.operands if operand.role == "input"]

    @property
    def outputs(self) -> list[Operand]:
        """The tensors that it fills."""
        return [operand for operand in self.operands if operand.role == "output"]

    @property
    def is_work(self) -> bool:
        """Whether it computes or moves data, and not only prepares for that."""
        return self.category in ("product", "elementwise", "reduction", "movement", "calls", "other")


@dataclass
class Buffer:
    """The memory of one tensor that the program allocates.

    Attributes
    ----------
    id : int
        The instruction that makes the tensor.
    storages : tuple of int
        The storages that it may lie in; usually one.
    offset, nbytes : Size
    begin, end : int
        First and last instruction at which its contents matter.
    spans : list of (int, int)
        The instructions from begin to end at which they do: without the other side of a branch.
    joins : list of int
        Buffers whose contents it begins with: it is made of them, without a copy.
    writers, readers : lists of int
    kernel, category, source
        Of the instruction that fills it first.
    escapes : str
        Why it must outlive its last use: "" or e.g. "is returned".
    why : str
        Why it lies where it lies.
    """

    id: int
    storages: tuple[int, ...]
    offset: Size
    shape: Dims | None
    dtype: str | None
    nbytes: Size
    begin: int
    end: int
    spans: list[tuple[int, int]] = field(default_factory=list)
    writers: list[int] = field(default_factory=list)
    joins: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    kernel: str = ""
    category: str = "memory"
    source: str | None = None
    escapes: str = ""
    why: str = ""


@dataclass
class Storage:
    """A block of memory that the program asks for.

    Attributes
    ----------
    id : int
        The instruction that asks.
    kind : str
        "arena" for one that tensors share by address, else "storage".
    begin, end : int
        From its allocation until nothing holds it any more; the end of the function if it leaves it.
    spans : list of (int, int)
        The instructions from begin to end at which it is held: without the other side of a branch.
    """

    id: int
    kind: str
    nbytes: Size
    begin: int
    end: int
    spans: list[tuple[int, int]] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    escapes: str = ""


@dataclass
class ArenaPlan:
    """An arena that the function plans when it runs.

    Attributes
    ----------
    pc : int
        The instruction that does.
    table : tuple of int
        Begin, end and which size, for each buffer.
    sizes : list of Size
        What the table refers to.
    names : list of str
        Symbols for the outcome: bytes of the arena, then the offset of each buffer.
    """

    pc: int
    table: tuple[int, ...]
    sizes: list[Size]
    names: list[str]

    def outcome(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The symbols' values for these dims, as the instruction itself computes them; {} if it cannot."""
        from pyvm.registry import get_global_func
        from vmcore.errors import VMError
        from vmcore.types import Shape

        numbers = [sizes.number(size, dims) for size in self.sizes]
        if any(number is None or number >= 1 << 62 for number in numbers):
            return {}
        try:
            result = get_global_func("pyvm.builtin.plan_arena")(Shape(self.table), *numbers)
        except (VMError, OverflowError):
            return {}
        return dict(zip(self.names, map(int, result), strict=False))


@dataclass
class MemoryFigures:
    """A memory plan in numbers, for given values of the symbols.

    Attributes
    ----------
    arena_bytes, arena_lower_bound : int
        What tensors share by address: its size, and the most bytes that are alive in it at one time.
    peak_bytes, lower_bound : int
        Arena and storages together: the most that is held at one time, and the most that is alive.
    without_reuse : int
        If every buffer had memory of its own.
    unknown : int
        Storages whose size is not known; they are left out.
    """

    arena_bytes: int
    arena_lower_bound: int
    peak_bytes: int
    lower_bound: int
    without_reuse: int
    unknown: int = 0

    @property
    def ratio(self) -> float | None:
        """Arena over its lower bound; None without an arena."""
        return self.arena_bytes / self.arena_lower_bound if self.arena_lower_bound else None


@dataclass
class Totals:
    """Sums over the instructions of a function, each counted once; `*_unknown` says how many were left out."""

    flops: Size = 0
    macs: Size = 0
    bytes_read: Size = 0
    bytes_written: Size = 0
    flops_unknown: int = 0
    bytes_unknown: int = 0
    self_ns: int | None = None


@dataclass
class FunctionExplanation:
    """One bytecode function.

    Attributes
    ----------
    instructions : list of Instruction
    buffers : dict
        id -> Buffer, in order of the text.
    storages : dict
        id -> Storage.
    symbols : list of str
        Symbolic dimensions that its sizes depend on.
    has_control_flow : bool
        Whether there is a branch or a loop: totals then count every instruction once all the same.
    approximate : bool
        Whether the program was too entangled to follow, so that less is known than could be.
    plans : list of ArenaPlan
        Arenas that are planned when the function runs; sizes may have the symbols that stand for their outcome.
    """

    name: str
    params: list[tuple[str, str]]
    results: str
    n_registers: int
    begin: int
    end: int
    instructions: list[Instruction]
    buffers: dict[int, Buffer]
    storages: dict[int, Storage]
    symbols: list[str]
    has_control_flow: bool = False
    approximate: bool = False
    plans: list[ArenaPlan] = field(default_factory=list)

    def resolved(self, dims: Mapping[str, int]) -> dict[str, int]:
        """`dims` with what the function plans for them."""
        values = dict(dims)
        for plan in self.plans:
            values.update(plan.outcome(values))
        return values

    def instruction(self, pc: int) -> Instruction:
        """The instruction at `pc`; raises IndexRangeError for one of another function."""
        if not self.begin <= pc < self.end:
            raise IndexRangeError(f"@{self.name} has instructions {self.begin} to {self.end - 1}, not {pc}")
        return self.instructions[pc - self.begin]

    def totals(self) -> Totals:
        """Arithmetic, traffic and time of all instructions."""
        totals = Totals()
        totals.flops, totals.flops_unknown = sizes.known_sum(i.flops for i in self.instructions)
        totals.macs, _ = sizes.known_sum(i.macs for i in self.instructions)
        totals.bytes_read, read_unknown = sizes.known_sum(i.bytes_read for i in self.instructions)
        totals.bytes_written, write_unknown = sizes.known_sum(i.bytes_written for i in self.instructions)
        totals.bytes_unknown = max(read_unknown, write_unknown)
        measured = [i.self_ns for i in self.instructions if i.self_ns is not None]
        totals.self_ns = sum(measured) if measured else None
        return totals

    def memory(self, dims: Mapping[str, int] | None = None) -> MemoryFigures:
        """The memory plan in numbers; `dims` gives the symbols values."""
        from .memory import memory_figures

        return memory_figures(self, dims or {})


@dataclass
class Explanation:
    """An executable explained. `str` is a table; `to_json`, `to_html` and `save` are the other forms.

    Attributes
    ----------
    name : str
        What to call it in titles.
    functions : list of FunctionExplanation
        The bytecode functions in the order of the function table.
    others : list of tuple
        (name, kind) of the other functions it defines or calls.
    dims : dict
        Values given to symbols: sizes stay expressions, and `number` evaluates them.
    constants_bytes : int
        Of all constants (the weights).
    problem : str
        What the verifier objects to; empty for a program that can run.
    profile_ns : int or None
        Length of the profiled run, the profiler's own time included.
    """

    name: str
    functions: list[FunctionExplanation]
    others: list[tuple[str, str]]
    dims: dict[str, int]
    constants_bytes: int
    n_constants: int
    metadata: dict[str, str]
    problem: str = ""
    profile_ns: int | None = None
    profiled: str = ""
    _values: dict[str, int] | None = field(default=None, repr=False)

    @checked_method
    def function(self, name: str) -> FunctionExplanation:
        """The function of this name; raises FunctionNotFoundError."""
        for function in self.functions:
            if function.name == name:
                return function
        known = ", ".join(function.name for function in self.functions) or "none"
        raise FunctionNotFoundError(f"the explanation has no function {name!r}; it has: {known}")

    @checked_method
    def number(self, size: Size) -> int | None:
        """`size` as a number, with the dims that the explanation was given; None if that is not enough."""
        if self._values is None:
            self._values = dict(self.dims)
            if self.dims:
                for function in self.functions:
                    self._values.update(function.resolved(self.dims))
        return sizes.number(size, self._values)

    @property
    def symbols(self) -> list[str]:
        """The symbolic dimensions of all functions."""
        return list(dict.fromkeys(name for function in self.functions for name in function.symbols))

    @checked_method
    def to_json(self, indent: int | None = None) -> str:
        """Everything as JSON; sizes are numbers, or the text of an expression, with `dims` given numbers beside it."""
        import json

        if indent is not None:
            indent = arguments.integer("to_json", "indent", indent, 0, 100)
        return json.dumps(as_data(self), indent=indent, allow_nan=False)

    @checked_method
    def to_text(self, *, all_instructions: bool = False) -> str:
        """Tables for a terminal: what computes, or every instruction."""
        from .text import as_text

        return as_text(self, all_instructions)

    def to_html(self) -> str:
        """One self-contained page: needs no network."""
        from .page import as_html

        return as_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the page; a path that ends in `.json` or `.txt` gets those forms."""
        target = arguments.path("save", "path", path)
        if target.endswith(".json"):
            content = self.to_json(indent=1)
        elif target.endswith(".txt"):
            content = self.to_text(all_instructions=True) + "\n"
        else:
            content = self.to_html()
        with open(target, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own."""
        import html

        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:760px;border:0"></iframe>'

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        n = sum(len(function.instructions) for function in self.functions)
        return f"Explanation({self.name!r}: {len(self.functions)} functions, {n} instructions)"


_SIZES = ("flops", "macs", "bytes_read", "bytes_written")


def as_data(explanation: Explanation) -> dict[str, Any]:
    """The explanation as dicts, lists, strings and numbers."""

    def dims(shape: Dims | None) -> list[int | str | None] | None:
        return None if shape is None else [sizes.to_json(dim) for dim in shape]

    def values(pairs: Iterable[tuple[str, Size]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        numbers = {}
        for key, size in pairs:
            result[key] = sizes.to_json(size)
            if explanation.dims and size is not None and not isinstance(size, int):
                numbers[key] = explanation.number(size)
        if numbers:
            result["numbers"] = numbers
        return result

    def operand(o: Operand) -> dict[str, Any]:
        data: dict[str, Any] = {"name": o.name, "role": o.role, "where": o.where, "value": o.text}
        if o.dtype is not None or o.shape is not None:
            data |= {"dtype": o.dtype, "shape": dims(o.shape), **values([("nbytes", o.nbytes)])}
        if o.buffers:
            data["buffers"] = list(o.buffers)
        return data

    def instruction(i: Instruction) -> dict[str, Any]:
        data: dict[str, Any] = {"pc": i.pc, "opcode": i.opcode, "text": i.text, "category": i.category}
        for key in ("callee", "source", "why", "target", "dst", "result", "allocates", "ends", "releases"):
            value = getattr(i, key)
            if value not in (None, "", []):
                data[key] = value
        data |= {"fed_by": i.fed_by, "feeds": i.feeds, "operands": [operand(o) for o in i.operands]}
        data |= values((key, getattr(i, key)) for key in _SIZES)
        if not i.reached:
            data["reached"] = False
        if i.self_ns is not None:
            data |= {"calls": i.calls, "total_ns": i.total_ns, "self_ns": i.self_ns}
        return data

    def buffer(b: Buffer) -> dict[str, Any]:
        data = {key: getattr(b, key) for key in ("id", "begin", "end", "kernel", "source", "escapes", "why", "dtype")}
        data |= {
            "storages": list(b.storages),
            "spans": [list(span) for span in b.spans],
            "shape": dims(b.shape),
            "writers": b.writers,
            "readers": b.readers,
        }
        return data | values([("offset", b.offset), ("nbytes", b.nbytes)])

    def function(f: FunctionExplanation) -> dict[str, Any]:
        totals, memory = f.totals(), f.memory(explanation.dims)
        return {
            "name": f.name,
            "params": [{"name": name, "value": value} for name, value in f.params],
            "results": f.results,
            "registers": f.n_registers,
            "symbols": f.symbols,
            "approximate": f.approximate,
            "control_flow": f.has_control_flow,
            "totals": {
                **values((key, getattr(totals, key)) for key in _SIZES),
                "self_ns": totals.self_ns,
                "flops_unknown": totals.flops_unknown,
                "bytes_unknown": totals.bytes_unknown,
            },
            "memory": {**vars(memory), "ratio": memory.ratio},
            "plans": [{"pc": p.pc, "names": p.names, "table": list(p.table)} for p in f.plans],
            "instructions": [instruction(i) for i in f.instructions],
            "buffers": [buffer(b) for b in f.buffers.values()],
            "storages": [
                {
                    "id": s.id,
                    "kind": s.kind,
                    "begin": s.begin,
                    "end": s.end,
                    "buffers": s.buffers,
                    "spans": [list(span) for span in s.spans],
                    "escapes": s.escapes,
                    **values([("nbytes", s.nbytes)]),
                }
                for s in f.storages.values()
            ],
        }

    return {
        "name": explanation.name,
        "dims": explanation.dims,
        "symbols": explanation.symbols,
        "constants": {"count": explanation.n_constants, "bytes": explanation.constants_bytes},
        "metadata": explanation.metadata,
        "problem": explanation.problem,
        "profile_ns": explanation.profile_ns,
        "functions": [function(f) for f in explanation.functions],
        "others": [{"name": name, "kind": kind} for name, kind in explanation.others],
    }
