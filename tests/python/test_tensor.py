"""Tensor: exchange with other array libraries, without copies and with the right lifetimes."""

import array
import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import trivium

DTYPES = [
    "float32",
    "float16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "bool",
]


def address(a):
    return np.asarray(a).__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (5, 7), (2, 3, 4, 5)])
def test_numpy_round_trip_shares_memory_and_values(dtype, shape):
    a = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    t = trivium.Tensor(a)
    assert (t.shape, t.dtype, t.device, t.nbytes, t.size) == (shape, dtype, "cpu", a.nbytes, a.size)
    back = t.numpy()
    assert back.dtype == a.dtype
    np.testing.assert_array_equal(back, a)
    if a.size:
        assert address(back) == address(a)


def test_writes_are_visible_on_both_sides():
    a = np.zeros(4, np.float32)
    trivium.Tensor(a).numpy()[2] = 7
    assert a[2] == 7


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[::-1], np.s_[1:, ::3], np.s_[:, 2]])
def test_strided_arrays_are_shared_and_read_correctly(cut):
    a = np.arange(48, dtype=np.float32).reshape(6, 8)[cut]
    t = trivium.Tensor(a, copy=False)
    assert t.strides == tuple(s // 4 for s in a.strides)
    assert not t.is_contiguous
    np.testing.assert_array_equal(t.numpy(), a)
    np.testing.assert_array_equal(t.contiguous().numpy(), a)
    assert address(t.numpy()) == address(a)


def test_read_only_arrays_stay_read_only():
    a = np.arange(3.0)
    a.flags.writeable = False
    t = trivium.Tensor(a)
    assert t.read_only
    assert not t.numpy().flags.writeable
    assert not np.from_dlpack(t).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        t.__dlpack__()
    assert not trivium.Tensor(a, copy=True).read_only
    assert np.from_dlpack(t, copy=True).flags.writeable


def test_buffer_protocol_objects():
    assert trivium.Tensor(b"abc").numpy().tolist() == [97, 98, 99]
    assert trivium.Tensor(b"abc").read_only
    data = array.array("i", [1, -2, 3])
    t = trivium.Tensor(data)
    assert (t.dtype, t.numpy().tolist()) == ("int32", [1, -2, 3])
    t.numpy()[0] = 9
    assert data[0] == 9
    with pytest.raises(BufferError):  # a bytearray with a live view cannot grow
        bytes_ = bytearray(8)
        view = trivium.Tensor(bytes_)
        bytes_.append(1)
    assert view.shape == (8,)


def test_lists_and_numbers_are_copied():
    assert trivium.Tensor([[1, 2], [3, 4]]).numpy().tolist() == [[1, 2], [3, 4]]
    assert trivium.Tensor(2.5).shape == ()
    with pytest.raises(BufferError, match="copy=False"):
        trivium.Tensor([1, 2], copy=False)


def test_copy_argument_of_the_constructor():
    a = np.arange(6, dtype=np.float32)
    assert address(trivium.Tensor(a, copy=True).numpy()) != address(a)
    assert address(trivium.Tensor(a, copy=False).numpy()) == address(a)
    with pytest.raises(BufferError, match="copy=False"):
        trivium.Tensor(a, dtype="bfloat16", copy=False)


def test_the_tensor_keeps_its_source_alive_and_lets_it_go():
    class Owner(np.ndarray):
        pass

    a = np.arange(5, dtype=np.float32).view(Owner)
    alive = weakref.ref(a)
    t = trivium.Tensor(a)
    del a
    gc.collect()
    assert alive() is not None
    assert t.numpy()[4] == 4
    del t
    gc.collect()
    assert alive() is None


def test_exports_outlive_the_tensor():
    t = trivium.Tensor(np.arange(1000, dtype=np.float32), copy=True)
    view, imported = t.numpy(), np.from_dlpack(t)
    del t
    gc.collect()
    junk = [np.full(1000, -1, np.float32) for _ in range(50)]
    assert view[999] == 999 and imported[999] == 999
    assert len(junk) == 50


def test_an_unused_capsule_frees_its_tensor():
    class Owner(np.ndarray):
        pass

    a = np.zeros(3, np.float32).view(Owner)
    alive = weakref.ref(a)
    for max_version in (None, (1, 0)):
        capsule = trivium.Tensor(a).__dlpack__(max_version=max_version)
        assert "dltensor" in repr(capsule)
        del capsule
    del a
    gc.collect()
    assert alive() is None


def test_a_capsule_is_consumed_once():
    class Twice:
        def __init__(self, capsule):
            self.capsule = capsule

        def __dlpack__(self, **_):
            return self.capsule

        def __dlpack_device__(self):
            return (1, 0)

    source = Twice(trivium.Tensor(np.arange(3.0)).__dlpack__(max_version=(1, 0)))
    assert trivium.from_dlpack(source).shape == (3,)
    with pytest.raises(BufferError, match="unused"):
        trivium.from_dlpack(source, copy=False)


def test_producers_from_before_dlpack_1():
    class Old:
        def __dlpack__(self, stream=None):
            return np.arange(4, dtype=np.int32).__dlpack__()

        def __dlpack_device__(self):
            return (1, 0)

    assert trivium.from_dlpack(Old()).numpy().tolist() == [0, 1, 2, 3]


def test_dlpack_arguments():
    t = trivium.Tensor(np.arange(4, dtype=np.float32))
    assert t.__dlpack_device__() == (1, 0)
    assert '"dltensor"' in repr(t.__dlpack__(max_version=(0, 8)))
    assert '"dltensor_versioned"' in repr(t.__dlpack__(max_version=(1, 1)))
    assert '"dltensor_versioned"' in repr(
        t.__dlpack__(stream=None, max_version=(9, 0), dl_device=(1, 0), copy=False)
    )
    with pytest.raises(ValueError, match="stream"):
        t.__dlpack__(stream=1)
    with pytest.raises(BufferError, match=r"\(2, 0\)"):
        t.__dlpack__(dl_device=(2, 0))


def test_array_protocol():
    t = trivium.Tensor(np.arange(4, dtype=np.float32))
    assert address(np.asarray(t)) == address(t.numpy())
    assert address(np.array(t)) != address(t.numpy())
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, dtype=np.float64, copy=False)


def test_float_conversions_match_numpy():
    a = np.array([0, 1, -1.5, 3.14159, 1e-8, 65504, 1e30, np.inf, -np.inf], np.float32)
    t = trivium.Tensor(a)
    for dtype in ("float16", "float64"):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(t.to(dtype).numpy(), a.astype(dtype))
    assert address(t.astype(np.float32).numpy()) == address(a)


def test_bfloat16_through_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.array([1.0, 3.14159, -2.71828e-5, 1e30], np.float32)
    t = trivium.Tensor(a, dtype="bfloat16")
    assert (t.dtype, t.nbytes) == ("bfloat16", 8)
    np.testing.assert_array_equal(t.numpy(), a.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(t.view_u16().numpy(), a.astype(ml_dtypes.bfloat16).view(np.uint16))
    source = a.astype(ml_dtypes.bfloat16)
    back = trivium.Tensor(source, copy=False)
    assert back.dtype == "bfloat16"
    assert address(back.view_u16().numpy()) == source.view(np.uint16).__array_interface__["data"][0]


def test_bfloat16_without_ml_dtypes_says_what_to_do():
    code = """
import sys; sys.modules["ml_dtypes"] = None
import numpy as np, trivium
t = trivium.Tensor(np.ones(2, np.float32), dtype="bfloat16")
assert t.view_u16().numpy().tolist() == [0x3F80, 0x3F80]
try: t.numpy()
except TypeError as e: print(e)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "view_u16" in out and "float32" in out


def test_view_u16_needs_two_bytes():
    with pytest.raises(ValueError, match="float32"):
        trivium.Tensor(np.ones(2, np.float32)).view_u16()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool"])
def test_torch_shares_memory_both_ways(dtype):
    torch = pytest.importorskip("torch")
    source = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    t = trivium.Tensor(source, copy=False)
    assert (t.dtype, t.shape) == (dtype, (3, 4))
    back = torch.from_dlpack(t)
    assert back.data_ptr() == source.data_ptr()
    assert back.dtype == source.dtype
    assert torch.equal(back, source)
    transposed = trivium.Tensor(source.T, copy=False)
    assert transposed.strides == (1, 4)
    assert torch.equal(torch.from_dlpack(transposed), source.T)


def test_torch_objects_live_as_long_as_the_tensor():
    torch = pytest.importorskip("torch")
    t = trivium.Tensor(torch.arange(1000, dtype=torch.float32))
    gc.collect()
    assert [torch.full((1000,), -1.0) for _ in range(20)]
    assert t.numpy()[999] == 999


def test_jax_imports_our_buffers_without_a_copy():
    jax = pytest.importorskip("jax")
    t = trivium.Tensor(np.arange(64, dtype=np.float32), copy=True)
    assert address(t.numpy()) % 64 == 0
    assert jax.dlpack.from_dlpack(t).unsafe_buffer_pointer() == address(t.numpy())


@pytest.mark.parametrize("bad", [np.array(["a"]), np.array([object()]), np.array([1j]), np.array([1], ">i4")])
def test_unsupported_element_types_raise(bad):
    with pytest.raises((BufferError, ValueError, TypeError)):
        trivium.Tensor(bad, copy=False)


def test_dtype_arguments():
    a = np.ones(2, np.float32)
    for dtype in ("float16", np.float16, np.dtype("float16")):
        assert trivium.Tensor(a, dtype=dtype).dtype == "float16"
    with pytest.raises(ValueError, match="float99"):
        trivium.Tensor(a).to("float99")


def test_devices_that_cannot_be_had_are_refused():
    t = trivium.Tensor(np.ones(2, np.float32))
    assert t.to("cpu").device == "cpu"
    if not any(b["name"] == "cuda" and b["devices"] for b in trivium.backends()):
        with pytest.raises(trivium.DeviceError, match="cuda"):
            t.to("cuda:0")


def test_len_and_repr():
    t = trivium.Tensor(np.ones((3, 2), np.float32))
    assert len(t) == 3
    assert "float32" in repr(t) and "[3, 2]" in repr(t)
    with pytest.raises(TypeError):
        len(trivium.Tensor(1.0))


def test_ctypes_arrays_whose_buffers_have_no_strides():
    rows = ((ctypes.c_long * 3) * 2)((1, 2, 3), (4, 5, 6))
    t = trivium.Tensor(rows)
    assert (t.dtype, t.shape, t.strides) == ("int64", (2, 3), (3, 1))
    np.testing.assert_array_equal(t.numpy(), [[1, 2, 3], [4, 5, 6]])
    t.numpy()[1, 2] = 7
    assert rows[1][2] == 7


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">f8", ">i8", ">u4"])
def test_arrays_of_the_other_byte_order_are_copied(dtype):
    a = np.arange(6, dtype=dtype).reshape(2, 3)
    t = trivium.Tensor(a)
    assert t.dtype == a.dtype.name
    np.testing.assert_array_equal(t.numpy(), a)


def test_what_is_no_array_is_named():
    capsule = trivium.Tensor(np.ones(2, np.float32)).__dlpack__()

    class Used:
        def __dlpack__(self, **kwargs):
            return capsule

    trivium.Tensor(Used())
    with pytest.raises(BufferError, match="unused DLPack capsule"):
        trivium.Tensor(Used())
    for value, name in ((None, "NoneType"), ({}, "dict"), ("abc", "str"), (["a"], "list")):
        with pytest.raises(TypeError, match=f"not {name}"):
            trivium.Tensor(value)
    with pytest.raises(BufferError, match="uint8/16/32"):
        trivium.Tensor(np.ones(2, np.uint64))
