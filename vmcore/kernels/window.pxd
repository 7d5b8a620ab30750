# Windows over volumes (planes.h): what convolution and pooling have in common. Layer 2.
from libc.stdint cimport int64_t

cdef extern from "vmcore/kernels/planes.h" nogil:
    enum:
        PLANES_SLACK
        POOL_KIND_MAX, POOL_KIND_SUM, POOL_KIND_L1, POOL_KIND_L2, POOL_KIND_LP
    int64_t PLANES_MAX_SIZE

    ctypedef struct Window:
        int64_t in_ "in"[3]
        int64_t out[3]
        int64_t kernel[3]
        int64_t stride[3]
        int64_t dilation[3]
        int64_t pad[3]

    ctypedef struct PlaneAxis:
        int64_t n_phases, shift

    ctypedef struct Planes:
        PlaneAxis axis[3]
        int64_t rows
        int64_t len[3]
        int64_t channel_step, taps

    ctypedef struct WindowLoops:
        int64_t lanes
        void (*fill)(const Window* w, const Planes* p, const void* x, const void* x_end, int64_t n_channels, int64_t od,
                     int64_t oh, int64_t rows, double fill, void* buffer) noexcept nogil
        void (*pack)(const Planes* p, const int64_t* taps, const void* planes, int64_t out_columns, int64_t q0,
                     int64_t n, int64_t k0, int64_t k1, int64_t width, void* panels) noexcept nogil
        void (*direct)(const Planes* p, const int64_t* taps, const void* planes, int64_t n_channels,
                       const void* weights, double bias, bint relu, int64_t rows, int64_t columns, void* out,
                       void* line) noexcept nogil
        void (*plain_3x3)(const void* plane, int64_t pitch, const void* weights, double bias, bint relu, int64_t rows,
                          int64_t columns, void* out) noexcept nogil

    void planes_shift_axes(Window* w, int64_t* pad_end)
    int64_t planes_layout(const Window* w, int64_t rows, Planes* p)
    int64_t planes_line_size(const Planes* p, int64_t rows)
    void planes_taps(const Window* w, const Planes* p, int64_t* offsets)

# The loops for float or double elements; the instruction set is that of the matrix product.
cdef const WindowLoops* window_loops(bint is_double) noexcept nogil
