DTYPES: tuple[str, ...]
VERSION: int
MAX_INPUTS: int
MAX_CONSTANTS: int
MAX_STEPS: int
MAX_REGISTERS: int
FIRST_REGISTER: int
FIRST_CONSTANT: int
RESULT: int

def opcodes() -> dict[str, tuple[int, str, int]]: ...
def supports(opcode: int, type: int, result: int = ...) -> bool: ...
def select_isa(level: int | None = None) -> int: ...
