"""Executables for tests: hypothesis strategies, a sample with every feature, and mutations of byte strings."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from pyvm.asm import assemble
from pyvm.executable import PACKED_FUNC, VM_FUNC, VMTIR_FUNC, DebugInfo, FunctionInfo, VMExecutable
from pyvm.signature import ObjectSpec, ScalarSpec, ShapeSpec, Signature, TensorSpec, TupleSpec
from vmcore.isa import VM_REGISTER, VOID_REGISTER, ArgKind, Opcode, pack_arg
from vmcore.types import BitsArray, DataType, Shape

SAMPLE = """\
func @main(%0 x, %1 n) regs=5
  call  @vm.builtin.check_tensor_info (%0, 2, dtype(float32), "main, x: ")
  if    %1, L4
  call  @kernel.add (%0, c[0], 0.5, shape(2, 3), %void, %vm) -> %2  ! "add (Add-14)"
  goto  L5
L4:
  call  @helper (%0) -> %2
L5:
  call  @vm.builtin.make_closure (@helper, 1152921504606846976) -> %3  ! "closure"
  call  @native (%2, -1) -> %4  ! "native"  ? "compiled: it is short\\nand always here"
  ret   %4

func @helper(%0) regs=2
  ret   %0

native @native(%0 a, %1 b) regs=4

c[0] = tensor float32 (2, 3) [1, 2, 3, 4, 5, 6.5]
c[6] = tensor bfloat16 (2) base64 AQIDBA==
c[7] = tensor float64 () [-0.0]
c[8] = tensor int8 (0, 4) []
scope c[0] = "global"
signature @main {"params": [{"kind": "tensor", "name": "x", "shape": ["n", 3], "dtype": "float32"}], "results": []}
meta "producer" = "a test"
"""


def sample() -> VMExecutable:
    """A verified program with every kind of constant, function and instruction."""
    return assemble(SAMPLE)


INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES = st.one_of(st.from_regex(r"[a-z_.$/:-]{1,8}", fullmatch=True), TEXT.filter(lambda s: s != "" and "\0" not in s))
DTYPES = st.sampled_from(
    ["bool", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64"]
)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Arrays of random bits, of all types that a constant may have."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    name = draw(st.one_of(DTYPES, st.sampled_from(["bfloat16", (7, 8, 1)])))
    element_type = DataType(name) if isinstance(name, str) else DataType.from_triple(*name)
    size = int(np.prod(shape, dtype=np.int64)) * element_type.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
    if element_type == "bfloat16" or element_type.code == 7:
        return BitsArray.wrap(raw.view(f"u{element_type.itemsize}").reshape(shape), element_type)
    return raw.view(element_type.numpy).reshape(shape)


CONSTANTS = st.one_of(
    tensors(),
    TEXT,
    INT64,
    st.floats(),
    st.lists(INT64, max_size=4).map(Shape),
    DTYPES.map(DataType),
    st.builds(DataType.from_triple, st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535)),
)

SPECS: st.SearchStrategy = st.recursive(
    st.one_of(
        st.builds(
            TensorSpec,
            TEXT,
            st.none() | st.lists(st.integers(0, 9) | st.just("2*n+1"), max_size=3).map(tuple),
            st.none() | st.just("float32"),
        ),
        st.builds(ShapeSpec, TEXT),
        st.builds(ScalarSpec, TEXT, st.just("int64")),
        st.builds(ObjectSpec, TEXT),
    ),
    lambda specs: st.builds(TupleSpec, TEXT, st.lists(specs, max_size=2).map(tuple)),
    max_leaves=4,
)


@st.composite
def executables(draw: st.DrawFn) -> VMExecutable:
    """Executables whose words are whole instructions in functions; what they mean may break every other rule."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    kinds = draw(
        st.lists(st.sampled_from([PACKED_FUNC, VM_FUNC, VMTIR_FUNC]), min_size=len(names), max_size=len(names))
    )
    constants = draw(st.lists(CONSTANTS, max_size=6))
    registers = st.one_of(st.integers(0, 6), st.sampled_from([VOID_REGISTER, VM_REGISTER]))
    argument = st.one_of(
        registers.map(lambda r: pack_arg(ArgKind.ARG_REGISTER, r)),
        st.integers(-(2**55), 2**55 - 1).map(lambda i: pack_arg(ArgKind.ARG_IMMEDIATE, i)),
        st.integers(0, 6).map(lambda i: pack_arg(ArgKind.ARG_CONSTANT, i)),
        st.integers(0, len(names)).map(lambda i: pack_arg(ArgKind.ARG_FUNCTION, i)),
    )
    instruction = st.one_of(
        st.builds(
            lambda dst, f, args: [int(Opcode.OP_CALL), dst, f, len(args), *args],
            registers,
            st.integers(0, len(names)),
            st.lists(argument, max_size=4),
        ),
        registers.map(lambda r: [int(Opcode.OP_RET), r]),
        st.integers(-6, 6).map(lambda o: [int(Opcode.OP_GOTO), o]),
        st.builds(lambda r, o: [int(Opcode.OP_IF), r, o], registers, st.integers(-6, 6)),
    )
    functions, code = [], []
    for name, kind in zip(names, kinds, strict=True):
        if kind == PACKED_FUNC:
            functions.append(FunctionInfo(kind, name))
            continue
        n_args = draw(st.integers(0, 3))
        params = draw(st.one_of(st.just([]), st.lists(TEXT, min_size=n_args, max_size=n_args)))
        info = FunctionInfo(kind, name, 0, 0, n_args, draw(st.integers(0, 9)), params)
        if kind == VM_FUNC:
            info.start_instr = len(code)
            code += draw(st.lists(instruction, max_size=5))
            info.end_instr = len(code)
        functions.append(info)
    functions = draw(st.permutations(functions))
    sizes = [len(words) for words in code]
    return VMExecutable(
        functions,
        constants,
        np.cumsum([0, *sizes[:-1]], dtype=np.int64) if sizes else [],
        np.array([word for words in code for word in words], dtype=np.int64),
        draw(st.dictionaries(st.integers(0, 9), TEXT, max_size=2)),
        DebugInfo(draw(st.lists(st.none() | TEXT, min_size=len(code), max_size=len(code)))),
        draw(
            st.dictionaries(
                NAMES, st.builds(Signature, st.lists(SPECS, max_size=2), st.lists(SPECS, max_size=2)), max_size=1
            )
        ),
        draw(st.dictionaries(TEXT, TEXT, max_size=2)),
        DebugInfo(draw(st.lists(st.none() | TEXT, min_size=len(code), max_size=len(code)))),
    )


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` corrupted copies: flipped bits, extreme integers, removed, repeated and swapped pieces, truncation."""
    rng = random.Random(seed)
    extremes = [0, 1, 2, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**40, 2**54, 2**63 - 1, 2**63, 2**64 - 1]
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(len(mutant)) if mutant else 0
            choice = rng.randrange(6)
            if choice == 0 and mutant:
                mutant[at] ^= 1 << rng.randrange(8)
            elif choice == 1:
                at &= ~3
                width = rng.choice((4, 8))
                mutant[at : at + width] = (rng.choice(extremes) % (1 << 8 * width)).to_bytes(width, "little")
            elif choice == 2:
                del mutant[at : at + rng.randrange(1, 16)]
            elif choice == 3:
                mutant[at:at] = mutant[at : at + rng.randrange(1, 64)]
            elif choice == 4:
                other = rng.randrange(len(mutant)) if mutant else 0
                mutant[at : at + 8], mutant[other : other + 8] = mutant[other : other + 8], mutant[at : at + 8]
            else:
                del mutant[at:]
        yield bytes(mutant)
