# The error slot. Native code stores one error per thread with `fail` and returns -1; `raise_status` turns it into a
# Python exception. Layer 0: imports nothing of ours but errors.

cdef int fail(int kind, const char* message) noexcept nogil
"""Stores an error in this thread's slot and returns -1, so that callers write `return fail(...)`."""

cdef int last_error_kind() noexcept nogil

cdef const char* last_error_text() noexcept nogil
"""The message of the stored error; valid until the next one in this thread."""

cdef struct SavedError:
    int kind
    char[1024] text

cdef void save_error(SavedError* saved) noexcept nogil
"""Keeps this thread's error before code runs that may store and take others: destructors of Python objects."""

cdef void restore_error(const SavedError* saved) noexcept nogil

cdef object take_error()
"""The stored error as an exception instance (not raised); clears the slot."""

cdef int raise_status() except -1
"""Raises the stored error; clears the slot."""
