"""Tensors on devices: copies, the `device` argument of the ops, and DLPack with streams. The streams are seen by a
backend of the tests (stream_backend.cpp) that calls itself cuda or hip, keeps its memory on the host and writes down
what it is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium

ROOT = Path(__file__).resolve().parents[2]


def test_devices_name_what_can_be_used():
    assert trivium.devices()[0] == "cpu"
    for name in trivium.devices():
        assert trivium.Tensor(np.ones(3, np.float32), device=name).device == name


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 5)])
def test_values_survive_the_way_to_a_device_and_back(backend, dtype, shape):
    a = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    t = trivium.Tensor(a, device=backend)
    assert (t.shape, t.dtype, t.device.split(":")[0]) == (shape, dtype, backend)
    np.testing.assert_array_equal(t.to("cpu").numpy(), a)
    np.testing.assert_array_equal(trivium.Tensor(a, copy=True).to(backend).to("cpu").numpy(), a)


def test_strided_arrays_arrive_in_order(backend):
    a = np.arange(48, dtype=np.float32).reshape(6, 8)[::2, ::-3]
    np.testing.assert_array_equal(trivium.Tensor(a, device=backend).to("cpu").numpy(), a)


def test_dtypes_are_converted_on_the_device(backend):
    a = np.array([1, -2.5, 3.14159], np.float32)
    t = trivium.Tensor(a, device=backend).to("float16")
    assert t.device.split(":")[0] == backend
    np.testing.assert_array_equal(t.to("cpu").numpy(), a.astype(np.float16))


def test_ops_stay_on_the_device_of_their_arguments(backend):
    x, w = (trivium.Tensor(np.ones(s, np.float32), device=backend) for s in ((2, 8), (8,)))
    y = trivium.ops.rms_norm(x, w)
    assert y.device == x.device
    np.testing.assert_allclose(y.to("cpu").numpy(), np.ones((2, 8)), rtol=1e-5)


def test_ops_bring_arrays_to_the_named_device(backend):
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    y = trivium.ops.embedding([3, 0], trivium.Tensor(table, device=backend), device=backend)
    assert y.device.split(":")[0] == backend
    np.testing.assert_array_equal(y.to("cpu").numpy(), table[[3, 0]])


def test_arrays_on_two_devices_are_refused(backend):
    if backend == "cpu":
        pytest.skip("needs a second device")
    x = trivium.Tensor(np.ones((2, 8), np.float32), device=backend)
    with pytest.raises(trivium.InvalidArgument, match="cpu"):
        trivium.ops.embedding(np.zeros(1, np.int32), x)
    with pytest.raises(trivium.InvalidArgument, match=r'\.to\("cpu"\)'):
        x.numpy()


def test_unknown_devices_are_refused_by_name():
    x = np.ones((2, 8), np.float32)
    with pytest.raises(trivium.Error, match="tpu"):
        trivium.ops.swiglu(x, device="tpu")
    with pytest.raises(TypeError):
        trivium.ops.swiglu(x, device=3)


# --- streams ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream_backends(tmp_path_factory):
    """A folder with libtrivium_cuda.so and libtrivium_hip.so that only log."""
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("backends")
    for kind in ("cuda", "hip"):
        defines = [f"-DKIND={kind}", f'-DBUILD_ID="{trivium.build_id()}"', f"-I{ROOT / 'cpp'}"]
        files = [str(Path(__file__).with_name("stream_backend.cpp")), "-o", f"{folder}/libtrivium_{kind}.so"]
        subprocess.run([compiler, "-std=c++20", "-shared", "-fPIC", *defines, *files], check=True)
    return folder


PRELUDE = """
import ctypes, sys
import numpy as np, pytest, trivium
kind, folder = sys.argv[1:]
library = ctypes.CDLL(f"{folder}/libtrivium_{kind}.so")
library.stream_log.restype = ctypes.c_char_p
def log():
    return library.stream_log().decode().split()
device = f"{kind}:0"
t = trivium.Tensor(np.arange(6, dtype=np.float32), device=device)
log()
"""


def run(folder, kind, code):
    env = {**os.environ, "TRIVIUM_BACKEND_PATH": str(folder)}
    subprocess.run([sys.executable, "-c", PRELUDE + code, kind, str(folder)], env=env, check=True, timeout=60)


def test_the_consumers_stream_waits_for_ours(stream_backends):
    code = """
assert t.__dlpack_device__() == (2, 0) and trivium.devices() == ["cpu", "cuda:0", "hip:0"]
for stream, waits in ((None, ["wait:1"]), (1, ["wait:1"]), (2, ["wait:2"]), (70000, ["wait:70000"]), (-1, [])):
    t.__dlpack__(stream=stream, max_version=(1, 0))
    assert log() == waits, stream
for stream in (0, -2):
    with pytest.raises(ValueError, match=f"stream {stream} does not exist on cuda:0"):
        t.__dlpack__(stream=stream)
with pytest.raises(ValueError, match="stream is a str"):
    t.__dlpack__(stream="1")
"""
    run(stream_backends, "cuda", code)


def test_rocm_numbers_its_streams_otherwise(stream_backends):
    code = """
assert t.__dlpack_device__() == (10, 0)
for stream, waits in ((None, ["wait:0"]), (0, ["wait:0"]), (3, ["wait:3"]), (-1, [])):
    t.__dlpack__(stream=stream)
    assert log() == waits, stream
for stream in (1, 2):
    with pytest.raises(ValueError, match=f"stream {stream} does not exist on hip:0"):
        t.__dlpack__(stream=stream)
"""
    run(stream_backends, "hip", code)


@pytest.mark.parametrize("kind", ["cuda", "hip"])
def test_imports_give_our_stream_and_wait_for_the_producer(stream_backends, kind):
    code = """
seen = []
class Producer:
    def __dlpack_device__(self):
        return t.__dlpack_device__()
    def __dlpack__(self, *, stream, max_version=None):
        assert "sync" not in log()
        seen.append(stream)
        return t.__dlpack__(stream=-1, max_version=max_version)
class Old(Producer):
    def __dlpack__(self, *, stream):
        return super().__dlpack__(stream=stream)
for producer in (Producer(), Old()):
    shared = trivium.from_dlpack(producer, copy=False)
    assert seen.pop() == 0x5000 and "sync" in log()
    assert shared.device == device and shared.to("cpu").numpy().tolist() == [0, 1, 2, 3, 4, 5]
    log()
"""
    run(stream_backends, kind, code)


BORROWER = """
from trivium import _core
seen, here = [], t.__dlpack_device__()
class Borrower:  # hands out our tensor as its own, as one that it uses on stream 70000
    def __dlpack_device__(self):
        return t.__dlpack_device__()
    def __dlpack__(self, *, stream, max_version=None):
        seen.append(stream)
        return t.__dlpack__(stream=70000, max_version=max_version)
"""


@pytest.mark.parametrize("kind", ["cuda", "hip"])
def test_inside_a_foreign_stream_the_host_waits_for_nothing(stream_backends, kind):
    code = """
with _core.ForeignStream(here, 70000):
    assert log() == ["follow:70000"]
    shared = trivium.from_dlpack(Borrower())
    assert seen == [-1] and log() == ["wait:70000", "follow:70000"]
    trivium.from_dlpack(Borrower())
    assert log() == ["wait:70000", "follow:70000", "wait:70000", "device"]  # the last of the tensor it lent
assert log() == ["wait:70000"]
del shared
assert log() == ["wait:70000", "device"]
with pytest.raises(RuntimeError):
    with _core.ForeignStream(here, 70000):
        raise RuntimeError
assert log() == ["follow:70000", "wait:70000"]
other = (10, 0) if kind == "cuda" else (2, 0)
with _core.ForeignStream(other, 70000):  # says nothing of the tensor's device
    shared = trivium.from_dlpack(Borrower())
    assert seen.pop() == 0x5000 and log() == ["wait:70000", "sync"]
    del shared
    assert log() == ["sync", "device"]
with pytest.raises(trivium.Unsupported, match="streams on cpu"):
    _core.ForeignStream((1, 0), 1).__enter__()
with pytest.raises(BufferError, match="device type 77"):
    _core.ForeignStream((77, 0), 1)
with _core.ForeignStream(here, 70000) as _, _core.ForeignStream(here, 70000):
    pass
log()
assert trivium.from_dlpack(Borrower()).size == 6 and seen.pop() == 0x5000  # outside again
"""
    run(stream_backends, kind, BORROWER + code)


def test_outside_memory_is_given_back_after_all_work(stream_backends):
    code = """
shared = trivium.from_dlpack(Borrower())
assert seen == [0x5000] and log() == ["wait:70000", "sync"]
del shared
assert log() == ["sync", "device"]
t.__dlpack__(stream=70000)  # nobody took it
assert log() == ["wait:70000"]
trivium.synchronize(device)
assert log() == ["device"]
trivium.synchronize("cpu")
"""
    run(stream_backends, "cuda", BORROWER + code)


def test_a_tensor_on_a_device_reaches_host_libraries_as_a_copy_only(stream_backends):
    code = """
assert np.from_dlpack(t, device="cpu").tolist() == [0, 1, 2, 3, 4, 5]
with pytest.raises(BufferError):
    t.__dlpack__(dl_device=(1, 0), copy=False)
with pytest.raises(BufferError):
    t.__dlpack__(dl_device=(2, 1))
with pytest.raises(ValueError, match="cuda:0"):
    np.asarray(t)
"""
    run(stream_backends, "cuda", code)


def test_the_producers_memory_is_given_back(stream_backends):
    code = """
import gc, weakref
class Producer:
    def __dlpack_device__(self):
        return t.__dlpack_device__()
    def __dlpack__(self, **_):
        return trivium.Tensor(np.zeros(5, np.float32), device=device).__dlpack__(stream=-1)
before = library.stream_live()
shared = trivium.from_dlpack(Producer())
assert library.stream_live() == before + 1
del shared
gc.collect()
assert library.stream_live() == before
"""
    run(stream_backends, "cuda", code)
