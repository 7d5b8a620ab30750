"""Native kernels. Each module in MODULES exports `kernel_table`, its array of KernelEntry, through its .pxd."""

MODULES = (
    "elementwise",
    "binary",
    "cast",
    "reduce",
    "norm",
    "movement",
    "indexing",
    "resize",
    "matmul",
    "conv",
    "pool",
)
