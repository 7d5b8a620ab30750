"""The global function table: Python callables and native kernels under one kind of name.

A kernel module is loaded when the first of its kernels is looked up, so that a process pays for what it runs.
"""
import importlib

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer

from vmcore.builtins.table cimport builtin_table
from vmcore.memory cimport memory_keep
from vmcore.objects cimport Function, function_from_callable, function_from_native, named_function
from vmcore.value cimport DirectEntry, FunctionObj, KernelEntry, object_retain

from vmcore import kernels
from vmcore.status import arguments, errors

ctypedef const KernelEntry* (*TableFn)(int* n) noexcept
ctypedef const DirectEntry* (*DirectTableFn)() noexcept

cdef dict _functions = {}
cdef set _loaded = set()  # kernel modules
cdef dict _module_of = {name: module for module, names in kernels.KERNELS.items() for name in names.split()}


cdef int add_table(const KernelEntry* table, int n) except -1:
    cdef FunctionObj* f
    cdef int i
    for i in range(n):
        f = function_from_native(table[i].fn, NULL, table[i].ns_per_byte)
        if f == NULL:
            raise errors.AllocationError("registry: no memory for a function")
        memory_keep(f)
        name = table[i].name.decode()
        _functions.setdefault(name, named_function(&f.head, name))
    return 0


cdef int add_direct(const DirectEntry* table) except -1:
    """Gives kernels that are entered already their direct entries."""
    while table.name != NULL:
        (<FunctionObj*>(<Function>_functions[table.name.decode()]).obj).direct = table
        table += 1
    return 0


cdef int load_module(str module_name) except -1:
    """Enters the kernels of one module."""
    cdef int n = 0
    cdef const KernelEntry* table
    if module_name in _loaded:
        return 0
    exported = importlib.import_module(f"vmcore.kernels.{module_name}").__pyx_capi__
    capsule = exported["kernel_table"]
    table = (<TableFn>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)))(&n)
    add_table(table, n)
    capsule = exported.get("direct_table")
    if capsule is not None:
        add_direct((<DirectTableFn>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)))())
    _loaded.add(module_name)
    return 0


cdef int load_kernels() except -1:
    """Enters all kernels."""
    for module_name in kernels.MODULES:
        load_module(module_name)
    return 0


cdef Function find(str name):
    found = _functions.get(name)
    if found is None and name.startswith("kernel."):
        module_name = _module_of.get(name.removeprefix("kernel."))
        if module_name is not None:
            load_module(module_name)
            found = _functions.get(name)
        if found is None:
            load_kernels()
            found = _functions.get(name)
    return found


cdef FunctionObj* registry_get(str name) except? NULL:
    cdef Function found = find(name)
    if found is None:
        return NULL
    object_retain(found.obj)
    return <FunctionObj*>found.obj


def register_func(name, f=None, override=False):
    """Makes a Python callable available to programs under `name`; usable as a decorator.

    Parameters
    ----------
    name : str or callable
        The global name; a callable registers itself under its `__name__`.
    f : callable, optional
        Without it, returns a decorator.
    override : bool
        Whether a function that has this name already may be replaced. Virtual machines made before keep the old one.

    Returns
    -------
    callable
        `f`, or the decorator.

    Raises
    ------
    ArgumentValueError
        If the name is taken and `override` is false, or is empty.
    ArgumentTypeError
        If `name` is no str, `f` is not callable, or `override` is neither true nor false.
    """
    override = arguments.flag("register_func", "override", override)
    if callable(name) and f is None:
        given = getattr(name, "__name__", None)
        if not isinstance(given, str):
            raise errors.ArgumentTypeError(
                f"register_func: this {type(name).__name__} has no __name__; register_func(name, f) says one"
            )
        return register_func(given, name, override)
    name = str(arguments.text("register_func", "name", name))
    if f is None:
        return lambda function: register_func(name, _callable(name, function), override)
    if not name:
        raise errors.ArgumentValueError("register_func: the name is empty")
    _callable(name, f)
    if not override and find(name) is not None:
        raise errors.ArgumentValueError(f"register_func: {name!r} is registered already; override=True replaces it")
    if name.startswith("kernel."):
        find(name)  # so that its module, loaded later, does not meet a name that is taken
    if type(f) is Function:
        object_retain((<Function>f).obj)
        _functions[name] = named_function((<Function>f).obj, name)
    else:
        _functions[name] = named_function(&function_from_callable(f).head, name)
    return f


cdef object _callable(str name, object f):
    if not callable(f):
        raise errors.ArgumentTypeError(f"register_func: {name!r} must be callable, got {type(f).__name__}")
    return f


def get_global_func(name, allow_missing=False):
    """The function registered under `name`, callable from Python.

    Raises FunctionNotFoundError if there is none and `allow_missing` is false; with it, returns None. Raises
    ArgumentTypeError if the name is no str.
    """
    if type(name) is not str:
        name = str(arguments.text("get_global_func", "name", name))
    if allow_missing is not False:
        allow_missing = arguments.flag("get_global_func", "allow_missing", allow_missing)
    found = find(name)
    if found is None and not allow_missing:
        raise errors.FunctionNotFoundError(f"get_global_func: no function is registered as {name!r}")
    return found


def list_global_func_names():
    """All registered names, sorted: builtins, kernels and what `register_func` added."""
    load_kernels()
    return sorted(_functions)


def remove_global_func(name):
    """Forgets a name; virtual machines that use the function keep it. Raises FunctionNotFoundError if unknown."""
    name = str(arguments.text("remove_global_func", "name", name))
    if find(name) is None:
        raise errors.FunctionNotFoundError(f"remove_global_func: no function is registered as {name!r}")
    del _functions[name]


# ---- builtins that call functions by name ----------------------------------------------------------------------------

cdef dict _py_functions = {}


def register_py_func(name, f):
    """Makes a callable available to `vm.builtin.call_py_func` under `name`, replacing what has the name.

    These names are apart from those of `register_func`. Raises TypeError if the name is no str or `f` not callable.
    """
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(f"register_py_func: the name must be a string, got {type(name).__name__}")
    if not callable(f):
        raise errors.ArgumentTypeError(f"register_py_func: {name!r} must be callable, got {type(f).__name__}")
    _py_functions[name] = f


def get_py_func(name):
    """The function that `register_py_func` entered as `name`; raises InternalError if there is none."""
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(f"get_py_func: the name must be a string, got {type(name).__name__}")
    if name not in _py_functions:
        raise errors.InternalError(f"Python function {name!r} not found in registry")
    return _py_functions[name]


def clear_py_func_registry():
    """Forgets all functions of `register_py_func`."""
    _py_functions.clear()


def _call_py_func(*args):
    """vm.builtin.call_py_func((name, args)): the registered function on args, which arrive as one tuple."""
    if len(args) != 1:
        raise errors.InternalError(f"vm.builtin.call_py_func expects 1 argument, a tuple, got {len(args)}")
    if type(args[0]) is not tuple:
        raise errors.ArgumentTypeError(f"vm.builtin.call_py_func expects a tuple, got {type(args[0]).__name__}")
    if len(args[0]) != 2:
        raise errors.InternalError(f"vm.builtin.call_py_func: expected (name, args), got a tuple of {len(args[0])}")
    name, values = args[0]
    if type(values) is not tuple:
        raise errors.ArgumentTypeError(f"vm.builtin.call_py_func: args must be a tuple, got {type(values).__name__}")
    return get_py_func(name)(*values)


def _invoke_debug_func(*args):
    """vm.builtin.invoke_debug_func(None, name, line, args...): the global function on (line, args...); gives None."""
    if len(args) < 3:
        raise errors.InternalError(f"vm.builtin.invoke_debug_func expects at least 3 arguments, got {len(args)}")
    effect, name = args[:2]
    if type(effect) in (bool, int, float):
        raise errors.ArgumentTypeError(
            f"vm.builtin.invoke_debug_func: argument #0: expected None, got {type(effect).__name__}"
        )
    if effect is not None:
        raise errors.ArgumentValueError("vm.builtin.invoke_debug_func: argument #0: an effect is lowered to None")
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(
            f"vm.builtin.invoke_debug_func: argument #1: expected string, got {type(name).__name__}"
        )
    found = find(name)
    if found is None:
        raise errors.ArgumentValueError(f"vm.builtin.invoke_debug_func: cannot find global function {name!r}")
    found(*args[2:])


cdef int add_python(str name, object f, int arity=-1) except -1:
    """Registers a builtin written in Python; a wrong number of arguments is an error of the VM, as for others."""
    def checked(*args):
        if len(args) != arity:
            raise errors.ArgumentTypeError(f"{name}: expected {arity} arguments, got {len(args)}")
        return f(*args)
    _functions[name] = named_function(&function_from_callable(f if arity < 0 else checked).head, name)
    memory_keep((<Function>_functions[name]).obj)
    return 0


add_python("vm.builtin.register_py_func", register_py_func, 2)
add_python("vm.builtin.get_py_func", get_py_func, 1)
add_python("vm.builtin.clear_py_func_registry", clear_py_func_registry, 0)
add_python("vm.builtin.call_py_func", _call_py_func)
add_python("vm.builtin.invoke_debug_func", _invoke_debug_func)

cdef int _n_builtins = 0
cdef const KernelEntry* _builtins = builtin_table(&_n_builtins)
add_table(_builtins, _n_builtins)
