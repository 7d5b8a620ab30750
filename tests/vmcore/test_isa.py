"""Words of instructions against the layout of the file format."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcore.isa import (
    IMMEDIATE_MAX,
    VM_REGISTER,
    VOID_REGISTER,
    Opcode,
    format_instruction,
    instruction_words,
    pack_arg,
    register_name,
    unpack_arg,
)


@given(st.integers(0, 3), st.integers(-(2**55), 2**55 - 1))
def test_argument_words(kind: int, value: int) -> None:
    """Little-endian: seven bytes of the value, one byte of the kind."""
    expected = struct.unpack("<q", struct.pack("<q", value)[:7] + bytes([kind]))[0]
    assert pack_arg(kind, value) == expected
    assert unpack_arg(expected) == (kind, value)


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_word_can_be_unpacked(word: int) -> None:
    kind, value = unpack_arg(word)
    assert kind == struct.pack("<q", word)[7]
    assert struct.pack("<q", value)[:7] == struct.pack("<q", word)[:7]


def test_argument_out_of_range() -> None:
    for kind, value in ((4, 0), (-1, 0), (0, 2**55), (1, -(2**55) - 1)):
        with pytest.raises(ValueError):
            pack_arg(kind, value)


def test_special_numbers() -> None:
    assert [register_name(r) for r in (0, VOID_REGISTER, VM_REGISTER)] == ["%0", "%void", "%vm"]
    assert (VOID_REGISTER, VM_REGISTER, IMMEDIATE_MAX) == (2**54, 2**54 + 1, 2**55 - 1)
    assert [int(op) for op in Opcode] == [1, 2, 3, 4]


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_instruction_words() -> None:
    assert [instruction_words(words(1, 0, 0, n, 5, 6), 0) for n in (0, 1, 2, 3, -1, 2**62)] == [4, 5, 6, 0, 0, 0]
    assert instruction_words(words(2, 0), 0) == instruction_words(words(3, 1), 0) == 2
    assert instruction_words(words(4, 0, 2), 0) == 3
    for data, offset in ((words(2), 0), (words(4, 0), 0), (words(0, 0, 0), 0), (words(2, 0), 2), (words(2, 0), -1)):
        assert instruction_words(data, offset) == 0


def test_text_of_malformed_operands() -> None:
    data = words(1, VOID_REGISTER, 7, 3, pack_arg(3, 9), 5 << 56, pack_arg(2, -1))
    assert format_instruction(data, 0, ["f"]) == "call f[7] (f[9], ?0x500000000000000, c[-1])"
    assert format_instruction(data, 3, ["f"]) == f"goto {pack_arg(3, 9):+d}"
    assert format_instruction(data, 99, ["f"]) == "malformed instruction at word 99"
