"""Builds one model with TVM in both modes: MODE.so with the kernels, MODE.bin with the program. Usage: FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from tvm import relax
from tvm.script import ir as I  # noqa: N812 (TVM's script wants these names)
from tvm.script import relax as R  # noqa: N812


@I.ir_module
class Model:
    @R.function
    def main(x: R.Tensor(("n", 8), "float32"), w: R.Tensor((8, 4), "float32")) -> R.Tensor(("n", 4), "float32"):
        with R.dataflow():
            product = R.matmul(x, w)
            positive = R.nn.relu(product)
            sums = R.cumsum(positive, axis=1)
            R.output(sums)
        return sums

    @R.function
    def choose(x: R.Tensor((4,), "float32"), c: R.Tensor((), "bool")) -> R.Tensor((4,), "float32"):
        if c:
            y = R.add(x, x)
        else:
            y = R.exp(x)
        return y


for mode in ("bytecode", "compiled"):
    executable = relax.build(Model, "llvm", exec_mode=mode)
    executable.export_library(str(Path(sys.argv[1]) / f"{mode}.so"))
    executable.mod.write_to_file(str(Path(sys.argv[1]) / f"{mode}.bin"), "")
