"""Every exception that vmcore and pyvm raise on purpose. `pyvm.errors` re-exports them.

A message states the operation, both facts and the difference; positions (function, pc, instruction, ONNX node) are
fields of the exception and are added to what is printed with `add_note`.
"""


class VMError(Exception):
    """Base of all pyvm errors."""


class CompileError(VMError):
    """A model could not be turned into an executable."""


class FrontendError(CompileError):
    """A model file is malformed or uses something in a way the frontend cannot express."""


class UnsupportedOpError(FrontendError):
    """The model uses operators that have no converter; the message lists all of them with their nodes."""


class WellFormedError(CompileError):
    """An IR module breaks a rule of the IR (`pyvm.ir.rules`); names the rule, the binding and the pass."""


class ParseError(CompileError):
    """The text of a program is malformed; names line and column."""


class LoweringError(CompileError):
    """A well-formed program could not be lowered to bytecode."""


class ExecutableError(VMError):
    """A file or byte string is not an executable that can be run."""


class FormatError(ExecutableError):
    """Truncated, wrong magic, wrong checksum, or a field outside its range."""


class VersionError(ExecutableError):
    """The file was written by a version that this one does not read."""


class VerifyError(ExecutableError):
    """The bytecode breaks a rule of the verifier.

    Attributes
    ----------
    rule : str
        Name of the broken rule.
    function : str or None
        Function in which it is broken.
    pc : int or None
        Index of the instruction, counted from the start of the executable.
    """

    def __init__(self, message: str, *, rule: str = "", function: str | None = None, pc: int | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.function = function
        self.pc = pc


class LinkError(VMError):
    """A name in the function table has no implementation."""


class FunctionNotFoundError(LinkError, LookupError):
    """No function of this name exists in the executable or in the registry."""


class ExecutionError(VMError):
    """An error while a program runs."""


class ArgumentTypeError(ExecutionError, TypeError):
    """A value has the wrong kind for the function that received it."""


class ArgumentValueError(ExecutionError, ValueError):
    """A value has the right kind but cannot be used."""


class IntegerRangeError(ArgumentValueError, OverflowError):
    """An integer does not fit in 64 bits."""


class IndexRangeError(ExecutionError, IndexError):
    """An index lies outside the object that it indexes."""


class ShapeMismatchError(ExecutionError, ValueError, RuntimeError):
    """Shapes do not fit each other or a declared shape. (TVM raises ValueError or RuntimeError, by who notices.)"""


class DTypeMismatchError(ExecutionError, TypeError, ValueError):
    """Element types do not fit each other or a declared type. (TVM raises TypeError or ValueError, by who notices.)"""


class AllocationError(ExecutionError, MemoryError):
    """Memory for a storage or an object could not be had."""


class KernelError(ExecutionError, RuntimeError):
    """A kernel refused its arguments or failed."""


class RecursionLimitError(ExecutionError, RecursionError):
    """Calls are nested deeper than the limit."""


class DeadlineExceeded(ExecutionError, TimeoutError):
    """The call ran past its deadline."""


class InternalError(VMError, RuntimeError):
    """A program breaks a rule that compilers keep (TVM's InternalError), or a defect of pyvm itself."""
