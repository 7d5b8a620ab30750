"""Assembler text: written by hand in tests, printed by `pyvm dis`. `assemble(disassemble(e)) == e` for every executable
made of integers, strings and constants, whether or not the verifier accepts it.

    ; a comment
    func @main(%0 x, %1 flag) regs=3
      if    %1, negative
      call  @kernel.relu (%0, 1, 0.5, "text", shape(2, 3), dtype(float32), @main, %void, %vm) -> %2  ! "relu (Relu-14)"
      goto  done
    negative:
      call  @kernel.neg (%0, c[0]) -> %2
    done:
      ret   %2

    c[0] = tensor float32 (2, 2) [1, 2, 3, 4]

Statements
    func @NAME(%0 NAME, ...) regs=N     a bytecode function; the instructions and `label:` lines after it are its body.
                                        Parameter names and regs= (else: the registers mentioned) may be left out.
                                        `args=N params=["a"]` instead of the list can also say what is wrong.
    native @NAME(%0, ...) regs=N        a compiled function
    call @F (args) -> %dst              without `->` the result is dropped
    ret %r  ·  goto T  ·  if %r, T      T is a label or an offset in instructions with its sign (+2)
    raw W, W, ...                       the words of one instruction
    ... ! "text"                        after an instruction: the operator it came from
    ... ? "text"                        after that: why it is this instruction
    c[N] = LITERAL                      a constant: tensor, shape(...), dtype(...), string, integer or float
    table @A, @B, ...                   puts functions into the table in this order; other names follow in order of
                                        first mention
    scope c[N] = "text"  ·  signature @F {json}  ·  meta "key" = "value"

Statements for what compilers never write and the verifier refuses; the disassembler falls back on them
    entry @NAME kind=K args=N start=A end=B regs=N params=["a"]
                                        a row of the function table as it is; what is left out is as in a packed one
    code                                the instructions after it belong to those rows that say so
    words W, W, ...                     words after the last instruction, without an offset
    offsets N, N, ...                   the instruction offsets, in place of those that follow from the instructions
    debug ["text", none, ...]  ·  notes [...]
                                        what `!` and `?` say, however many
    c[N] = any VALUE                    a value that is no constant: none, true, false, an integer, [VALUE, ...]

Arguments of a call: registers, integers (immediates; constants when they need more than 56 bits), c[N], @F or f[N],
word(W) for a raw word, and literals, which become constants, equal ones the same, numbered in order of first mention
among the numbers that no `c[N] =` takes. Tensor data is a list of numbers (of a type
that numpy lacks: its bits) or base64. Names other than letters, digits and _.$:/- are written in double quotes:
@"two words".
"""

from .listings import python_text, tvm_text
from .reader import assemble
from .words import instruction_text, instructions
from .writer import disassemble

__all__ = ["assemble", "disassemble", "instruction_text", "instructions", "python_text", "tvm_text"]
