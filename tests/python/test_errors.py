"""Errors: one hierarchy, each also the built-in exception a caller would try first, each one sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest
import trivium


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (trivium.Error, RuntimeError),
        (trivium.InvalidArgument, ValueError),
        (trivium.ModelFormatError, ValueError),
        (trivium.DeviceError, RuntimeError),
        (trivium.OutOfMemory, MemoryError),
        (trivium.Cancelled, RuntimeError),
        (trivium.Unsupported, NotImplementedError),
        (trivium.IoError, OSError),
    ],
)
def test_hierarchy(error, builtin):
    assert issubclass(error, trivium.Error)
    assert issubclass(error, builtin)
    assert str(error("one sentence")) == "one sentence"


def test_wrong_shapes_name_argument_and_both_shapes():
    with pytest.raises(ValueError, match=r"rms_norm.*\b5\b") as caught:
        trivium.ops.rms_norm(np.ones((2, 4), np.float32), np.ones(5, np.float32))
    assert isinstance(caught.value, trivium.InvalidArgument)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(trivium.Error, match="nowhere") as caught:
        trivium.load(tmp_path / "nowhere", device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(trivium.ModelFormatError, match=r"config\.json"):
        trivium.load(tmp_path, device="cpu")


def test_truncated_weights_name_the_file(tmp_path, demo_folder):
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_bytes((demo_folder / name).read_bytes())
    weights = (demo_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(trivium.ModelFormatError, match=r"model\.safetensors"):
        trivium.load(tmp_path, device="cpu")


def test_unknown_device_and_precision(demo_folder):
    with pytest.raises(trivium.Error, match="toaster"):
        trivium.load(demo_folder, device="toaster")
    with pytest.raises(ValueError, match="int3"):
        trivium.load(demo_folder, device="cpu", precision="int3")
    if not any(b["name"] == "hip" and b["devices"] for b in trivium.backends()):
        with pytest.raises(trivium.DeviceError, match="hip"):
            trivium.load(demo_folder, device="hip:0")


def test_load_hints_at_names_of_other_libraries(demo_folder):
    with pytest.raises(TypeError, match='device="auto"'):
        trivium.load(demo_folder, device_map="auto")
    with pytest.raises(TypeError, match="quantize"):
        trivium.load(demo_folder, quantize=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": 3}, "device is 3, expected a string"),
        ({"precision": 1.5}, "precision is 1.5, expected a string"),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected an integer"),
    ],
)
def test_load_names_the_option_of_a_wrong_type(demo_folder, options, message):
    with pytest.raises(TypeError, match=message):
        trivium.load(demo_folder, **options)


def test_none_is_no_array():
    x = np.ones((2, 4), np.float32)
    for call in (lambda: trivium.ops.linear(None, x), lambda: trivium.mlstm.chunkwise_fw(None, x, x, x, x)):
        with pytest.raises(TypeError, match=r"expected an array.*, not NoneType"):
            call()


def test_ids_of_a_wrong_type_are_shown(demo_folder):
    tokenizer = trivium.Tokenizer(demo_folder)
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        for ids in ("abc", [1.5], 3, None, [2**40]):
            with pytest.raises(TypeError, match=r"^ids are .*, expected integers$"):
                decode(ids)
    assert tokenizer.decode(np.array([40, 41])) == tokenizer.decode([40, 41])


def test_paths_may_be_bytes(demo_folder):
    assert trivium.load(os.fsencode(demo_folder), tokenizer=os.fsencode(demo_folder)).tokenizer is not None


def test_tokenizer_errors(tmp_path):
    with pytest.raises(trivium.Error, match="absent"):
        trivium.Tokenizer(tmp_path / "absent.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(trivium.ModelFormatError, match=r"tokenizer\.json"):
        trivium.Tokenizer(tmp_path)


def test_an_allocation_that_cannot_be_had_is_a_memory_error_and_nothing_breaks():
    code = """
import resource, numpy as np, trivium
x = trivium.Tensor(np.ones((1, 1), np.float32))
w = trivium.Tensor(np.ones((1, 1), np.float32))
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
huge = trivium.Tensor(np.broadcast_to(np.float32(1), (1 << 30, 1)))
try:
    huge.contiguous()
except MemoryError as e:
    assert isinstance(e, trivium.OutOfMemory), type(e)
    print("refused:", e)
print(trivium.ops.linear(x, w).numpy().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused:") and done.stdout.endswith("[[1.0]]\n")


def test_warnings_of_the_library_go_to_python_logging(tmp_path):
    """A world-writable backend folder is ignored with a warning; it arrives at the logger "trivium"."""
    folder = tmp_path / "backends"
    folder.mkdir()
    folder.chmod(0o777)
    code = """
import logging, trivium
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger("trivium").addHandler(handler)
trivium.backends()
print([r.levelname + " " + r.getMessage() for r in records])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TRIVIUM_BACKEND_PATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stdout and "backends" in done.stdout


@pytest.mark.parametrize("value", ["abc", "0", "-2", "2x", "", "99999999999"])
def test_a_bad_number_of_threads_in_the_environment_is_refused(value):
    """Not replaced by another number without a word; what the program sets itself is not affected."""
    code = """
import trivium
try:
    trivium.num_threads()
except ValueError as error:
    print(error)
trivium.set_num_threads(2)
print(trivium.num_threads())
"""
    env = {**os.environ, "TRIVIUM_NUM_THREADS": value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'TRIVIUM_NUM_THREADS is "{value}", expected an integer from 1 to 1024',
        "2",
    ]


def test_thread_counts_below_zero_are_refused():
    before = trivium.num_threads()
    with pytest.raises(trivium.InvalidArgument, match="n is -1"):
        trivium.set_num_threads(-1)
    assert trivium.num_threads() == before


@pytest.mark.parametrize("family", ["moe", "lut", "xlstm"])
def test_kv_dtypes_are_checked_at_load(family):
    with pytest.raises(trivium.InvalidArgument, match="kv_dtype is 'int8'"):
        trivium.load(trivium.demo_model(family), kv_dtype="int8")


def test_the_torch_functions_say_that_torch_is_missing():
    code = "import sys; sys.modules['torch'] = None; import trivium.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "trivium.torch needs torch" in done.stderr


def _op_calls():
    r = lambda *shape: np.ones(shape, np.float32)
    ids = np.zeros(2, np.int32)
    ops = trivium.ops
    return {
        "attention": (ops.attention, {"q": r(3, 4, 8), "k": r(3, 2, 8), "v": r(3, 2, 8), "sinks": r(4)}),
        "embedding": (ops.embedding, {"ids": ids, "table": r(4, 3)}),
        "linear": (ops.linear, {"x": r(2, 3), "w": r(4, 3), "bias": r(4)}),
        "rms_norm": (ops.rms_norm, {"x": r(2, 3), "w": r(3)}),
        "swiglu": (ops.swiglu, {"x": r(2, 4)}),
        "mxfp4_decode": (ops.mxfp4_decode, {n: np.zeros(s, np.uint8) for n, s in (("blocks", (2, 1, 16)), ("scales", (2, 1)))}),
        "rope": (lambda x, positions: ops.rope(x, positions, [1.0] * 4), {"x": r(2, 2, 8), "positions": ids}),
        "moe_route": (lambda logits: ops.moe_route(logits, 2), {"logits": r(2, 4)}),
        "moe_experts": (
            ops.moe_experts,
            {"x": r(2, 4), "experts": np.zeros((2, 1), np.int32), "weights": r(2, 1), "gate_up": r(3, 10, 4),
             "down": r(3, 4, 5), "gate_up_bias": r(3, 10), "down_bias": r(3, 4)},
        ),
    }  # fmt: skip


OP_CALLS = _op_calls()


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, (_, arrays) in OP_CALLS.items() for a in arrays]
)
def test_a_scalar_in_the_place_of_an_array_is_named(name, argument):
    """Rank 0 is a shape, not an argument that is absent."""
    op, arrays = OP_CALLS[name]
    op(**arrays)
    with pytest.raises(trivium.InvalidArgument) as error:
        op(**(arrays | {argument: np.ones((), arrays[argument].dtype)}))
    said = str(error.value)
    assert argument in said and "[]" in said and "expected" in said and "\n" not in said
