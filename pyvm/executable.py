"""VMExecutable: what a compiled model is before a virtual machine loads it.

An executable is a function table, a constant pool and instruction words (see `vmcore.isa`), plus what is not needed to
run: memory scopes, debug information (instruction -> source operator), signatures and metadata. It is plain data: it
may hold a program that breaks rules, and `verify` says so; a virtual machine verifies again before it runs anything.

Files: `save` writes our sectioned `.vmx` (`pyvm.vmx_format`), `to_bytes` TVM's format (`pyvm.tvm_format`);
`load_executable` reads both.
"""

from __future__ import annotations

import importlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from vmcore.errors import ExecutableError, FormatError, FunctionNotFoundError
from vmcore.isa import FUNCTION_KINDS, PACKED_NUM_ARGS, instruction_words
from vmcore.types import BitsArray, DataType, Shape, tensor_dtype

if TYPE_CHECKING:
    from pyvm.explain import Explanation
    from pyvm.profile import Profile

PACKED_FUNC, VM_FUNC, VMTIR_FUNC = FUNCTION_KINDS

Constant = Union[np.ndarray, Shape, str, int, float, DataType]  # noqa: UP007 (evaluated at run time)


class _Record:
    """Equal by kind and fields. Not dataclasses: making one costs 0.5 ms at import, and their module 1 ms."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _field_names(cls) -> tuple[str, ...]:
        return tuple(name for base in reversed(cls.__mro__) for name in getattr(base, "__slots__", ()))

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._field_names())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._fields() == other._fields()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self._field_names())
        return f"{type(self).__name__}({', '.join(fields)})"


class FunctionInfo(_Record):
    """One entry of the function table.

    Attributes
    ----------
    kind : int
        PACKED_FUNC (an external name), VM_FUNC (bytecode) or VMTIR_FUNC (compiled).
    name : str
    start_instr, end_instr : int
        Instructions of a VM_FUNC, half open; 0 for the other kinds.
    num_args : int
        -2 for a PACKED_FUNC, whose arity is not declared.
    register_file_size : int
        Registers of one frame; arguments are registers 0 .. num_args - 1.
    param_names : list of str
        Empty, or `num_args` names.
    """

    __slots__ = ("kind", "name", "start_instr", "end_instr", "num_args", "register_file_size", "param_names")

    def __init__(
        self,
        kind: int,
        name: str,
        start_instr: int = 0,
        end_instr: int = 0,
        num_args: int = PACKED_NUM_ARGS,
        register_file_size: int = 0,
        param_names: list[str] | None = None,
    ) -> None:
        self.kind, self.name = kind, name
        self.start_instr, self.end_instr = start_instr, end_instr
        self.num_args, self.register_file_size = num_args, register_file_size
        self.param_names: list[str] = [] if param_names is None else param_names


class _Spec(_Record):
    """A parameter or result."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:  # type: ignore[override]
        return hash((type(self), self._fields()))


class TensorSpec(_Spec):
    """A tensor parameter or result. A dim is an int or an expression in symbols ("n", "2*n+1"); None is unknown."""

    __slots__ = ("shape", "dtype")

    def __init__(self, name: str, shape: Sequence[int | str] | None, dtype: str | None) -> None:
        self.name, self.dtype = name, dtype
        self.shape: tuple[int | str, ...] | None = None if shape is None else tuple(shape)

    def __str__(self) -> str:
        dims = "(...)" if self.shape is None else "(" + ", ".join(map(str, self.shape)) + ")"
        return f"{self.name}: {dims} {self.dtype or 'any'}"


class ShapeSpec(_Spec):
    """A Shape parameter or result; None is unknown."""

    __slots__ = ("values",)

    def __init__(self, name: str, values: Sequence[int | str] | None = None) -> None:
        self.name = name
        self.values: tuple[int | str, ...] | None = None if values is None else tuple(values)

    def __str__(self) -> str:
        return f"{self.name}: shape" + ("" if self.values is None else "(" + ", ".join(map(str, self.values)) + ")")


class ScalarSpec(_Spec):
    """An int, bool or float parameter or result."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}"


class TupleSpec(_Spec):
    """A tuple parameter or result."""

    __slots__ = ("fields",)

    def __init__(self, name: str, fields: Sequence[Spec]) -> None:
        self.name = name
        self.fields: tuple[Spec, ...] = tuple(fields)

    def __str__(self) -> str:
        return f"{self.name}: ({', '.join(map(str, self.fields))})"


class ObjectSpec(_Spec):
    """A parameter or result of any other kind."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.name}: object"


Spec = Union[TensorSpec, ShapeSpec, ScalarSpec, TupleSpec, ObjectSpec]  # noqa: UP007 (evaluated at run time)


def _dims_to_json(dims: tuple[int | str, ...] | None) -> list[int | str] | None:
    return None if dims is None else list(dims)


def _dims_from_json(dims: Any) -> tuple[int | str, ...] | None:
    if dims is None:
        return None
    if not isinstance(dims, list) or not all(isinstance(d, (int, str)) and not isinstance(d, bool) for d in dims):
        raise FormatError(f"signature: dims {dims!r} are not a list of integers and expressions")
    return tuple(dims)


def _spec_to_json(spec: Spec) -> dict[str, Any]:
    if isinstance(spec, TensorSpec):
        return {"kind": "tensor", "name": spec.name, "shape": _dims_to_json(spec.shape), "dtype": spec.dtype}
    if isinstance(spec, ShapeSpec):
        return {"kind": "shape", "name": spec.name, "values": _dims_to_json(spec.values)}
    if isinstance(spec, ScalarSpec):
        return {"kind": "scalar", "name": spec.name, "dtype": spec.dtype}
    if isinstance(spec, TupleSpec):
        return {"kind": "tuple", "name": spec.name, "fields": [_spec_to_json(f) for f in spec.fields]}
    return {"kind": "object", "name": spec.name}


_MAX_SPEC_DEPTH = 64


def _spec_from_json(data: Any, depth: int = 0) -> Spec:
    if depth > _MAX_SPEC_DEPTH:
        raise FormatError(f"signature: tuples are nested deeper than {_MAX_SPEC_DEPTH}")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise FormatError("signature: a parameter is not an object with a name")
    kind, name = data.get("kind"), data["name"]
    dtype = data.get("dtype")
    if kind == "tensor" and (dtype is None or isinstance(dtype, str)):
        return TensorSpec(name, _dims_from_json(data.get("shape")), dtype)
    if kind == "shape":
        return ShapeSpec(name, _dims_from_json(data.get("values")))
    if kind == "scalar" and isinstance(dtype, str):
        return ScalarSpec(name, dtype)
    if kind == "tuple" and isinstance(data.get("fields"), list):
        return TupleSpec(name, tuple(_spec_from_json(f, depth + 1) for f in data["fields"]))
    if kind == "object":
        return ObjectSpec(name)
    raise FormatError(f"signature: parameter {name!r} has an unknown or incomplete kind {kind!r}")


class Signature(_Record):
    """What a function takes and returns, for people and for random inputs; the program itself checks at run time."""

    __slots__ = ("params", "results")

    def __init__(self, params: Sequence[Spec] = (), results: Sequence[Spec] = ()) -> None:
        self.params: list[Spec] = list(params)
        self.results: list[Spec] = list(results)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and ints."""
        return {"params": [_spec_to_json(p) for p in self.params], "results": [_spec_to_json(r) for r in self.results]}

    @classmethod
    def from_json(cls, data: Any) -> Signature:
        """Inverse of `to_json`; raises FormatError."""
        if not isinstance(data, dict):
            raise FormatError("signature: not an object")
        lists = [data.get("params"), data.get("results")]
        if not all(isinstance(specs, list) for specs in lists):
            raise FormatError("signature: params and results are not lists")
        params, results = ([_spec_from_json(spec) for spec in specs] for specs in lists)  # type: ignore[union-attr]
        return cls(params, results)

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.params))}) -> ({', '.join(map(str, self.results))})"


class DebugInfo(Sequence["str | None"]):
    """Source operator per instruction: a sequence of str or None, stored as a table of strings and int32 indices."""

    def __init__(self, sources: Iterable[str | None] = ()) -> None:
        table: dict[str, int] = {}
        index = [-1 if source is None else table.setdefault(source, len(table)) for source in sources]
        self.strings: list[str] = list(table)
        self.indices: np.ndarray = np.array(index if table else [], dtype=np.int32)

    @classmethod
    def from_table(cls, strings: list[str], index: np.ndarray) -> DebugInfo:
        """From its parts; -1 in `index` is no source. The table is brought into order of first use."""
        index = np.asarray(index, dtype=np.int32)
        highest = np.maximum.accumulate(index) if len(index) else index
        canonical = (
            len(index) > 0
            and highest[0] <= 0
            and int(np.diff(highest).max(initial=0)) <= 1
            and int(highest[-1]) == len(strings) - 1 >= 0
            and int(index.min()) >= -1
            and len(set(strings)) == len(strings)
        )
        if not canonical:
            return cls(strings[i] if 0 <= i < len(strings) else None for i in index.tolist())
        self = cls()
        self.strings, self.indices = strings, index
        return self

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, pc: Any) -> Any:
        if isinstance(pc, slice):
            return [self[i] for i in range(*pc.indices(len(self.indices)))]
        i = int(self.indices[pc]) if -len(self.indices) <= pc < len(self.indices) else -1
        return self.strings[i] if 0 <= i < len(self.strings) else None

    def __iter__(self) -> Iterator[str | None]:
        return (self[pc] for pc in range(len(self.indices)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DebugInfo)
            and self.strings == other.strings
            and np.array_equal(self.indices, other.indices)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DebugInfo({len(self.indices)} instructions, {len(self.strings)} sources)"


_NO_INSTRUCTIONS = np.zeros(0, dtype=np.int64)
_NUMPY_TENSOR_TYPES = frozenset(
    np.dtype(name)
    for name in (
        "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
    )
)


def tensor_numpy_dtype(element_type: DataType) -> np.dtype | None:
    """The numpy dtype that holds a tensor's elements: its own, unsigned bits, or None if it cannot be a constant."""
    if element_type.lanes != 1:
        return None
    # bfloat16 (code 4) and the float8 family (codes 7-14): only the bits are carried, also where a package that happens
    # to be imported gives numpy dtypes of these names.
    if (element_type.code, element_type.bits) == (4, 16):
        return np.dtype(np.uint16)
    if 7 <= element_type.code <= 14 and element_type.bits == 8:
        return np.dtype(np.uint8)
    try:
        dtype = element_type.numpy
    except TypeError:
        return None
    return dtype if dtype in _NUMPY_TENSOR_TYPES else None


def normalize_constant(value: Any) -> Constant:
    """`value` as a member of the constant pool.

    Tensors (numpy arrays, DLPack producers) become compact read-only numpy arrays; one that is compact and read-only
    already is used as it is. A tuple or list of integers becomes a Shape, a numpy dtype a DataType, bool an int.

    Raises
    ------
    TypeError, ValueError
        If the pool has no such kind, or a number does not fit.
    """
    if isinstance(value, (DataType, str, float)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"constant: {number} does not fit in int64")
        return number
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, (tuple, list)):
        if not all(isinstance(d, (int, np.integer)) and not isinstance(d, bool) for d in value):
            raise TypeError(f"constant: {value!r} is not a shape (a sequence of integers)")
        return value if isinstance(value, Shape) else Shape(value)
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return DataType(value)
    if not isinstance(value, np.ndarray):
        if hasattr(value, "__dlpack__"):
            value = np.from_dlpack(value)
        elif hasattr(value, "__array__"):
            value = np.asarray(value)
        else:
            raise TypeError(f"constant: the pool holds no {type(value).__name__}")
    array = value
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        element_type = tensor_dtype(array)
        stored = tensor_numpy_dtype(element_type)
    except (TypeError, ValueError):
        stored = None
    if stored is None:
        raise TypeError(f"constant: a tensor of {array.dtype} cannot be in the constant pool")
    if array.dtype.kind not in "biufc":  # a type that a package added to numpy: its bits are carried
        array = BitsArray.wrap(np.array(array, order="C").view(stored), element_type)
    if array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy(order="C")
        array.flags.writeable = False
    return array


def constant_key(value: Constant) -> tuple[Any, ...]:
    """A hashable key, equal exactly for constants that are the same bits of the same kind."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        if data.nbytes <= 64:
            digest = data.tobytes()
        else:
            from hashlib import blake2b  # here, because serving has no use for it

            digest = blake2b(data.data, digest_size=32).digest()
        element_type = tensor_dtype(value)
        return ("tensor", element_type.code, element_type.bits, element_type.lanes, value.shape, digest)
    if isinstance(value, Shape):
        return ("shape", *value)
    if isinstance(value, DataType):
        return ("dtype", value.code, value.bits, value.lanes)
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    return (type(value).__name__, value)


class VMExecutable:
    """A program: function table, constants, instructions.

    Attributes
    ----------
    functions : list of FunctionInfo
    constants : list
        numpy arrays (read-only; 0-d allowed; BitsArray where numpy lacks the type), Shape, str, int, float, DataType.
    instr_offset : numpy.ndarray
        int64; position in `instr_data` of each instruction.
    instr_data : numpy.ndarray
        int64; instruction words.
    memory_scopes : dict
        Constant index to memory scope name.
    debug : DebugInfo
        Source operator per instruction.
    signatures : dict
        Function name to Signature.
    metadata : dict
        Free strings.
    notes : DebugInfo
        Why an instruction is what it is, as its compiler noted; several reasons are several lines.

    Notes
    -----
    Running needs no signatures, metadata and notes: those of a `.vmx` file are decoded when they are first looked at,
    and raise FormatError then if they are malformed.
    """

    def __init__(
        self,
        functions: Iterable[FunctionInfo] = (),
        constants: Iterable[Constant] = (),
        instr_offset: Any = _NO_INSTRUCTIONS,
        instr_data: Any = _NO_INSTRUCTIONS,
        memory_scopes: dict[int, str] | None = None,
        debug: DebugInfo | Iterable[str | None] | None = None,
        signatures: dict[str, Signature] | None = None,
        metadata: dict[str, str] | None = None,
        notes: DebugInfo | Iterable[str | None] | None = None,
    ) -> None:
        self.functions = list(functions)
        self.constants: list[Constant] = [normalize_constant(value) for value in constants]
        self.instr_offset = np.ascontiguousarray(instr_offset, dtype=np.int64)
        self.instr_data = np.ascontiguousarray(instr_data, dtype=np.int64)
        self.memory_scopes = dict(memory_scopes or {})
        self.debug = debug if isinstance(debug, DebugInfo) else DebugInfo(debug or ())
        self._signatures = dict(signatures or {})
        self._metadata = dict(metadata or {})
        self._notes = notes if isinstance(notes, DebugInfo) else DebugInfo(notes or ())
        # Set by a reader that put them off: the checksum of the weights, and decoding signatures, metadata and notes.
        self._check_weights: Callable[[], None] | None = None
        self._decode_meta: Callable[[], tuple[dict[str, Signature], dict[str, str]]] | None = None
        self._decode_notes: Callable[[], DebugInfo] | None = None
        self._identity = b""  # header and section table of the .vmx file that it was read from

    @property
    def signatures(self) -> dict[str, Signature]:
        """Signatures by function name."""
        self._ensure_meta()
        return self._signatures

    @signatures.setter
    def signatures(self, value: dict[str, Signature]) -> None:
        self._ensure_meta()
        self._signatures = value

    @property
    def metadata(self) -> dict[str, str]:
        """Free strings by key."""
        self._ensure_meta()
        return self._metadata

    @metadata.setter
    def metadata(self, value: dict[str, str]) -> None:
        self._ensure_meta()
        self._metadata = value

    @property
    def notes(self) -> DebugInfo:
        """Reasons by instruction."""
        decode = self._decode_notes
        if decode is not None:
            self._notes = decode()  # another thread may do the same, and finds the same
            self._decode_notes = None
        return self._notes

    @notes.setter
    def notes(self, value: DebugInfo) -> None:
        self._decode_notes, self._notes = None, value

    def _ensure_meta(self) -> None:
        decode = self._decode_meta
        if decode is not None:
            meta = decode()
            if self._decode_meta is not None:  # else another thread was faster, and its dicts are in use
                self._signatures, self._metadata = meta
                self._decode_meta = None

    # ---- looking things up

    def function_index(self, name: str) -> int:
        """Position of a function in the table; raises FunctionNotFoundError."""
        for index, info in enumerate(self.functions):
            if info.name == name:
                return index
        known = ", ".join(info.name for info in self.functions if info.kind != PACKED_FUNC) or "none"
        raise FunctionNotFoundError(f"executable has no function {name!r}; it defines: {known}")

    def function(self, name: str) -> FunctionInfo:
        """The table entry of a function; raises FunctionNotFoundError."""
        return self.functions[self.function_index(name)]

    def signature(self, name: str) -> Signature:
        """What `name` takes and returns.

        Where the compiler recorded nothing, parameters are objects of the recorded names (or arg0, arg1, ...) and
        results are unknown.
        """
        info = self.function(name)
        if name in self.signatures:
            return self.signatures[name]
        names = info.param_names or [f"arg{i}" for i in range(max(info.num_args, 0))]
        return Signature([ObjectSpec(param) for param in names], [])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VMExecutable):
            return NotImplemented
        return (
            self.functions == other.functions
            and len(self.constants) == len(other.constants)
            and all(constant_key(a) == constant_key(b) for a, b in zip(self.constants, other.constants, strict=True))
            and np.array_equal(self.instr_offset, other.instr_offset)
            and np.array_equal(self.instr_data, other.instr_data)
            and list(self.memory_scopes.items()) == list(other.memory_scopes.items())
            and self.debug == other.debug
            and self.signatures == other.signatures
            and self.metadata == other.metadata
            and self.notes == other.notes
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Callable[[bytes], VMExecutable], tuple[bytes]]:
        from .vmx_format import read_vmx, write_vmx

        return read_vmx, (write_vmx(self),)

    def __repr__(self) -> str:
        defined = [info.name for info in self.functions if info.kind != PACKED_FUNC]
        n_instr, n_const = len(self.instr_offset), len(self.constants)
        return f"VMExecutable({', '.join(defined)}: {n_instr} instructions, {n_const} constants)"

    # ---- checking

    def verify(self, *, full: bool = False) -> None:
        """Raises VerifyError unless the program keeps every rule that a virtual machine relies on.

        Parameters
        ----------
        full : bool
            Also read what loading a `.vmx` file puts off: weights, compared with their checksum, signatures, metadata
            and notes (FormatError).
        """
        from vmcore.verify import verify

        verify(self)
        if full:
            self._ensure_meta()
            _ = self.notes
            if self._check_weights is not None:
                self._check_weights()

    # ---- files

    def to_bytes(self, *, version: int = 2) -> bytes:
        """The executable in TVM's format; debug information, signatures and metadata have no place in it.

        Parameters
        ----------
        version : int
            2, or 1 for a reader that does not know memory scopes.
        """
        from .tvm_format import write_tvm

        return write_tvm(self, version=version)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> VMExecutable:
        """Reads TVM's format (both versions) or `.vmx` bytes; raises an ExecutableError.

        The result is well-formed data, but not verified: `verify` does that, and every virtual machine.
        """
        return load_executable(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.vmx` file. Afterwards `path` is the new file or, on any error, what it was before.

        The file is written beside `path` and renamed over it, so that nobody ever sees half of it, and who has the old
        one loaded keeps it.

        Raises
        ------
        FormatError
            If the executable holds what the format cannot.
        OSError
            If the folder cannot be written to (PermissionError, EROFS) or the disk is full (ENOSPC, EDQUOT, EFBIG).
        """
        from .vmx_format import save_vmx

        save_vmx(self, path)

    # ---- text

    def as_text(self) -> str:
        """The program in the layout of TVM's `as_text`."""
        from .asm import tvm_text

        return tvm_text(self)

    def as_asm(self) -> str:
        """The program as assembler text; `pyvm.asm.assemble` gives an equal executable back."""
        from .asm import disassemble

        return disassemble(self)

    def as_python(self) -> str:
        """A Python program that rebuilds the executable, as `executable`, with `ExecBuilder`."""
        from .asm import python_text

        return python_text(self)

    def stats(self) -> str:
        """Sizes and counts for people."""
        tensors = [c for c in self.constants if isinstance(c, np.ndarray)]
        lines = [
            f"functions: {sum(f.kind == VM_FUNC for f in self.functions)} bytecode, "
            f"{sum(f.kind == VMTIR_FUNC for f in self.functions)} compiled, "
            f"{sum(f.kind == PACKED_FUNC for f in self.functions)} packed",
        ]
        for info in self.functions:
            if info.kind != PACKED_FUNC:
                params = ", ".join(info.param_names) or str(max(info.num_args, 0))
                n_instr = info.end_instr - info.start_instr
                lines.append(f"  @{info.name}({params}): {n_instr} instructions, {info.register_file_size} registers")
        packed = [info.name for info in self.functions if info.kind == PACKED_FUNC]
        if packed:
            lines.append("  packed: " + ", ".join(packed))
        lines.append(
            f"code: {len(self.instr_offset)} instructions, {len(self.instr_data)} words "
            f"({_human_bytes(8 * (len(self.instr_data) + len(self.instr_offset)))})"
        )
        counts = self._opcode_counts()
        lines.append("  " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        lines.append(
            f"constants: {len(self.constants)}, of which {len(tensors)} tensors "
            f"({_human_bytes(sum(t.nbytes for t in tensors))})"
        )
        for t in sorted(tensors, key=lambda t: -t.nbytes)[:5]:
            lines.append(f"  {t.shape} {tensor_dtype(t)}: {_human_bytes(t.nbytes)}")
        lines += self._arena_lines()
        return "\n".join(lines) + "\n"

    def arenas(self) -> dict[str, int | str]:
        """Size of the arena of each compiled function: bytes, or text such as "128*n bytes" where symbols decide."""
        sizes: dict[str, int | str] = {}
        for key, value in self.metadata.items():
            kind, _, name = key.partition(":")
            if kind == "arena_bytes":
                number = _number(value)
                sizes[name] = value if number is None else number
        return sizes

    def _arena_lines(self) -> Iterator[str]:
        for name, size in self.arenas().items():
            if not isinstance(size, int):
                yield f"arena of @{name}: {size}"
                continue
            live = _number(self.metadata.get(f"live_bytes:{name}", ""))
            tensors = _number(self.metadata.get(f"tensor_bytes:{name}", ""))
            line = f"arena of @{name}: {size} bytes ({_human_bytes(size)})"
            if live and tensors is not None:
                line += f", {size / live:.2f} x the most alive at once, {_human_bytes(tensors)} without sharing"
            yield line

    def explain(
        self, dims: Mapping[str, int] | None = None, profile: Profile | None = None, *, name: str = ""
    ) -> Explanation:
        """What every instruction does, on which shapes, at what cost, where its data lies, and why.

        Parameters
        ----------
        dims : mapping, optional
            Values of symbolic dimensions. Sizes are expressions in these symbols; with values, numbers too.
        profile : pyvm.profile.Profile, optional
            A measured run (`VirtualMachine.profile`): adds times, and the rates that follow from them.
        name : str
            What to call the program in titles.

        Returns
        -------
        pyvm.explain.Explanation
            `print` it, or `save("page.html")`. Where nothing is known (of functions that are not ours, for instance)
            it says so; it explains programs that do not verify, too.

        Raises
        ------
        ValueError
            For a dimension that is no integer of at least 0.
        """
        # The compiler half has the arithmetic of symbols; serving asks for no explanation and loads none of it.
        explained: Explanation = importlib.import_module("pyvm.explain").explain(self, dims, profile, name)
        return explained

    def _opcode_counts(self) -> dict[str, int]:
        from vmcore.isa import Opcode  # here, because serving has no use for it

        counts = {"call": 0, "ret": 0, "goto": 0, "if": 0}
        names = dict(zip((int(op) for op in Opcode), counts, strict=True))
        for offset in self.instr_offset.tolist():
            if instruction_words(self.instr_data, offset):
                counts[names[int(self.instr_data[offset])]] += 1
        return counts


def _number(text: str) -> int | None:
    """The number that metadata holds; a file may hold anything there."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _human_bytes(n: int) -> str:
    value = float(n)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def load_executable(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview, *, mmap: bool = True
) -> VMExecutable:
    """Reads an executable from a file or from bytes: `.vmx` or TVM's VMExecutable format, told apart by their magic.

    Every checksum but that of the weights of a mapped file is compared; see `VMExecutable.verify`.

    Parameters
    ----------
    source : path or bytes
        A path is a `.vmx` file, mapped or read, or a file in TVM's format, which is always read whole.
    mmap : bool
        Whether the weights of a `.vmx` file are mapped (the default) or read into memory.

    Notes
    -----
    Mapped weights are pages of the file: read when they are first used, shared by all processes that use the file, and
    given back when memory is short. The mapping follows the file, not the path. So a file that is replaced, as `save`
    and `os.replace` do, stays what it was for who has it loaded. A file that is changed in place changes the weights of
    running models, and a file that is truncated in place, or lies on a disk that fails, ends the process with SIGBUS
    when a missing page is used: no program can turn that into an exception safely. Where files are edited in place, or
    live on a network file system that may go away, load with `mmap=False`: that reads a private copy, compares the
    checksum of the weights too, and does not look at the file again.

    Raises
    ------
    ExecutableError
        FormatError or VersionError for anything that is not a well-formed file of a known version: also for a file that
        is truncated, or changes size while it is read.
    OSError
        If the file cannot be read.
    """
    from .tvm_format import TVM_MAGICS, read_tvm
    from .vmx_format import VMX_MAGIC, load_vmx, read_vmx

    path = None
    if not isinstance(source, (bytes, bytearray, memoryview)):
        path = os.fspath(source)
        with open(path, "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                head = file.read(8)
            else:  # a pipe: can be read once, and not mapped
                source, path = file.read(), None
    if path is None:
        head = bytes(source[:8])  # type: ignore[index,arg-type]
    try:
        if head == VMX_MAGIC:
            return read_vmx(memoryview(source)) if path is None else load_vmx(path, mmap=mmap)  # type: ignore[arg-type]
        if len(head) == 8 and int.from_bytes(head, "little") in TVM_MAGICS:
            return read_tvm(source if path is None else _read_file(path))  # type: ignore[arg-type]
        if head[:4] == b"\x7fELF":
            raise FormatError("this is a shared library; libraries exported by TVM are not supported yet")
        raise FormatError(f"this is no executable: it starts with {head.hex() or 'nothing'}, not with a known magic")
    except ExecutableError as error:
        if path is not None:
            error.add_note(f"in {path}")
        raise
