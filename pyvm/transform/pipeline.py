"""The order of the passes, and why it is this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyvm.checked_calls import checked
from pyvm.ir import IRModule, check_well_formed
from vmcore.errors import CompileError

from .decompose import decompose
from .eliminate_common_subexpressions import eliminate_common_subexpressions
from .eliminate_dead_code import eliminate_dead_code
from .fold_batch_norm import fold_batch_norm
from .fold_constants import fold_constants
from .fold_scale_shift import fold_scale_shift
from .fuse_activation import fuse_activation
from .fuse_bias import fuse_bias
from .fuse_elementwise import fuse_elementwise
from .fuse_linear import fuse_linear
from .fuse_residual import fuse_residual
from .kill_after_last_use import kill_after_last_use
from .lambda_lift import lambda_lift
from .legalize import legalize
from .lower_shapes import lower_shapes
from .pack_weights import pack_weights
from .plan_memory import plan_memory
from .recognize_activations import recognize_activations
from .simplify import simplify

Pass = Callable[[IRModule], IRModule]

# Local functions become functions of the module: no pass below knows them.
PREPARE: tuple[Pass, ...] = (lambda_lift,)

# Operators in, operators out. Each may be left out, and any order is correct.
OPTIMIZE: tuple[Pass, ...] = (
    fold_constants,  # first: weights that a model computes (a transposed matrix) become weights
    eliminate_dead_code,  # uses are counted below: values that nobody reads must not count
    recognize_activations,  # before arithmetic disappears into weights
    simplify,  # after activations, whose shapes it might change; what is in between hides what is fused below
    eliminate_dead_code,  # what was simplified away, and what activations were made of, read their inputs too
    fuse_bias,  # a matrix product with a bias is a gemm, which the two below know
    fold_batch_norm,  # needs constant weights
    fold_scale_shift,  # after it: exporters put either after the other, this one more often last
    eliminate_dead_code,  # what was folded is still there, and reads the input too
    decompose,  # before the three below: what operators are made of can be folded, simplified and shared, too
    fold_constants,
    simplify,
    eliminate_common_subexpressions,
    eliminate_dead_code,
    fuse_linear,  # nothing below knows matmul and gemm
    eliminate_dead_code,  # uses are counted below
    fuse_residual,  # before activations, which come after the sum
    fuse_activation,  # after all that stood between convolution and activation
    eliminate_dead_code,  # uses are counted below
    pack_weights,  # what computes with weights as numbers is done
    fuse_elementwise,  # last of all: what it makes is opaque to the others, and values with one reader are counted
)

# Operators in, instructions out. The order is fixed: each pass needs the form that the one before it leaves.
LOWER: tuple[Pass, ...] = (
    legalize,  # operators -> calls, each result allocated explicitly
    eliminate_dead_code,  # tuples whose fields are now read directly
    plan_memory,  # before symbols go: it compares symbolic sizes
    lower_shapes,  # after it, so that the sizes of storages are computed as well
    kill_after_last_use,  # last: no use is added any more
)

DEFAULT_PIPELINE: tuple[Pass, ...] = (*PREPARE, *OPTIMIZE, *LOWER)


@checked
def run_passes(
    module: IRModule,
    passes: Iterable[Pass] = DEFAULT_PIPELINE,
    after_each: Callable[[int, str, IRModule], None] | None = None,
    check: bool = False,
) -> IRModule:
    """Runs passes in order.

    Parameters
    ----------
    module : IRModule
        Not modified.
    passes : iterable of callables, IRModule -> IRModule
    after_each : callable, optional
        Gets the number of the pass, its name and what it made.
    check : bool
        Check well-formedness of the input and after each pass.

    Raises
    ------
    WellFormedError
        With `check`: names the pass that broke a rule.
    """
    if check:
        check_well_formed(module)
    for number, transform in enumerate(passes):
        name = getattr(transform, "__name__", type(transform).__name__)
        if not callable(transform):
            raise CompileError(f"run_passes: pass {number} must be a callable, got {type(transform).__name__}")
        module = transform(module)
        if not isinstance(module, IRModule):
            raise CompileError(f"run_passes: pass {name} must return an IRModule, it returned {type(module).__name__}")
        if check:
            check_well_formed(module, after=name)
        if after_each is not None:
            after_each(number, name, module)
    return module
