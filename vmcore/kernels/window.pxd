# Windows over volumes (planes.h): what convolution and pooling have in common. No code of its own but the inline checks.
from libc.stdint cimport int64_t

cdef extern from "vmcore/kernels/planes.h" nogil:
    enum:
        PLANES_SLACK
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

    int64_t planes_layout(const Window* w, int64_t rows, Planes* p)
    void planes_taps(const Window* w, const Planes* p, int64_t* offsets)
    void planes_fill_f32(const Window* w, const Planes* p, const float* x, const float* x_end, int64_t n_channels,
                         int64_t od, int64_t oh, int64_t rows, float fill, float* buffer)
    void planes_fill_f64(const Window* w, const Planes* p, const double* x, const double* x_end, int64_t n_channels,
                         int64_t od, int64_t oh, int64_t rows, double fill, double* buffer)
