# The load-time verifier. `verify_code` is what a Program relies on: the loop checks nothing that is proved here.
from libc.stdint cimport int64_t

ctypedef struct FunctionRow:  # the numbers of one function table entry
    int64_t kind
    int64_t start_instr
    int64_t end_instr
    int64_t num_args
    int64_t register_file_size

ctypedef struct CodeFailure:
    int rule           # index into vmcore.verify._CODE_RULES
    int64_t function   # index of the function, -1 if none
    int64_t pc         # instruction, -1 if none
    int64_t found      # the two facts of the message
    int64_t expected

cdef int verify_code(
    const int64_t* instr_offset, int64_t n_instr, const int64_t* instr_data, int64_t n_words,
    const FunctionRow* functions, int64_t n_functions, int64_t n_constants, CodeFailure* failure,
) noexcept nogil
"""0 if the code keeps all rules; -1 and `failure` if not; -2 if memory ran out.

The rows must have passed the rules of the function table (`verify` does that first).
"""

cpdef int verify_parts(
    list functions, Py_ssize_t n_constants, object instr_offset, object instr_data
) except -1
"""Function table and code rules on the given parts; raises VerifyError. For a caller that took copies to run from."""
