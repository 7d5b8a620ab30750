"""Passes: one function per file, IRModule in, IRModule out. `pipeline` names their order.

A new pass is one file, whose first docstring line says what holds afterwards, for example `cancel_negations.py`::

    from pyvm.ir import Binding, IRModule
    from pyvm.transform.producers import FusingRewriter, is_call_of


    def cancel_negations(module: IRModule) -> IRModule:
        '''No negation of a negation is left, if nothing else reads the inner one.'''
        return _CancelNegations(module).run()


    class _CancelNegations(FusingRewriter):
        def visit(self, binding: Binding) -> None:
            binding = self.remap(binding)
            if is_call_of(binding.value, "neg"):
                inner = self.sole_producer(binding.value.args[0], "neg")
                if inner is not None:
                    self.replace(binding.var, inner.args[0])
                    return
            self.keep(binding)

and one line: its place in `pipeline.OPTIMIZE`. To try it without that: `pyvm.compile(model, passes=[cancel_negations,
*DEFAULT_PIPELINE], check=True, dump="folder")`. What it leaves unused, `eliminate_dead_code` removes. Its golden file
shows what it does (`tests/golden/__init__.py`); a test fails while it is missing.
"""

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
from .pipeline import DEFAULT_PIPELINE, LOWER, OPTIMIZE, Pass, run_passes
from .plan_memory import plan_memory
from .recognize_activations import recognize_activations
from .simplify import simplify

__all__ = [
    "DEFAULT_PIPELINE",
    "LOWER",
    "OPTIMIZE",
    "Pass",
    "decompose",
    "eliminate_common_subexpressions",
    "eliminate_dead_code",
    "fold_batch_norm",
    "fold_constants",
    "fold_scale_shift",
    "fuse_activation",
    "fuse_bias",
    "fuse_elementwise",
    "fuse_linear",
    "fuse_residual",
    "kill_after_last_use",
    "lambda_lift",
    "legalize",
    "lower_shapes",
    "pack_weights",
    "plan_memory",
    "recognize_activations",
    "run_passes",
    "simplify",
]
