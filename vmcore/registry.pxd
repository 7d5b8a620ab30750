# The global function table: names to Function objects. Guarded by the GIL.
from vmcore.value cimport FunctionObj

cdef FunctionObj* registry_get(str name) except? NULL
"""The function called `name` with one more reference, or NULL when there is none (no exception)."""
