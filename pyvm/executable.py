"""VMExecutable: what a compiled model is before a virtual machine loads it.

An executable is a function table, a constant pool and instruction words (see `vmcore.isa`), plus what is not needed to
run: memory scopes, debug information (instruction -> source operator), signatures and metadata. It is plain data: it
may hold a program that breaks rules, and `verify` says so; a virtual machine verifies again before it runs anything.

Files: `save` writes our sectioned `.vmx` (`pyvm.vmx_format`), `to_bytes` TVM's format (`pyvm.tvm_format`);
`load_executable` reads both. What only people and compilers look at lies elsewhere and is loaded when they do: the
constant pool's rules (`pyvm.constants`), signatures (`pyvm.signature`), sizes (`pyvm.stats`), text (`pyvm.asm`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vmcore.isa import FUNCTION_KINDS, PACKED_NUM_ARGS

from .files import is_regular, open_to_read

if TYPE_CHECKING:
    from vmcore import arguments, errors

    from .constants import Constant
    from .explain import Explanation
    from .profile import Profile
    from .signature import Signature
else:
    from vmcore.status import arguments, errors  # the same, imported when there is a use for them

PACKED_FUNC, VM_FUNC, VMTIR_FUNC = FUNCTION_KINDS
TVM_MAGICS = 0xD225DE2F4214151D, 0xD225DE2F4214151E  # first words of files in TVM's format, versions 1 and 2


class FunctionInfo:
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

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionInfo) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"FunctionInfo({', '.join(fields)})"


class DebugInfo:
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


def _listed(parameter: str, items: Iterable[Any], kind: type | None = None) -> list[Any]:
    """The items of an argument of VMExecutable as a list of its own."""
    if isinstance(items, np.ndarray) or not arguments.is_iterable(items):
        raise arguments.wrong_type("VMExecutable", parameter, "an iterable", items)
    listed = list(items)
    if kind is not None and not all(isinstance(item, kind) for item in listed):
        raise arguments.wrong_type("VMExecutable", parameter, f"an iterable of {kind.__name__}", listed)
    return listed


def _sources(parameter: str, sources: Iterable[str | None] | None) -> list[str | None]:
    listed = [] if sources is None else _listed(parameter, sources)
    if not all(source is None or isinstance(source, str) for source in listed):
        raise arguments.wrong_type("VMExecutable", parameter, "an iterable of str and None", listed)
    return listed


def _words(parameter: str, words: Any) -> np.ndarray:
    if isinstance(words, np.ndarray) and words.dtype == np.int64 and words.ndim == 1:
        return np.ascontiguousarray(words)
    try:
        array = np.asarray(words)
    except (TypeError, ValueError):
        array = np.zeros((), object)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu") or array.dtype == np.uint64:
        raise arguments.wrong_type("VMExecutable", parameter, "a sequence of integers of 64 bits", words)
    return np.ascontiguousarray(array, dtype=np.int64)


def _mapping(parameter: str, mapping: Any) -> dict[Any, Any]:
    if mapping is not None and not isinstance(mapping, Mapping):
        raise arguments.wrong_type("VMExecutable", parameter, "a mapping", mapping)
    return {} if mapping is None else dict(mapping)


_NO_INSTRUCTIONS = np.zeros(0, dtype=np.int64)


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
        self.functions = _listed("functions", functions, FunctionInfo)
        self.constants: list[Constant] = _listed("constants", constants)
        if self.constants:
            from .constants import normalize_constant  # here, because readers have them in the form they need

            self.constants = [normalize_constant(value) for value in self.constants]
        self.instr_offset = _words("instr_offset", instr_offset)
        self.instr_data = _words("instr_data", instr_data)
        self.memory_scopes: dict[int, str] = _mapping("memory_scopes", memory_scopes)
        self.debug = debug if isinstance(debug, DebugInfo) else DebugInfo(_sources("debug", debug))
        self._signatures: dict[str, Signature] = _mapping("signatures", signatures)
        self._metadata: dict[str, str] = _mapping("metadata", metadata)
        self._notes = notes if isinstance(notes, DebugInfo) else DebugInfo(_sources("notes", notes))
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
        name = arguments.text("VMExecutable", "the name of a function", name)
        for index, info in enumerate(self.functions):
            if info.name == name:
                return index
        known = ", ".join(info.name for info in self.functions if info.kind != PACKED_FUNC) or "none"
        raise errors.FunctionNotFoundError(f"executable has no function {name!r}; it defines: {known}")

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
        from .signature import ObjectSpec, Signature

        names = info.param_names or [f"arg{i}" for i in range(max(info.num_args, 0))]
        return Signature([ObjectSpec(param) for param in names], [])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VMExecutable):
            return NotImplemented
        from .constants import constant_key

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
        from .vmx_format import read_vmx
        from .vmx_writer import write_vmx

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

        full = arguments.flag("verify", "full", full)
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

        return write_tvm(self, version=arguments.integer("to_bytes", "version", version))

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
        ArgumentTypeError, ArgumentValueError
            If `path` is no path, or no file can have it.
        OSError
            If the folder cannot be written to (PermissionError, EROFS) or the disk is full (ENOSPC, EDQUOT, EFBIG).
        """
        from .vmx_writer import save_vmx

        save_vmx(self, arguments.path("save", "path", path))

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
        from .stats import stats

        return stats(self)

    def arenas(self) -> dict[str, int | str]:
        """Size of the arena of each compiled function: bytes, or text such as "128*n bytes" where symbols decide."""
        from .stats import arenas

        return arenas(self)

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


def _read_file(path: str) -> bytes:
    with open_to_read(path) as file:
        return file.read()


def _is_known(head: bytes) -> bool:
    """Whether a file that begins so may be an executable."""
    from .vmx_format import VMX_MAGIC

    return head == VMX_MAGIC or int.from_bytes(head, "little") in TVM_MAGICS


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
    ArgumentTypeError
        If `source` is neither a path nor bytes.
    ArgumentValueError
        If no file can have that path.
    OSError
        If the file cannot be read, or is a device.
    """
    from .vmx_format import VMX_MAGIC, load_vmx, read_vmx

    if mmap is not True:
        mmap = arguments.flag("load_executable", "mmap", mmap)
    path = None
    if not isinstance(source, (bytes, bytearray, memoryview)):
        if not isinstance(source, (str, os.PathLike)):
            raise errors.ArgumentTypeError(
                f"load_executable: expected a path or the bytes of an executable, got {type(source).__name__}"
            )
        path = arguments.path("load_executable", "source", source) if not isinstance(source, str) else source
        try:
            file = open_to_read(path)
        except ValueError as error:
            raise errors.ArgumentValueError(f"load_executable: {path!a} is no name of a file: {error}") from None
        with file:
            head = file.read(8)
            if not is_regular(file):  # a pipe: can be read once, and not mapped; what is no executable may have no end
                source, path = head + file.read() if _is_known(head) else head, None
    if path is None:
        if isinstance(source, memoryview) and (source.ndim != 1 or source.itemsize != 1 or not source.c_contiguous):
            try:
                source = source.cast("B")
            except TypeError as error:
                raise errors.ArgumentTypeError(f"load_executable: a memoryview that is no bytes: {error}") from None
        head = bytes(source[:8])  # type: ignore[index,arg-type]
    try:
        if head == VMX_MAGIC:
            return read_vmx(memoryview(source)) if path is None else load_vmx(path, mmap=mmap)  # type: ignore[arg-type]
        if len(head) == 8 and int.from_bytes(head, "little") in TVM_MAGICS:
            from .tvm_format import read_tvm

            return read_tvm(source if path is None else _read_file(path))  # type: ignore[arg-type]
        if head[:4] == b"\x7fELF":
            raise errors.FormatError("this is a shared library; libraries exported by TVM are not supported yet")
        hint = "; pyvm.compile makes one of an ONNX model" if path is not None and str(path).endswith(".onnx") else ""
        raise errors.FormatError(
            f"this is no executable: it starts with {head.hex() or 'nothing'}, not with a known magic{hint}"
        )
    except errors.ExecutableError as error:
        if path is not None:
            error.add_note(f"in {path}")
        raise
