"""The books of a checked build (VMCORE_CHECKED=1), for tests: which memory vmcore holds, and failures on demand.

Not part of an ordinary build. See memory_checked.h.
"""
from libc.stdint cimport uint64_t

cdef extern from "vmcore/memory.h":
    """
    static Py_ssize_t checked_list(uint64_t after, PyObject *into) {
      /* Copied under the lock, turned into Python objects after it. */
      MemoryBooks *books = &vmcore_memory_books;
      struct { int32_t kind, kept; size_t nbytes; uint64_t serial; } *rows;
      size_t n = 0, room = 0;
      memory_lock();
      for (MemoryBlock *b = books->blocks; b; b = b->next) ++room;
      rows = malloc((room + 1) * sizeof *rows);
      for (MemoryBlock *b = books->blocks; b && rows; b = b->next) {
        if (b->serial <= after) continue;
        rows[n].kind = b->kind, rows[n].kept = b->kept, rows[n].nbytes = b->nbytes, rows[n].serial = b->serial;
        ++n;
      }
      memory_unlock();
      for (size_t i = 0; i < n; ++i) {
        PyObject *row = Py_BuildValue("(snKi)", memory_kind_name(rows[i].kind), (Py_ssize_t)rows[i].nbytes,
                                      (unsigned long long)rows[i].serial, (int)rows[i].kept);
        if (row == NULL || PyList_Append(into, row) != 0) { Py_XDECREF(row); free(rows); return -1; }
        Py_DECREF(row);
      }
      free(rows);
      return (Py_ssize_t)n;
    }
    """
    ctypedef struct MemoryBooks:
        uint64_t n_requests, n_refused, fail_at, serial
        int fail_all
    MemoryBooks vmcore_memory_books
    void memory_lock()
    void memory_unlock()
    Py_ssize_t checked_list(uint64_t after, object into) except -1


def serial():
    """Number of the last block that was made."""
    memory_lock()
    found = vmcore_memory_books.serial
    memory_unlock()
    return found


def blocks(after=0):
    """Blocks that are alive and were made after number `after`: (kind, bytes, number, kept for the process)."""
    cdef list found = []
    checked_list(after, found)
    return found


def fail_at(n, fail_all=False):
    """From now on, request number `n` (counted from 1) fails, and with `fail_all` every one after it; 0: none fails."""
    memory_lock()
    vmcore_memory_books.n_requests = vmcore_memory_books.n_refused = 0
    vmcore_memory_books.fail_all = fail_all
    vmcore_memory_books.fail_at = n
    memory_unlock()


def requests():
    """(requests, failures on demand) since `fail_at`."""
    return vmcore_memory_books.n_requests, vmcore_memory_books.n_refused
