"""The builtins that bytecode calls: allocation, shapes, tuples, closures, checks.

Names, arguments, semantics and kinds of error follow TVM's Relax VM (`vm.builtin.*`); `pyvm.builtin.*` are ours. Every
builtin checks its arguments: bytecode may come from a hostile file. A new one is a function in the module that it fits,
a line in that module's .pxd and one in `table.pyx`.
"""
