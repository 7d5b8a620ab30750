"""Python functions as programs: `@pyvm.function`.

::

    @pyvm.function
    def main(x: pyvm.Tensor["n", 4, "float32"], steps: int):
        for i in range(steps):          # a loop at run time: any number of steps, in one frame
            x = pyvm.op.relu(x) + 1
        if x.sum() > 10:                # a branch at run time
            return x
        return -x

    main(np.ones((2, 4), np.float32), 3)     # compiles on the first call, once for all sizes

The body is read, not run: what depends on a parameter becomes part of the program, everything else (globals, module
attributes, arithmetic of Python numbers) is computed while it is read.

Parameters
    `pyvm.Tensor[dims..., dtype]`, each dim a number, a symbol ("n"), an expression of symbols ("2*n+1") or None for any
    size; `pyvm.Tensor[..., dtype]` for any rank; `pyvm.Shape[dims...]`; `int`, `float`, `bool`; `tuple[A, B]`;
    `collections.abc.Callable[[A], B]`; `object`; or struct info as text: "Tensor((n, 4), float32)". Equal symbols are
    equal sizes, and `n: int` is the size "n". A function that calls itself states its result (`-> ...`). Linters read
    "n" as a name that is missing: `N = pyvm.ir.SymVar("n")` and `pyvm.Tensor[N, 4, np.float32]` say the same.
Values
    Tensors, with the operators of numpy (`+ - * / // % ** @ & | ^ ~`, comparisons), indexing and slicing, `.shape`,
    `.T`, and methods (`.sum(axis=0)`, `.reshape(2, -1)`, `.astype("float32")`); tensors that meet have one dtype, and a
    Python number takes the dtype of the tensor it meets. Integers (sizes, `int` parameters, `int(tensor)`) are symbolic
    and may be sizes. A `float` at run time is a tensor without axes. Tuples and lists are taken apart while the body is
    read. Numpy arrays from outside become constants.
Statements
    `if`, `while`, `for i in range(...)`, `break`, `continue`, `return` anywhere, `and`, `or`, `not`, conditional
    expressions. A `for` over a tuple or list (also `zip`, `enumerate`, comprehensions) is unrolled; one over `range` is
    a loop at run time, and `for i in list(range(3))` is unrolled. `y: pyvm.Tensor["k", "float32"] = ...` checks a value
    at run time and names its sizes.
Calls
    Of `pyvm.op`, of other `@pyvm.function`s (recursion too), of functions defined inside (closures, which may be passed
    and returned), of plain Python functions (inlined), and with `pyvm.call_packed` of registered functions.
"""

from .decorator import PythonFunction, call_dps_packed, call_packed, function

__all__ = ["PythonFunction", "call_dps_packed", "call_packed", "function"]
