"""Native kernels. Each module in KERNELS exports `kernel_table`, its array of KernelEntry, through its .pxd.

KERNELS names the kernels of each module, without "kernel.", so that a program loads the modules that it uses and no
others. A kernel that is not listed is found all the same, at the price of loading every module.
"""

KERNELS = {
    "elementwise": (
        "abs acos acosh asin asinh atan atanh bitwise_not ceil celu clip cos cosh elu erf exp floor gelu gelu_tanh "
        "hard_sigmoid hard_swish is_inf is_nan leaky_relu log logical_not mish neg reciprocal relu round rsqrt selu "
        "shrink sigmoid sign silu sin sinh softplus softsign sqrt square tan tanh thresholded_relu"
    ),
    "binary": (
        "add atan2 bitwise_and bitwise_or bitwise_xor div equal floor_div fmod greater greater_equal left_shift less "
        "less_equal logical_and logical_or logical_xor maximum minimum mod mul not_equal pow prelu right_shift sub "
        "where"
    ),
    "cast": "cast",
    "fused": "fused_elementwise",
    "reduce": (
        "argmax argmin cumsum reduce_all reduce_any reduce_l1 reduce_l2 reduce_log_sum reduce_log_sum_exp reduce_max "
        "reduce_mean reduce_min reduce_prod reduce_sum reduce_sum_square"
    ),
    "norm": "batch_norm group_norm hardmax instance_norm layer_norm log_softmax lp_norm lrn rms_norm softmax",
    "movement": (
        "arange broadcast_to concat copy depth_to_space eye fill pad reverse_sequence space_to_depth strided_slice "
        "tile transpose trilu"
    ),
    "indexing": "gather gather_elements gather_nd nonzero nonzero_count one_hot scatter_elements scatter_nd topk",
    "resize": "resize",
    "matmul": "gemm matmul matmul_integer matmul_packed",
    "conv": "conv conv_transpose",
    "winograd": "conv_winograd",
    "pool": "avg_pool global_avg_pool global_max_pool lp_pool max_pool max_pool_with_indices",
}
MODULES = tuple(KERNELS)
