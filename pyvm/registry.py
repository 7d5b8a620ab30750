"""The global function registry: names that bytecode can call. The table itself lives in `vmcore.registry`."""

from vmcore.objects import Function
from vmcore.registry import get_global_func, list_global_func_names, register_func, remove_global_func

__all__ = ["Function", "get_global_func", "list_global_func_names", "register_func", "remove_global_func"]
