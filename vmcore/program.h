/* Decoded programs: what `decode` (program.pyx) builds once per virtual machine and the loop (loop.pyx) runs.
 *
 * Registers and literals are addressed by byte offset. An argument operand is an int32: >= 0 is a register's offset from
 * the frame's base, < 0 a literal's offset from the first one, less LITERAL_BIAS. A Program is immutable once decoded and
 * shared by all threads; a Context belongs to one running invocation.
 */
#ifndef VMCORE_PROGRAM_H
#define VMCORE_PROGRAM_H

#include "vmcore/objects.h"

/* Internal opcodes. The file format has four opcodes; Calls of well-known builtins and the kinds of callee are told apart
 * here, once, instead of at every execution. `a`, `b`: register offsets; `n`: a small count; `p`: a site. */
enum {
  I_RET,           /* leave with operand a; clear the n registers listed at p, or the whole frame if there is no list */
  I_GOTO,          /* pc += b bytes */
  I_GOTO_BACK,     /* same, backwards: polls */
  I_IF,            /* if not R[a]: pc += b bytes */
  I_CALL,          /* native PackedFunc, operands copied to an argument array */
  I_CALL_KERNEL,   /* the same, and its time, estimated from the bytes of its tensors, is charged to the budget */
  I_CALL_LIBRARY,  /* the same, of a library's kernel */
  I_DIRECT_2,      /* kernel with a direct entry of two operands, the last one its output, in a register */
  I_DIRECT_3,
  I_CALL_SPECIAL,  /* native, with the VM itself or functions of this program among the arguments */
  I_CALL_PYTHON,
  I_CALL_VM,       /* push a frame; n: markers (the VM, functions of the program) are among the arguments */
  I_CALL_CLOSURE,  /* vm.builtin.invoke_closure */
  I_CALL_NATIVE,   /* a compiled function of a library */
  I_COPY,          /* R[a] := R[b] */
  I_LOAD,          /* R[a] := the literal with index b */
  I_NULL,          /* R[a] := none */
  I_TUPLE_GET,     /* R[a] := R[b][n] */
  I_ALLOC_STORAGE, /* R[a] := storage of b bytes (imm), kept in slot n - 1 of the context; n = 0: not kept */
  I_ALLOC_TENSOR,  /* AllocSite */
  I_CALL_HOOKED    /* any Call, when an instrument or a profiler listens */
};

typedef struct VmFunc VmFunc;

typedef struct Insn {
  uint16_t op, n;
  int32_t a;
  union {
    int64_t b;
    void *p;
  };
} Insn;

typedef struct CallSite {
  union {
    PackedFn fn;
    DirectFn2 direct2; /* I_DIRECT_2 */
    DirectFn3 direct3;
  };
  void *self;
  VmFunc *callee;
  int32_t weight; /* estimated run time in ns per KiB of tensor arguments; 0: negligible */
  int32_t n_args;
  int32_t dst; /* register offset, or -1: the result is dropped */
  int32_t func_index;
  int32_t args[];
} CallSite;

typedef struct AllocSite {
  TensorObj header; /* template: counts, shape, strides, dtype */
  int64_t offset;   /* bytes from the start of the storage */
  int64_t slot;     /* where a context keeps this site's header */
  int32_t storage;  /* register offset */
} AllocSite;

enum { FUNC_PACKED = 0, FUNC_VM = 1, FUNC_NATIVE = 2 };

/* In the function list of compiled functions: a function of the program (its index) that no closure was made for yet. */
#define FUNCTION_MARKER ((uint64_t)1 << 32 | VT_CLOSURE)

struct VmFunc {
  Insn *code;
  int32_t kind, index;
  int32_t n_params, n_regs;
  int64_t start, end;  /* its instructions in the executable, half open */
  FunctionObj *packed; /* owned; NULL unless FUNC_PACKED */
  PackedFn native;     /* the library's function; NULL unless FUNC_NATIVE */
};

/* Everything a program needs to run. An Object, because closures keep it alive without the GIL. */
typedef struct Program {
  Object head;
  VmFunc *funcs;
  Insn *code;
  Insn *hooked_code; /* the same instructions with every Call as I_CALL_HOOKED */
  Value *literals;
  char *sites;       /* arena of CallSites, AllocSites and clear lists */
  char *hooked_sites;
  void *allocator;
  PackedFn closure_call; /* safe_call of this program's closures */
  int32_t n_funcs, n_literals, n_constants, max_args;
  int64_t n_code;
  int64_t n_tensor_sites, n_storage_sites; /* slots of a context's TensorCache */
  void (*release)(struct Program *self);
  void (*reclaim)(struct Program *self); /* frees idle contexts; with the GIL */
  struct Context *idle; /* free list, guarded by the GIL */
  int64_t n_contexts;   /* idle and running, guarded by the GIL */
  void *instrument;     /* PyObject*, borrowed from the ProgramOwner, or NULL: called before and after every Call; guarded
                         * by the GIL */
  void *profiler;       /* likewise: called after every Call with its times */
} Program;

typedef struct Frame {
  Insn *pc; /* the Call to return to */
  Value *base;
  VmFunc *func;
} Frame;

#define REGISTER_STACK_BYTES ((size_t)1 << 26)
#define MAX_RECURSION 10000
#define BUDGET_NS 5000 /* estimated work between polls: releasing the GIL costs 24 ns, reading the clock as much */
#define N_ARRAY_HEADERS 8

typedef struct Context {
  Value *stack, *stack_end;
  Frame *frames, *frames_end;
  Frame *frame;         /* next free record; after an error, one past the innermost frame of the trace */
  Value *args;          /* argument array of the call in progress */
  Program *program;
  struct Context *next; /* free list */
  void *thread_state;   /* NULL while this invocation holds the GIL */
  int64_t budget_ns;    /* estimated work until the next poll */
  int32_t gil_mode;
  int32_t depth;        /* nested hooked calls */
  int32_t native_depth; /* nested compiled functions */
  int32_t made_functions; /* `functions` holds closures */
  Value *functions;     /* of compiled functions: this context, then one entry per function; NULL until needed */
  Value *top;           /* first free register above a running compiled function, NULL outside of one */
  int64_t code_shift;   /* added to VmFunc.code: 0, or where hooked_code lies */
  int64_t polled_ns;    /* when signals were last looked at */
  TensorCache tensors;
  TensorObj *array_headers[N_ARRAY_HEADERS]; /* for numpy arguments; only ours between invocations */
} Context;

enum { GIL_AUTO = 0, GIL_RELEASE = 1, GIL_HOLD = 2 };

static inline Value *reg_at(Value *base, int64_t offset) { return (Value *)((char *)base + offset); }
/* PERF: this form takes a conditional move and an addition; the biased base is computed once per run of the loop. */
#define LITERAL_BIAS ((int64_t)1 << 31)
#define MAX_LITERALS (LITERAL_BIAS / (int64_t)sizeof(Value))
static inline int32_t literal_operand(int32_t index) {
  return (int32_t)(index * (int64_t)sizeof(Value) - LITERAL_BIAS);
}
static inline int32_t literal_index(int32_t operand) {
  return (int32_t)((operand + LITERAL_BIAS) / (int64_t)sizeof(Value));
}
static inline const Value *operand_at(const Value *base, const Value *literals, int32_t operand) {
  uintptr_t from = operand >= 0 ? (uintptr_t)base : (uintptr_t)literals + LITERAL_BIAS;
  return (const Value *)(from + (uintptr_t)(int64_t)operand);
}

#endif
