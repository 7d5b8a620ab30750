/* SHUFFLE(low, high, mask type, lanes...): lanes of two vectors as one; and which lanes are the even and the odd ones of
 * both. For files that per_isa.h compiles once per instruction set (so: no include guard, and each time anew). */
#undef EVEN_F
#undef EVEN_D
#undef ODD_F
#undef ODD_D
#undef SHUFFLE
#if VM_VEC == 64
#define EVEN_F 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define EVEN_D 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_F 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define ODD_D 1, 3, 5, 7, 9, 11, 13, 15
#elif VM_VEC == 32
#define EVEN_F 0, 2, 4, 6, 8, 10, 12, 14
#define EVEN_D 0, 2, 4, 6
#define ODD_F 1, 3, 5, 7, 9, 11, 13, 15
#define ODD_D 1, 3, 5, 7
#else
#define EVEN_F 0, 2, 4, 6
#define EVEN_D 0, 2
#define ODD_F 1, 3, 5, 7
#define ODD_D 1, 3
#endif
#if defined(__clang__)
#define SHUFFLE(low, high, M, ...) __builtin_shufflevector(low, high, __VA_ARGS__)
#else
#define SHUFFLE(low, high, M, ...) __builtin_shuffle(low, high, (VMFN(M)){__VA_ARGS__})
#endif
