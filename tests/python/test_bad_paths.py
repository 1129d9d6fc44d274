"""Paths that hold no model, missing permissions, the predecessor's model.bin, tokenizers, and getp's exit code."""

import os
import subprocess
import sys
from pathlib import Path

import checkpoints as cp
import pytest
import trivium
from bad_models import CFG, WEIGHTS, load, refusal
from checkpoints import oracle
from getp_runner import error_line, getp


@pytest.fixture
def folder(tmp_path):
    return cp.write_hf(tmp_path / "model", WEIGHTS, CFG)


# --- paths ------------------------------------------------------------------------------------------------


def test_paths_that_hold_no_model(tmp_path, folder):
    assert refusal(tmp_path / "none") == f'no model at "{tmp_path / "none"}": there is no such file or folder'
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / "empty")
    assert message == f'no config.json in "{tmp_path / "empty"}" (it is empty). Did the download finish?'
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    assert "found: model.safetensors" in refusal(tmp_path / "empty")
    assert "give its folder" in refusal(folder / "model.safetensors")
    assert "config.json" in refusal(folder / "config.json")
    (folder / "model.safetensors").unlink()
    assert f"{folder}: has no model.safetensors" in refusal(folder)
    assert "folder" in refusal(folder / "config.json" / "below")
    for path in ("", "\0", "x" * 5000, "/dev/null", "/proc/self/mem"):
        with pytest.raises((trivium.Error, ValueError)):
            load(path)


def test_a_config_that_is_a_link_to_itself_a_fifo_or_a_folder(folder):
    config = folder / "config.json"
    for make in (lambda: config.symlink_to(config), lambda: os.mkfifo(config), lambda: config.mkdir()):
        config.unlink()
        make()
        assert str(config) in refusal(folder)
    (folder / "generation_config.json").symlink_to("generation_config.json")
    config.rmdir()
    cp.write_json(config, cp.hf_config(CFG))
    assert "generation_config.json" in refusal(folder)


AS_NOBODY = """
import os, sys
import trivium
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    trivium.load(sys.argv[1], device="cpu")
    print("loaded")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("part", [".", "config.json", "model.safetensors"])
def test_missing_permissions_are_said_to_be_that(folder, part):
    for parent in folder.parents:  # pytest's own folders are private
        if parent.stat().st_uid == os.getuid() and parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o755)
    target = folder / part
    target.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, folder], capture_output=True, text=True, timeout=60
        )
    finally:
        target.chmod(0o755)
    assert done.returncode == 0, done.stderr
    kind, message = done.stdout.strip().split(" ", 1)
    assert kind == "IoError" and "Permission denied" in message and str(folder) in message


TRUNCATED_IN_USE = """
import os, sys
import trivium
model = trivium.load(sys.argv[1], device="cpu", precision="float32")
model.logits([1, 2])
os.truncate(os.path.join(sys.argv[1], "model.safetensors"), 5000)
for call in (model.logits, model.generate, model.logits):
    try:
        call([1, 2])
        print("no error")
    except trivium.ModelFormatError as error:
        print(error)
"""


def test_weights_truncated_while_in_use_are_an_error_not_a_crash(folder):
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED_IN_USE, folder], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"{folder / 'model.safetensors'}: a part of the file could not be read")


# --- model.bin and tokenizers -----------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path):
    return cp.write_format(tmp_path / "flat", WEIGHTS, CFG, "bin_f32")


def test_model_bin_of_the_wrong_size(flat):
    data = flat.read_bytes()
    load(flat)
    halves = 60 + (len(data) - 60) // 2
    for size in (0, 59, 60, len(data) - 4, len(data) - 1):
        flat.write_bytes(data[:size])
        message = refusal(flat)
        assert message.startswith(str(flat)) and f"has {size} bytes" in message
        if size >= 60:
            assert f"asks for {len(data)} (float32) or {halves} (bfloat16)" in message
    flat.write_bytes(data + b"\0")
    assert f"has {len(data) + 1} bytes" in refusal(flat)


HEADER = (
    "vocab_size hidden_dim n_experts experts_per_token intermediate_dim n_layers head_dim n_attn_heads "
    "n_kv_heads seq_len initial_context_length rope_theta rope_scaling_factor sliding_window swiglu_limit"
).split()


@pytest.mark.parametrize("field", range(15))
def test_model_bin_header_fields_out_of_range(flat, field):
    original = flat.read_bytes()
    bad = [float("nan"), -1.0, 1e30] if field in (11, 12, 14) else [-1, -(2**31), 2**31 - 1]
    for value in bad:
        cp.set_header_field(flat, field, value)
        assert f"header field {HEADER[field]} is " in refusal(flat)
        flat.write_bytes(original)


def test_model_bin_with_an_integer_rope_theta_is_recognised(flat):
    """The published exporter writes 150000 as an integer when the config has it so."""
    cp.set_header_field(flat, 11, 150000)
    assert "header field rope_theta is " in refusal(flat)


def small_tokenizer(name):
    return Path(__file__).resolve().parents[1] / "data" / "tokenizer_small" / name


def test_a_tokenizer_larger_than_the_model_is_refused_a_smaller_one_is_not(tmp_path):
    tokens = len(trivium.Tokenizer(small_tokenizer("tokenizer.json")))
    for extra in (-1, 0, 5):
        cfg = cp.config(tokens + extra, 32, 32, 1, 2, 1, 8, 2, 1, 4)
        path = cp.write_hf(tmp_path / str(extra), oracle.random_weights(cfg), cfg)
        (path / "tokenizer.json").write_bytes(small_tokenizer("tokenizer.json").read_bytes())
        if extra < 0:
            assert f"the tokenizer has {tokens} tokens, the model only {tokens - 1}" in refusal(path)
        else:
            assert load(path).generate("the", max_tokens=2).text is not None


def test_a_short_tokenizer_bin(flat):
    data = small_tokenizer("tokenizer.bin").read_bytes()
    path = flat.parent / "tokenizer.bin"
    for size in (3, len(data) - 1):
        path.write_bytes(data[:size])
        message = refusal(flat)
        assert message.startswith(str(path)) and "the file ends at byte" in message


# --- getp -------------------------------------------------------------------------------------------------


def test_getp_prints_one_line_and_exits_with_1(folder, flat, tmp_path):
    sharded = cp.write_format(tmp_path / "sharded", WEIGHTS, CFG, "shards_from_0")
    (sharded / "model-00001-of-00002.safetensors").unlink()
    flat.write_bytes(flat.read_bytes()[:-4])
    (folder / "config.json").write_text("{")
    for path, words in (
        (folder, "config.json: invalid JSON"),
        (sharded, "model-00001-of-00002.safetensors"),
        (flat, "model.bin: has"),
        (tmp_path / "none", "no model at"),
    ):
        done = getp(path, "-i", "hello", code=1)
        assert words in error_line(done)
        *others, last = done.stderr.decode().splitlines()
        assert last.startswith("getp: ") and not done.stdout
        assert all(line.startswith("device: ") for line in others)
        assert b"Traceback" not in done.stderr and b"terminate" not in done.stderr
