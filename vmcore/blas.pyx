# HOT: gemm_rm is noexcept nogil.
"""BLAS: found in the process or in numpy's and scipy's wheels, bound once, called through one row-major door.

Candidates, in this order: the library bundled with numpy if numpy is imported (already mapped), that of scipy, that of
numpy, the functions that `scipy.linalg.cython_blas` exports, our own matrix product (`vmcore.kernels.gemm`), which is
always there. Neither scipy nor numpy is imported to find their libraries.

Where AVX2 or AVX-512 tiles exist, products of two matrices run on our own: they are 5 to 60 % faster than OpenBLAS's on
the sizes that models have (one thread, Zen 4, 2026-11), and independent of its version. BLAS does matrix-vector
products, and everything if PYVM_BLAS names it or there are no such tiles.
"""
import importlib
import importlib.machinery
import os
import sys

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport int64_t

from vmcore import threads as threads_module
from vmcore.kernels.gemm cimport gemm_isa, own_gemm

cdef extern from "vmcore/blas_provider.h" nogil:
    enum:
        BLAS_LP64, BLAS_ILP64, BLAS_FORTRAN
    ctypedef struct BlasTable:
        void (*sgemm)(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
                      const float* b, int64_t ldb, float beta, float* c, int64_t ldc) noexcept nogil
        void (*dgemm)(int ta, int tb, int64_t m, int64_t n, int64_t k, double alpha, const double* a, int64_t lda,
                      const double* b, int64_t ldb, double beta, double* c, int64_t ldc) noexcept nogil
        void (*sgemv)(int ta, int64_t m, int64_t n, float alpha, const float* a, int64_t lda, const float* x,
                      float beta, float* y) noexcept nogil
        void (*dgemv)(int ta, int64_t m, int64_t n, double alpha, const double* a, int64_t lda, const double* x,
                      double beta, double* y) noexcept nogil
        int64_t max_size
    void blas_store(int kind, void* sgemm, void* dgemm, void* sgemv, void* dgemv)
    void blas_publish(int kind)
    const BlasTable* blas_table()
    void* blas_open(const char* path)
    void* blas_open_loaded(const char* path)
    void* blas_symbol(void* handle, const char* name)
    void blas_call_set_threads(void* fn, int kind, int n)
    int blas_call_get_threads(void* fn)
    const char* blas_call_config(void* fn)
    void blas_enter()
    void blas_leave()
    void blas_close()
    void blas_reopen()
    void blas_guard()

cdef str _provider = None  # name of what is bound
cdef str _details = ""
cdef void* _set_threads = NULL  # the library's thread setting, if it has one
cdef void* _get_threads = NULL
cdef int _kind = -1
cdef bint _tiles_first = False  # products of two matrices run on our own tiles
cdef bint _listening = False  # the thread setting knows _apply_threads
cdef int _thread_limit = 0  # only ever lower a library that others use too; 0: it is ours alone

# INVARIANT: dlopen-ed libraries are never closed: BLAS threads may still run their code.


def _libs_folders(str package) -> list[str]:
    """Folders where a wheel of `package` keeps its bundled libraries; the package is not imported."""
    module = sys.modules.get(package)
    origin = getattr(module, "__file__", None)
    if origin is None:
        spec = importlib.machinery.PathFinder.find_spec(package)
        origin = spec.origin if spec is not None else None
    if origin is None:
        return []
    folder = os.path.dirname(origin)
    return [os.path.join(os.path.dirname(folder), f"{package}.libs"), os.path.join(folder, ".dylibs")]


cdef bint _bind_library(str path, bint must_be_loaded) except -1:
    """Bind the OpenBLAS at `path`: its symbols have a prefix and, with 64-bit integers, a suffix."""
    global _set_threads, _get_threads, _kind, _thread_limit, _details
    cdef bytes raw = os.fsencode(path)
    cdef void* handle = blas_open_loaded(raw)
    cdef bint was_loaded = handle != NULL
    cdef void* found[4]
    cdef void* config
    cdef int i
    if must_be_loaded and not was_loaded:
        return False
    if not was_loaded:
        # The library starts its threads while it is loaded; with one, it starts none until we ask for more.
        before = os.environ.get("OPENBLAS_NUM_THREADS")
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        try:
            handle = blas_open(raw)
        finally:
            if before is None:
                del os.environ["OPENBLAS_NUM_THREADS"]
            else:
                os.environ["OPENBLAS_NUM_THREADS"] = before
    if handle == NULL:
        return False
    for prefix in ("scipy_", ""):
        for suffix, kind in (("64_", BLAS_ILP64), ("", BLAS_LP64)):
            for i, name in enumerate(("sgemm", "dgemm", "sgemv", "dgemv")):
                found[i] = blas_symbol(handle, f"{prefix}cblas_{name}{suffix}".encode())
            if found[0] == NULL or found[1] == NULL or found[2] == NULL or found[3] == NULL:
                continue
            blas_store(kind, found[0], found[1], found[2], found[3])
            _kind = kind
            _set_threads = blas_symbol(handle, f"{prefix}openblas_set_num_threads{suffix}".encode())
            _get_threads = blas_symbol(handle, f"{prefix}openblas_get_num_threads{suffix}".encode())
            _thread_limit = blas_call_get_threads(_get_threads) if was_loaded and _get_threads != NULL else 0
            config = blas_symbol(handle, f"{prefix}openblas_get_config{suffix}".encode())
            _details = path
            if config != NULL:
                _details = f"{(<bytes>blas_call_config(config)).decode(errors='replace').strip()} ({path})"
            return True
    return False


cdef bint _bind_bundled(str package, bint must_be_loaded) except -1:
    """Bind the OpenBLAS that a wheel of `package` brought along."""
    for folder in _libs_folders(package):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if "openblas" in name and (".so" in name or name.endswith(".dylib")):
                if _bind_library(os.path.join(folder, name), must_be_loaded):
                    return True
    return False


cdef bint _bind_cython_blas() except -1:
    """Bind the functions that scipy exports to Cython; imports scipy.linalg."""
    global _set_threads, _get_threads, _kind, _thread_limit, _details
    cdef void* found[4]
    cdef int i
    try:
        exported = importlib.import_module("scipy.linalg.cython_blas").__pyx_capi__
        for i, name in enumerate(("sgemm", "dgemm", "sgemv", "dgemv")):
            capsule = exported[name]
            found[i] = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))
    except (ImportError, AttributeError, KeyError):
        return False
    blas_store(BLAS_FORTRAN, found[0], found[1], found[2], found[3])
    _kind = BLAS_FORTRAN
    _set_threads = _get_threads = NULL
    _thread_limit = 0
    _details = "scipy.linalg.cython_blas"
    return True


cdef bint _bind_own() except -1:
    global _set_threads, _get_threads, _kind, _thread_limit, _details
    _kind = -1
    _set_threads = _get_threads = NULL
    _thread_limit = 0
    _details = "vmcore.kernels.gemm"
    return True


cdef bint _bind(str name) except -1:
    """Try one candidate; on success it is in use."""
    global _provider
    cdef bint ok
    if name == "numpy-loaded":
        ok = "numpy" in sys.modules and _bind_bundled("numpy", True)
    elif name == "numpy" or name == "scipy":
        ok = _bind_bundled(name, False)
    elif name == "cython_blas":
        ok = _bind_cython_blas()
    elif name == "own":
        ok = _bind_own()
    else:
        raise ValueError(f"blas: no provider named {name!r}")
    if ok:
        blas_guard()
        blas_publish(_kind)
        _provider = "numpy" if name == "numpy-loaded" else name
        _apply_threads(threads_module.get_num_threads())
    return ok


def _apply_threads(int n) -> None:
    """Give the bound library our thread count, as far as it is ours to set."""
    if _set_threads != NULL:
        if _thread_limit:
            n = min(n, _thread_limit)
        if _get_threads != NULL and blas_call_get_threads(_get_threads) == n:
            return  # setting it would wake the library's threads, which then spin for some 50 ms
        blas_close()
        blas_call_set_threads(_set_threads, _kind, n)
        blas_reopen()


cdef str _bind_first():
    """Bind the first candidate that works."""
    global _tiles_first
    for name in ("numpy-loaded", "scipy", "numpy", "cython_blas", "own"):
        if _bind(name):
            break
    _tiles_first = gemm_isa() > 0
    return _provider


cpdef str ensure_bound():
    """Bind a BLAS unless one is bound; its name. Call it before kernels run (it needs the GIL; a repeat costs nothing).

    PYVM_BLAS names one candidate to use for everything: numpy, scipy, cython_blas or own. One that is not available
    is passed over.
    """
    global _listening
    if _provider is not None:
        return _provider
    wanted = os.environ.get("PYVM_BLAS")
    if wanted not in ("numpy", "scipy", "cython_blas", "own") or not _bind(wanted):
        _bind_first()
    if not _listening:
        _listening = True
        threads_module._add_listener(_apply_threads)
    return _provider


def provider() -> str:
    """Name of the BLAS in use: "numpy", "scipy" (the libraries bundled with them), "cython_blas" or "own"."""
    return ensure_bound()


def details() -> str:
    """Version and path of the BLAS in use, for bug reports."""
    ensure_bound()
    return _details


def _use(str name) -> bool:
    """Test door: one provider for everything, or "auto"; False if it is not available. No kernel may be running."""
    global _tiles_first
    ensure_bound()
    if name == "auto":
        _bind_first()
        return True
    if not _bind(name):
        return False
    _tiles_first = False
    return True


cdef void _on_library(const BlasTable* table, bint is_double, bint ta, bint tb, int64_t m, int64_t n, int64_t k,
                      double alpha, const void* a, int64_t lda, const void* b, int64_t ldb, double beta, void* c,
                      int64_t ldc) noexcept nogil:
    if m == 1 and (not ta or lda == 1):  # y = op(B)' x
        if is_double:
            if tb:
                table.dgemv(0, n, k, alpha, <const double*>b, ldb, <const double*>a, beta, <double*>c)
            else:
                table.dgemv(1, k, n, alpha, <const double*>b, ldb, <const double*>a, beta, <double*>c)
        elif tb:
            table.sgemv(0, n, k, <float>alpha, <const float*>b, ldb, <const float*>a, <float>beta, <float*>c)
        else:
            table.sgemv(1, k, n, <float>alpha, <const float*>b, ldb, <const float*>a, <float>beta, <float*>c)
    elif n == 1 and ldc == 1 and (tb or ldb == 1):  # y = op(A) x
        if is_double:
            if ta:
                table.dgemv(1, k, m, alpha, <const double*>a, lda, <const double*>b, beta, <double*>c)
            else:
                table.dgemv(0, m, k, alpha, <const double*>a, lda, <const double*>b, beta, <double*>c)
        elif ta:
            table.sgemv(1, k, m, <float>alpha, <const float*>a, lda, <const float*>b, <float>beta, <float*>c)
        else:
            table.sgemv(0, m, k, <float>alpha, <const float*>a, lda, <const float*>b, <float>beta, <float*>c)
    elif is_double:
        table.dgemm(ta, tb, m, n, k, alpha, <const double*>a, lda, <const double*>b, ldb, beta, <double*>c, ldc)
    else:
        table.sgemm(ta, tb, m, n, k, <float>alpha, <const float*>a, lda, <const float*>b, ldb, <float>beta, <float*>c,
                    ldc)


cdef bint _on_tiles(bint ta, bint tb, int64_t m, int64_t n, int64_t lda, int64_t ldb, int64_t ldc) noexcept nogil:
    """Whether a product runs on our own tiles: all but a matrix times a vector, where the processor has them."""
    return _tiles_first and not (m == 1 and (not ta or lda == 1)) and not (n == 1 and ldc == 1 and (tb or ldb == 1))


def runs_on_tiles(int64_t m, int64_t n, int64_t k) -> bool:
    """Whether the product of an m x k and a k x n matrix, both in rows, runs on our own tiles rather than in BLAS."""
    return _on_tiles(False, False, m, n, k, n, n)


cdef int gemm_rm(bint is_double, bint ta, bint tb, int64_t m, int64_t n, int64_t k, double alpha, const void* a,
                 int64_t lda, const void* b, int64_t ldb, double beta, void* c, int64_t ldc) noexcept nogil:
    cdef const BlasTable* table = blas_table()
    cdef int64_t largest = max(max(m, n), max(max(k, lda), max(ldb, ldc)))
    if m == 0 or n == 0:
        return 0
    if table == NULL or k == 0 or largest > table.max_size:
        return own_gemm(is_double, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, NULL)
    if _on_tiles(ta, tb, m, n, lda, ldb, ldc):
        return own_gemm(is_double, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, NULL)
    blas_enter()
    _on_library(table, is_double, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
    blas_leave()
    return 0
