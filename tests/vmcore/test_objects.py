"""Tensors and the two conversions between Python objects and Values, checked against numpy."""

from __future__ import annotations

import gc
import pickle
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyvm.asm import assemble
from pyvm.vm import VirtualMachine
from vmcore.library import Library
from vmcore.objects import Function, OpaqueObject, Tensor, tensor
from vmcore.types import BitsArray, DataType, Device, Shape, cpu

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
IDENTITY = VirtualMachine(assemble("func @main(%0) regs=1\n  ret %0\n"))["main"]


@given(hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))
def test_tensor_shares_bytes_and_describes_its_array(array):
    t = tensor(array)
    assert t.shape == array.shape and t.ndim == array.ndim and t.size == array.size and t.nbytes == array.nbytes
    assert t.dtype == array.dtype and t.device == cpu()
    view = t.numpy()
    assert view.dtype == array.dtype and np.array_equal(view, array, equal_nan=array.dtype.kind in "fc")
    assert array.size == 0 or np.shares_memory(view, array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::2],
        np.broadcast_to(np.float32(3), (2, 3)),
        np.arange(4, dtype=">i4"),
        np.frombuffer(b"\0" + np.arange(4.0).tobytes(), np.uint8)[1:].view("f8"),
    ],
)
def test_arrays_that_cannot_be_shared_are_copied_once(array):
    view = tensor(array).numpy()
    assert np.array_equal(view, array) and view.flags.c_contiguous and view.dtype.isnative
    assert not np.shares_memory(view, array)
    assert np.array_equal(IDENTITY(array).numpy(), array)


@pytest.mark.parametrize("bad", [np.array(["a"]), np.array([object()]), np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4")])
def test_element_types_without_a_tensor_type_are_refused_by_name(bad):
    with pytest.raises(TypeError, match="element type"):
        tensor(bad)
    with pytest.raises(TypeError, match="element type") as caught:
        IDENTITY(bad)
    assert any("argument 'arg0' of main" in note for note in caught.value.__notes__)


def test_bits_array_keeps_its_element_type():
    bits = BitsArray.wrap(np.array([0x3F80], np.uint16), DataType("bfloat16"))
    assert tensor(bits).dtype == "bfloat16"


def test_buffer_protocol_and_dlpack_share_bytes():
    t = tensor(np.arange(6, dtype=np.int16).reshape(2, 3))
    m = memoryview(t)
    assert (m.format, m.shape, m.strides, m.readonly) == ("h", (2, 3), (6, 2), False)
    m[1, 2] = -7
    assert t.numpy()[1, 2] == -7
    assert np.shares_memory(np.from_dlpack(t), t.numpy())
    assert np.shares_memory(tensor(np.from_dlpack(t)).numpy(), t.numpy())
    copied = np.from_dlpack(t, copy=True)
    assert np.array_equal(copied, t.numpy()) and not np.shares_memory(copied, t.numpy())
    assert t.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError):
        t.__dlpack__(stream=3)
    with pytest.raises(BufferError):
        t.__dlpack__(dl_device=(2, 0))


def test_read_only_stays_read_only():
    array = np.arange(3.0)
    array.flags.writeable = False
    t = tensor(array)
    assert not t.numpy().flags.writeable and not np.from_dlpack(t).flags.writeable
    assert memoryview(t).readonly
    with pytest.raises(BufferError):
        t.__dlpack__()  # before DLPack 1.0 nobody could see that it is read-only
    with pytest.raises(TypeError):
        memoryview(t)[0] = 1.0


def test_views_outlive_tensors_and_arrays():
    array = np.arange(1000.0)
    released = weakref.ref(array)
    t = tensor(array)
    view, capsule_view, buffer = t.numpy(), np.from_dlpack(t), memoryview(t)
    del t, array
    gc.collect()
    assert released() is not None and view.sum() == capsule_view.sum() == sum(buffer) == 499500
    del view, capsule_view, buffer
    gc.collect()
    assert released() is None


def test_scalars_of_a_tensor_and_text():
    assert float(tensor(2.5)) == 2.5 and int(tensor(7)) == 7 and bool(tensor(np.array(True)))
    assert repr(tensor(np.ones(2, np.float32))) == "Tensor((2), float32,\n[1., 1.])"
    assert len(tensor(np.zeros((3, 2)))) == 3
    with pytest.raises(TypeError):
        len(tensor(1.0))
    with pytest.raises(TypeError):
        Tensor()
    with pytest.raises(ValueError, match=r"cuda\(1\)"):
        tensor([1], device=Device(2, 1))


def test_pickle_copies_the_elements():
    t = tensor(np.arange(4, dtype=np.float32))
    again = pickle.loads(pickle.dumps(t))
    assert isinstance(again, Tensor) and np.array_equal(again.numpy(), t.numpy())


def values() -> st.SearchStrategy:
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(),
        st.builds(Shape, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)),
        st.sampled_from([DataType(name) for name in DTYPES] + [DataType("float32x4"), cpu()]),
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=20)


@given(values())
def test_values_come_back_as_they_went_in(value):
    result = IDENTITY(value)
    assert result == value and type(result) is type(value)


def test_lists_arrays_and_numpy_scalars():
    assert IDENTITY([1, [2, "x"]]) == (1, (2, "x"))
    result = IDENTITY((np.float32(1.5), np.arange(3)))
    assert result[0].dtype == "float32" and result[0].shape == () and result[1].numpy().tolist() == [0, 1, 2]


def test_python_objects_and_callables_keep_their_identity():
    class Anything:
        pass

    thing = Anything()
    assert IDENTITY(thing) is thing and IDENTITY(len) is len
    count = sys.getrefcount(thing)
    for _ in range(100):
        IDENTITY((thing, thing))
    assert sys.getrefcount(thing) == count


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_integers_that_do_not_fit(value):
    with pytest.raises(OverflowError):
        IDENTITY(value)
    with pytest.raises(OverflowError):
        IDENTITY((1, [value]))


def test_a_tensor_has_one_python_face_while_it_lives():
    t = tensor(np.arange(3))
    assert IDENTITY(t) is t


def test_an_array_that_is_returned_keeps_its_bytes():
    def make():
        return IDENTITY(np.arange(10000, dtype=np.float64))

    results = [make() for _ in range(50)]
    assert all(r.numpy().sum() == 49995000 for r in results)


def test_native_objects_without_a_face_pass_through():
    program = """
    func @make() regs=1
      call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8), "global") -> %0
      ret %0
    func @use(%0) regs=2
      call @vm.builtin.alloc_tensor (%0, 0, shape(16), dtype(float32)) -> %1
      ret %1
    """
    vm = VirtualMachine(assemble(program))
    storage = vm["make"]()
    assert isinstance(storage, OpaqueObject)
    assert vm["use"](storage).shape == (16,)


def test_the_vm_operand_cannot_leave():
    vm = VirtualMachine(assemble("func @main() regs=1\n  call @vm.builtin.copy (%vm) -> %0\n  ret %0\n"))
    with pytest.raises(TypeError, match="stored"):
        vm["main"]()


@pytest.mark.parametrize("make", [lambda t: t.__new__(t), lambda t: object.__new__(t), lambda t: t()])
@pytest.mark.parametrize("kind", [Tensor, OpaqueObject, Function, type(IDENTITY), Library])
def test_native_types_have_no_empty_instances(kind, make):
    with pytest.raises(TypeError):
        make(kind)


def test_names_of_data_types():
    names = ["bool", "int8", "uint64", "float32", "bfloat16", "complex64", "float32x4", "complex64x2", "handle64"]
    assert [str(DataType(name)) for name in names] == names
    wrong = ["", "x", "x4", "4", "float", "floatx4", "float32x", "float32x4x4", "xfloat32", "bool8", "bool8x2"]
    for name in [*wrong, "Float32", "float 32", "float32 ", "float\u0663\u0662", "float0", "float256", "int8x65536"]:
        with pytest.raises(ValueError, match="DataType"):
            DataType(name)


def test_a_producer_that_comes_back_for_ever() -> None:
    """The end of the recursion arrives as it is: as a TypeError, numpy would ask each producer twice."""
    n_asked = 0

    class Producer:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **_: object) -> object:
            nonlocal n_asked
            n_asked += 1
            if n_asked > 100_000:
                raise KeyboardInterrupt
            return tensor(self)

    with pytest.raises(RecursionError):
        tensor(Producer())
    assert n_asked < 10_000
