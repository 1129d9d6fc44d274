"""The mLSTM for jax and for DLPack tensors on a GPU, with the emulator in the GPU's place (jax_on_emulator.cpp): it calls
itself cuda, and jax's CPU calls the CUDA handlers of trivium._jax with device memory, a stream and an ordinal."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EMULATOR = ROOT / "build/dev/backends/libtrivium_emu32.so"
sys.path.insert(0, str(HERE.parent / "oracles"))
import mlstm_oracle as oracle  # noqa: E402

NAMES = ("trivium_mlstm_forward", "trivium_mlstm_backward")


@pytest.fixture(scope="module")
def jax():
    module = pytest.importorskip("jax", reason="jax is not installed")
    pytest.importorskip("trivium._jax", reason="this build has no trivium._jax (TRIVIUM_JAX=ON)")
    return module


@pytest.fixture(scope="module")
def cuda(jax, tmp_path_factory):
    """A folder with the emulator as libtrivium_cuda.so."""
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler")
    if not EMULATOR.exists():
        pytest.skip(f"no emulator in {EMULATOR.parent}")
    folder = tmp_path_factory.mktemp("backends")
    flags = ["-std=c++20", "-shared", "-fPIC", "-fpermissive", "-w", f'-DEMULATOR="{EMULATOR}"']
    flags += [f"-I{ROOT / 'cpp'}", "-isystem", jax.ffi.include_dir()]
    source = HERE / "jax_on_emulator.cpp"
    subprocess.run([compiler, *flags, source, "-o", folder / "libtrivium_cuda.so"], check=True)
    return folder


def run(code, *arguments, backends):
    """Runs code of this module in a process of its own that finds its backends in a folder."""
    env = os.environ | {"TRIVIUM_BACKEND_PATH": str(backends), "JAX_PLATFORMS": "cpu"}
    prelude = f"import sys; sys.path.insert(0, {str(HERE)!r}); import test_mlstm_devices as t; "
    command = [sys.executable, "-c", prelude + code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cases():
    """name: (arrays, gradients of the results, dtype of q, k and v, settings)"""
    for name, dtype, sizes, settings in (
        ("plain", "float32", dict(B=2, NH=2, S=40, DQ=16, DV=24), dict(chunk_size=16)),
        ("short", "float32", dict(B=1, NH=3, S=17, DQ=24, DV=8), dict(chunk_size=32, grad_mode="approx")),
        ("bfloat16", "bfloat16", dict(B=1, NH=2, S=33, DQ=16, DV=16), dict(chunk_size=16)),
        ("float16", "float16", dict(B=1, NH=2, S=33, DQ=16, DV=16), dict(chunk_size=16)),
    ):
        x, state, g = oracle.make_inputs(**sizes)
        arrays = [a.astype(np.float32) for a in (*x.values(), *state.values())]
        yield name, arrays, {n: g[n].astype(np.float32) for n in ("dH", "dC", "dn")}, dtype, settings


def results():
    """For each case h, the last state and eight gradients, with the handlers that trivium.jax has registered."""
    import jax
    import jax.numpy as jnp
    from trivium.jax import mlstm_chunkwise

    out = {}
    for name, arrays, g, dtype, settings in cases():
        arrays = [jnp.asarray(a, dtype) for a in arrays[:3]] + arrays[3:]

        def loss(*a, g=g, settings=settings):
            h, last = mlstm_chunkwise(*a, return_last_states=True, **settings)
            total = (h.astype(jnp.float32) * g["dH"]).sum() + (last[0] * g["dC"]).sum()
            return total + (last[1] * g["dn"]).sum(), (h, *last)

        (_, values), grads = jax.jit(jax.value_and_grad(loss, range(8), has_aux=True))(*arrays)
        for i, value in enumerate((*values, *grads)):
            assert value.dtype == (dtype if i in (0, 4, 5, 6) else jnp.float32)
            out[f"{name}.{i}"] = np.asarray(value, np.float32)
    return out


def use_cuda_handlers(library):
    """Lets trivium.jax register, for jax's CPU, the library's handlers, which run the CUDA handlers."""
    import jax
    from trivium import _jax

    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    real = _jax.handlers()["CUDA"]
    library.set_handlers.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.set_handlers(*(address(real[name], None) for name in NAMES))
    ours = {n: jax.ffi.pycapsule(f) for n, f in zip(NAMES, (library.forward, library.backward))}
    _jax.handlers = lambda: {"cpu": ours}


def load(folder):
    """The library of a folder, once trivium has it as its cuda backend; exit status 77 where it does not take it."""
    import trivium

    try:
        trivium.Tensor(np.zeros(1, np.float32), device="cuda:1")
    except trivium.DeviceError as error:
        print(error)
        sys.exit(77)
    library = ctypes.CDLL(f"{folder}/libtrivium_cuda.so")
    library.device_log.restype = ctypes.c_char_p
    return library


def emulated_results(folder, file):
    library = load(folder)
    use_cuda_handlers(library)
    np.savez(file, **results())
    print(library.device_log().decode())


def test_the_cuda_handlers_compute_what_the_cpus_do(cuda, tmp_path):
    file = tmp_path / "out.npz"
    run("t.emulated_results(*sys.argv[1:])", cuda, file, backends=cuda)
    got, want = np.load(file), results()
    limits = {"plain": 2e-5, "short": 2e-5, "bfloat16": 1.5e-2, "float16": 4e-3}
    assert set(got) == set(want) and len(want) == 12 * len(limits)
    for name, value in want.items():
        # The gradients of an initial n and m are zero in the approximate mode.
        error = np.linalg.norm(got[name] - value) / max(np.linalg.norm(value), 1e-30)
        assert error < limits[name.split(".")[0]], (name, error)


def test_the_handlers_use_xlas_stream_memory_and_device_and_never_wait(cuda, tmp_path):
    log = run("t.emulated_results(*sys.argv[1:])", cuda, tmp_path / "out.npz", backends=cuda).split()
    # What the last handler asked of the device: XLA's stream on device 1, borrowed and given back; no memory of ours.
    assert log[:2] == ["borrow:1:xla", "return"]
    assert len(log) == 3 and int(log[2].removeprefix("scratch:")) >= 5


def failing_call(folder):
    use_cuda_handlers(ctypes.CDLL(f"{folder}/adapter.so"))
    from trivium.jax import mlstm_chunkwise

    x = np.zeros((1, 1, 4, 8), np.float32)
    try:
        mlstm_chunkwise(x, x, x, x[..., 0], x[..., 0]).block_until_ready()
    except Exception as error:
        print(error)


def test_without_a_cuda_backend_one_sentence_says_so(cuda, tmp_path):
    shutil.copy(cuda / "libtrivium_cuda.so", tmp_path / "adapter.so")
    # In front of a backend that this installation may have.
    (tmp_path / "libtrivium_cuda.so").write_bytes(b"")
    said = run("t.failing_call(*sys.argv[1:])", tmp_path, backends=tmp_path)
    assert "trivium.jax: device cuda cannot be had: " in said and said.count("\n") == 1


def test_a_program_for_each_platform_calls_the_handler_registered_there(jax):
    code = """
import jax, jax.numpy as jnp
seen, register = set(), jax.ffi.register_ffi_target
def record(name, handler, platform):
    seen.add((name, platform)), register(name, handler, platform=platform)
jax.ffi.register_ffi_target = record
from trivium.jax import mlstm_chunkwise
assert seen == {(n, p) for n in t.NAMES for p in ("cpu", "CUDA", "ROCM")}
x, gate = jnp.zeros((1, 2, 20, 16), jnp.bfloat16), jnp.zeros((1, 2, 20))
grad = jax.jit(jax.grad(lambda q: mlstm_chunkwise(q, x, x, gate, gate).astype(jnp.float32).sum()))
for platform in ("cpu", "cuda", "rocm"):
    text = grad.trace(x).lower(lowering_platforms=(platform,)).as_text()
    for name in t.NAMES:
        assert f"@{name}(" in text and "chunk_size = 64 : i64" in text, text
checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in t.NAMES]
exported = jax.export.export(grad, platforms=["cuda"], disabled_checks=checks)(x)
assert exported.platforms == ("cuda",) and all(n in exported.mlir_module() for n in t.NAMES)
"""
    run(code, backends="")


def dlpack_calls(folder):
    """The functions of trivium.mlstm on arrays of another library on cuda:1."""
    library = load(folder)
    import trivium
    from trivium import mlstm

    streams = []

    class Array:
        def __init__(self, values):
            self.tensor = trivium.Tensor(values, device="cuda:1")

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, *, stream, max_version=None):
            streams.append(stream)
            return self.tensor.__dlpack__(stream=-1, max_version=max_version)

    _, arrays, g, _, _ = next(cases())
    here = [Array(a) for a in arrays]
    library.device_log()
    out = mlstm.chunkwise_fw(*here, return_last_states=True, CHUNK_SIZE=16)
    assert len(set(streams)) == 1 and len(streams) == 8 and streams[0] > 2
    h = out.matH
    assert h.device == "cuda:1" and h.__dlpack_device__() == (2, 1)
    library.device_log()
    h.__dlpack__(stream=70000)  # the consumer's stream waits for ours
    assert library.device_log().decode().split() == [f"wait:{streams[0]}:70000"]
    known = dict(vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=Array(g["dH"]), CHUNK_SIZE=16)
    grads = mlstm.chunkwise_bw(*here, **known)
    assert len(set(streams)) == 1 and all(t.device == "cuda:1" for t in grads)
    want = mlstm.chunkwise_fw(*arrays, return_last_states=True, CHUNK_SIZE=16)
    known = dict(vecN_out=want.vecN_out, vecM_out=want.vecM_out, matDeltaH=g["dH"], CHUNK_SIZE=16)
    pairs = [(h, want.matH), *zip(out.last_states, want.last_states)]
    pairs += zip(grads, mlstm.chunkwise_bw(*arrays, **known))
    m = arrays[7]
    pairs += zip(
        mlstm.recurrent_sequence(*here[:5])[:3], mlstm.recurrent_sequence(*arrays[:5])[:3], strict=True
    )
    stepped = mlstm.recurrent_sequence(*here[:7], Array(m[..., None]), return_last_states=True)
    pairs += zip(stepped.last_states, mlstm.recurrent_sequence(*arrays, return_last_states=True).last_states)
    states = mlstm.chunkwise_fw(*here, return_all_states=True, CHUNK_SIZE=16).all_states
    known = here[0], here[4], states.m, out.vecM_out, Array(g["dH"]), out.vecN_out
    first = mlstm.recurrent_bw_dC(*known, CHUNK_SIZE=16, store_initial_state=True)
    assert first.matDeltaC_initial.device == "cuda:1"
    pairs.append((first.scaM_initial, trivium.Tensor(m)))
    for got, right in pairs:
        error = np.linalg.norm(got.to("cpu").numpy() - right.numpy()) / np.linalg.norm(right.numpy())
        assert error < 2e-5, error


def test_arrays_of_other_libraries_on_a_gpu_bring_their_device_and_stream(cuda):
    run("t.dlpack_calls(*sys.argv[1:])", cuda, backends=cuda)
