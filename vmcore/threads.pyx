"""The one thread setting: kernels, convolutions and BLAS all follow `set_num_threads`."""
import os
import warnings

from libc.stdint cimport int64_t

cdef extern from "vmcore/threads_pool.h" nogil:
    enum:
        POOL_MAX_THREADS
    int pool_get_count()
    void pool_set_count(int n)
    void pool_parallel_for(int64_t n_tasks, TaskFn fn, void* ctx, bint brief)
    void pool_init()
    WorkAccount* work_account_now
    void (*scratch_trimmer)() noexcept nogil

cdef list _listeners = []  # callables told about a new count; vmcore.blas adds itself when it binds


cdef int thread_count() noexcept nogil:
    return pool_get_count()


cdef void parallel_for(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil:
    pool_parallel_for(n_tasks, fn, ctx, False)


cdef void parallel_for_brief(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil:
    pool_parallel_for(n_tasks, fn, ctx, True)


cdef WorkAccount* work_account() noexcept nogil:
    return work_account_now


cdef WorkAccount* set_work_account(WorkAccount* account) noexcept nogil:
    global work_account_now
    cdef WorkAccount* before = work_account_now
    work_account_now = account
    return before


cdef void trim_scratch() noexcept nogil:
    if scratch_trimmer != NULL:
        scratch_trimmer()


cdef void set_scratch_trimmer(void (*trimmer)() noexcept nogil) noexcept nogil:
    global scratch_trimmer
    scratch_trimmer = trimmer


def _read(path: str) -> str:
    """The text of a small file, empty if it cannot be read. Without file objects: this is part of every start."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _quota(quota: str, period: str) -> float:
    """CPUs that a quota in microseconds per period allows; infinity without one."""
    try:
        limit, length = float(quota), float(period)
    except ValueError:
        return float("inf")
    return limit / length if limit > 0 and length > 0 else float("inf")


def _ancestors(path: str) -> list[str]:
    """"/a/b" -> ["/a/b", "/a", ""]: a limit on any ancestor group holds for the group."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["".join(f"/{part}" for part in parts[:n]) for n in range(len(parts), -1, -1)]


def _cgroup_cpus(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> float:
    """CPUs that the control groups of this process allow (cpu.max, or the CFS quota of version 1)."""
    cpus = float("inf")
    for line in _read(membership).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        for group in _ancestors(path):
            if controllers == "":
                for mount in (root, f"{root}/unified"):
                    fields = _read(f"{mount}{group}/cpu.max").split()
                    if len(fields) == 2:
                        cpus = min(cpus, _quota(fields[0], fields[1]))
            elif "cpu" in controllers.split(","):
                for mount in {f"{root}/cpu", f"{root}/{controllers}"}:  # one or two names of it
                    quota = _read(f"{mount}{group}/cpu.cfs_quota_us")
                    if quota:
                        cpus = min(cpus, _quota(quota, _read(f"{mount}{group}/cpu.cfs_period_us")))
    return cpus


def default_num_threads() -> int:
    """The count used until `set_num_threads`: PYVM_NUM_THREADS, else what affinity and control groups allow."""
    text = os.environ.get("PYVM_NUM_THREADS")
    if text is not None:
        try:
            n = int(text)
        except ValueError:
            n = 0
        if n >= 1:
            return min(n, POOL_MAX_THREADS)
        warnings.warn(f"PYVM_NUM_THREADS is {text!r}, not a positive integer; ignored", RuntimeWarning, stacklevel=2)
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    return max(1, int(min(cpus, _cgroup_cpus(), POOL_MAX_THREADS)))


def get_num_threads() -> int:
    """Threads that one operator may use, the calling one included; never more than processors its thread may run on."""
    return pool_get_count()


def set_num_threads(n) -> None:
    """Let every operator use up to `n` threads, BLAS included.

    A BLAS library that numpy had loaded before is shared with numpy: its count is lowered with ours, and never raised
    above what numpy started with.

    Raises
    ------
    ArgumentTypeError
        If n is no int.
    ArgumentValueError
        If it is not between 1 and 256.
    """
    from vmcore.status import arguments  # here: this module is the first that is loaded

    if isinstance(n, bool):
        raise arguments.wrong_type("set_num_threads", "n", "an int", n)
    value = arguments.integer("set_num_threads", "n", n, 1, POOL_MAX_THREADS)
    pool_set_count(value)
    for listener in _listeners:
        listener(value)


def _add_listener(listener: object) -> None:
    """Call `listener(n)` after every change of the count."""
    _listeners.append(listener)


pool_init()
pool_set_count(default_num_threads())
