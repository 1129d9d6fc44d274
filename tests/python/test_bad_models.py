"""Bad model inputs: each gives one sentence that names the file, the tensor or the key, and nothing crashes.

Rows of moe.md 10.5 and dependencies.md R1-R9 as seen through trivium.load() and the getp command.
"""

import json
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import checkpoints as cp
import numpy as np
import pytest
import trivium
from checkpoints import oracle
from getp_runner import error_line, getp
from hypothesis import given, settings
from hypothesis import strategies as st

CFG = cp.config(300, 64, 96, 2, 4, 2, 16, 4, 2, 5, max_positions=64)
WEIGHTS = oracle.random_weights(CFG, 1)
LAYER = "model.layers.1."
BLOCKS, SCALES = LAYER + "mlp.experts.down_proj_blocks", LAYER + "mlp.experts.down_proj_scales"


@pytest.fixture
def folder(tmp_path):
    return cp.write_hf(tmp_path / "model", WEIGHTS, CFG)


def load(path, **options):
    return trivium.load(path, device="cpu", precision="float32", **options)


def refusal(path, kind=trivium.ModelFormatError, **options) -> str:
    """The sentence with which loading is refused."""
    with pytest.raises(kind) as caught:
        load(path, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 700
    return message


def write_with(folder, changes: dict, mxfp4=True, **config):
    """A checkpoint whose tensors are changed: name -> (dtype tag, array), or None to leave it out."""
    tensors = {**oracle.to_hf_tensors(WEIGHTS, mxfp4), **changes}
    return cp.write_hf(
        folder, None, CFG, mxfp4=mxfp4, tensors={k: v for k, v in tensors.items() if v is not None}, **config
    )


def bf16(array):
    return "BF16", oracle.to_bf16_bits(np.asarray(array, np.float64))


# --- weights ----------------------------------------------------------------------------------------------


def test_the_model_of_these_tests_loads(folder):
    assert load(folder).logits([1, 2, 3]).shape == (3, 300)


def test_truncated_weight_files(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 500, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        message = refusal(folder)
        assert str(path) in message and str(size) in message, (size, message)
        assert "incomplete" in message, (size, message)
    path.write_bytes(data[: len(data) // 2])
    header = 8 + struct.unpack_from("<Q", data)[0]
    assert f"file ends at byte {len(data) // 2} but tensor " in refusal(folder)
    path.write_bytes(data[:500])
    assert f"file ends at byte 500 but its header needs {header}" in refusal(folder)
    path.write_bytes(data + b"\0")
    assert "1 bytes follow the last tensor" in refusal(folder)


def test_header_lengths_and_json(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for length in (0, 100 * 2**20 + 1, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        assert f"the header length is {length}, expected 1 to" in refusal(folder)
    for text, words in (
        (b"{", "invalid JSON at byte"),
        (b"[1]", "expected an object"),
        (b'{"x": {"dtype": "F32", "shape": [1]}}', "needs dtype, shape and two data_offsets"),
        (
            b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            "needs 8 bytes, data_offsets span 4",
        ),
        (b'{"x": {"dtype": "U8", "shape": [4], "data_offsets": [1, 5]}}', "a hole in the data"),
        (
            b'{"x": {"dtype": "U8", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 4]}}',
            "more than 2^63 elements",
        ),
        (b'{"x": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}', "run backwards"),
        (b'{"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "x": 5}', "x"),
        (b'{"x": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}', "extents, each from 0"),
    ):
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
        message = refusal(folder)
        assert str(path) in message and words in message


def test_overlapping_and_out_of_range_offsets(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    names = sorted(header, key=lambda n: header[n]["data_offsets"])
    for shift, words in ((-8, "overlap"), (8, "hole")):
        moved = json.loads(json.dumps(header))
        offsets = moved[names[4]]["data_offsets"]
        moved[names[4]]["data_offsets"] = [offsets[0] + shift, offsets[1] + shift]
        text = json.dumps(moved).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        message = refusal(folder)
        assert words in message and names[4] in message


@pytest.mark.parametrize("name", [BLOCKS, SCALES])
@pytest.mark.parametrize("tag", ["F16", "I8", "BOOL"])
def test_blocks_and_scales_must_be_bytes(tmp_path, name, tag):
    array = oracle.to_hf_tensors(WEIGHTS)[name][1]
    data = array.astype(np.float16) if tag == "F16" else array
    message = refusal(write_with(tmp_path, {name: (tag, data)}))
    assert f'tensor "{name}" is ' in message and "expected" in message and "uint8" in message


@pytest.mark.parametrize("tag", ["I32", "U8", "F64", "F8_E4M3", "X9"])
def test_dense_weights_must_be_floats_of_16_or_32_bits(tmp_path, tag):
    name = LAYER + "self_attn.k_proj.weight"
    size = {"I32": 4, "F64": 8}.get(tag, 1)
    message = refusal(
        write_with(tmp_path, {name: (tag, np.zeros((32, 64 * size), np.uint8).reshape(32, 64, size))})
    )
    assert name in message


def test_wrong_shapes_name_the_tensor_and_both_shapes(tmp_path):
    name = LAYER + "self_attn.q_proj.weight"
    message = refusal(write_with(tmp_path / "a", {name: bf16(np.zeros((64, 65)))}))
    assert message.endswith(f'tensor "{name}" is [64, 65], expected [64, 64]')
    blocks = np.zeros((4, 64, 3, 15), np.uint8)
    assert "[4, 64, 3, 15] uint8, expected [4, 64, 3, 16] uint8" in refusal(
        write_with(tmp_path / "b", {BLOCKS: ("U8", blocks)})
    )
    down = LAYER + "mlp.experts.down_proj"
    not_transposed = bf16(WEIGHTS["layers"][1]["down.weight"])
    message = refusal(write_with(tmp_path / "c", {down: not_transposed}, mxfp4=False))
    assert f'tensor "{down}" is [4, 64, 96], expected [4, 96, 64]' in message
    assert "is [300, 64], expected [301, 64]" in refusal(write_with(tmp_path / "d", {}, vocab_size=301))


def test_missing_tensors_are_listed_five_at_most(tmp_path):
    lost = [n for n in sorted(oracle.to_hf_tensors(WEIGHTS)) if "self_attn" in n]
    message = refusal(write_with(tmp_path / "a", dict.fromkeys(lost)))
    assert "missing tensors: " in message and f" and {len(lost) - 5} more" in message
    assert sum(name in message for name in lost) == 5
    message = refusal(write_with(tmp_path / "b", dict.fromkeys(lost[:2])))
    assert message.endswith(f"missing tensors: {lost[0]}, {lost[1]}") or message.endswith(
        f"missing tensors: {lost[1]}, {lost[0]}"
    )
    message = refusal(write_with(tmp_path / "c", {}, num_hidden_layers=3, layer_types=cp.REMOVE))
    assert "model.layers.2." in message


def test_blocks_without_scales_and_scales_without_blocks(tmp_path):
    for name in (BLOCKS, SCALES):
        assert refusal(write_with(tmp_path / name, {name: None})).endswith(f"missing tensors: {name}")


def test_blocks_need_widths_that_are_multiples_of_32_whatever_the_config_says(tmp_path):
    """Without quantization_config the check of the config does not apply; the tensors are MXFP4 all the same."""
    cfg = cp.config(300, 72, 96, 1, 4, 2, 16, 4, 2, 5)
    weights = oracle.random_weights(cfg, 2, quantise_experts=False)
    tensors = oracle.to_hf_tensors(weights, mxfp4=False)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    del tensors[name]
    tensors[name + "_blocks"] = "U8", np.zeros((4, 192, 2, 16), np.uint8)
    tensors[name + "_scales"] = "U8", np.full((4, 192, 2), 120, np.uint8)
    message = refusal(cp.write_hf(tmp_path, None, cfg, mxfp4=False, tensors=tensors))
    assert "72" in message and "32" in message


def test_extra_tensors_are_a_warning(tmp_path, caplog):
    extra = {"model.layers.7.self_attn.rotary": bf16([1.0]), "zzz\nx": bf16([1.0])}
    with caplog.at_level(logging.WARNING, logger="trivium"):
        load(write_with(tmp_path, extra))
    (record,) = [r for r in caplog.records if r.name == "trivium"]
    assert "2 tensor(s) are not used" in record.getMessage()
    assert "model.layers.7.self_attn.rotary" in record.getMessage()


@pytest.mark.parametrize("scale", [253, 254, 255])
def test_scales_above_252_name_the_element(tmp_path, scale):
    scales = oracle.to_hf_tensors(WEIGHTS)[SCALES][1].copy()
    scales.flat[101] = scale
    message = refusal(write_with(tmp_path, {SCALES: ("U8", scales)}))
    assert f'tensor "{SCALES}" holds scale {scale} at element 101, expected at most 252' in message
    scales.flat[101] = 252
    write_with(tmp_path, {SCALES: ("U8", scales)})
    load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", LAYER + "mlp.router.bias"]
)
def test_nan_and_infinite_weights_name_file_tensor_and_element(tmp_path, name, value):
    tag, bits = oracle.to_hf_tensors(WEIGHTS)[name]
    bits = bits.copy()
    bits.flat[bits.size - 1] = oracle.to_bf16_bits(np.array([value]))[0]
    folder = write_with(tmp_path, {name: (tag, bits)})
    want = f'{folder / "model.safetensors"}: tensor "{name}" holds a NaN or an infinity at element {bits.size - 1}'
    assert refusal(folder) == want
    load(folder, check_weights=False)


def test_nan_in_dense_experts(tmp_path):
    name = LAYER + "mlp.experts.gate_up_proj"
    tag, bits = oracle.to_hf_tensors(WEIGHTS, mxfp4=False)[name]
    bits = bits.copy()
    bits[2, 5, 7] = 0x7FC0
    message = refusal(write_with(tmp_path, {name: (tag, bits)}, mxfp4=False))
    assert message.endswith(f"at element {np.ravel_multi_index((2, 5, 7), bits.shape)}")


# --- shards -----------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    return cp.write_format(tmp_path / "sharded", WEIGHTS, CFG, "shards_from_0")


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    cp.write_json(path, index)
    return path


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00001-of-00002.safetensors").unlink()
    message = refusal(sharded)
    assert 'shard "model-00001-of-00002.safetensors" is missing' in message and "incomplete" in message


def test_a_truncated_shard_is_named(sharded):
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert refusal(sharded).startswith(str(shard))


@pytest.mark.parametrize(
    "name", ["../model/model.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "x\0y"]
)
def test_an_index_names_files_of_its_folder_only(sharded, name):
    index = change_index(sharded, lambda m: m.update({"lm_head.weight": name}))
    message = refusal(sharded)
    assert message.startswith(str(index)) and "not the plain name of a file beside the index" in message


def test_an_index_that_contradicts_its_shards(sharded, tmp_path):
    def swap(weight_map):
        names = sorted(set(weight_map.values()))
        weight_map["lm_head.weight"] = names[(names.index(weight_map["lm_head.weight"]) + 1) % 3]

    change_index(sharded, swap)
    assert 'tensor "lm_head.weight" is not in ' in refusal(sharded)
    for text, words in (
        ("{}", "weight_map is missing"),
        ('{"weight_map": {}}', "weight_map is empty"),
        ('{"weight_map": {"a": 5}}', "is not the name of a file"),
        ("{", "invalid JSON"),
        ('{"weight_map": ' * 100 + "1" + "}" * 100, "nested"),
    ):
        (sharded / "model.safetensors.index.json").write_text(text)
        message = refusal(sharded)
        assert words in message or "depth" in message or "deep" in message


def test_links_devices_and_folders_in_place_of_shards(sharded):
    shard = sharded / "model-00000-of-00002.safetensors"
    real = sharded / "elsewhere"
    shard.rename(real)
    shard.symlink_to(real)  # as in the hub's cache: allowed
    load(sharded)
    for make, words in (
        (lambda: shard.symlink_to(shard), "cannot be opened"),
        (lambda: shard.symlink_to(sharded / "nowhere"), "cannot be opened"),
        (lambda: os.mkfifo(shard), "is a FIFO, expected a regular file"),
        (lambda: shard.mkdir(), "is a folder, expected a regular file"),
        (lambda: shard.symlink_to("/dev/zero"), "is a device, expected a regular file"),
    ):
        shard.rmdir() if shard.is_dir() and not shard.is_symlink() else shard.unlink()
        make()
        message = refusal(sharded)
        assert message.startswith(str(shard)) and words in message


# --- config -----------------------------------------------------------------------------------------------

VIOLATIONS = {
    "vocab_size": (0, -1, 2**24 + 1, 1.5, "300", None, True),
    "hidden_size": (0, -64, 2**40),
    "num_hidden_layers": (0, -1, 5000),
    "num_attention_heads": (0, -4, 3),
    "num_key_value_heads": (0, 3, 2**20),
    "head_dim": (0, 15, -2),
    "num_local_experts": (0, 2**17),
    "num_experts_per_tok": (0, 5),
    "intermediate_size": (0, 95),
    "sliding_window": (-1, 0),
    "max_position_embeddings": (0, 2**31),
    "rms_norm_eps": (0, -1e-5, "small"),
    "swiglu_limit": (0, -7),
    "rope_theta": (0, 1, -1, 1e13),
    "layer_types": (["full_attention"], ["sliding_attention", "sparse"], 5),
    "eos_token_id": (-1, "x", 2**40, [1, -2]),
    "tie_word_embeddings": ("yes", 1),
    "rope_scaling": (
        {"rope_type": "linear"},
        {"rope_type": "yarn", "factor": 0},
        {"rope_type": "yarn", "truncate": 3},
    ),
    "quantization_config": ({"quant_method": "gptq"}, {}),
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in VIOLATIONS.items() for v in values])
def test_every_violation_of_the_config_names_its_key(tmp_path, key, value):
    message = refusal(cp.write_hf(tmp_path, WEIGHTS, CFG, **{key: value}))
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    words = {"rope_scaling": "rope", "quantization_config": "quant_method"}.get(key, key)
    assert words in message


def test_all_violations_are_printed_at_once(tmp_path):
    message = refusal(
        cp.write_hf(
            tmp_path, WEIGHTS, CFG, head_dim=15, num_key_value_heads=3, num_experts_per_tok=9, hidden_size=65,
            rms_norm_eps=0,
        )
    )  # fmt: skip
    for part in (
        '"num_experts_per_tok" is 9, expected 1 to 4',
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
        "head_dim 15 is odd",
        "hidden_size 65 is not a multiple of 32 (MXFP4)",
        '"rms_norm_eps" is 0, expected a positive number',
    ):
        assert part in message


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "num_local_experts",
    ],
)
def test_missing_keys_are_named(tmp_path, key):
    assert f'"{key}" is missing' in refusal(cp.write_hf(tmp_path, WEIGHTS, CFG, **{key: cp.REMOVE}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid JSON"),
        ("{", "invalid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", '"model_type" is missing'),
        ('{"model_type": "llama"}', 'model_type is "llama"; this build runs gpt_oss'),
        ('{"model_type": 7}', "model_type"),
        ('{"model_type": "gpt_oss", "model_type": "gpt_oss"}', "model_type"),
        ('{"model_type": "gpt_oss", "rms_norm_eps": 1e999}', "config.json"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "config.json"),
        ("\ufeff{}", "config.json"),
        ('{"x": "' + "a" * 2**20 + '"}', "at most 1048576"),
    ],
)
def test_config_files_that_are_no_config(folder, text, words):
    (folder / "config.json").write_text(text)
    message = refusal(folder)
    assert words in message and "config.json" in message


def test_bad_generation_config(folder):
    path = folder / "generation_config.json"
    for text in ("{", '{"eos_token_id": 300}', '{"eos_token_id": -1}', '{"eos_token_id": ["x"]}'):
        path.write_text(text)
        assert refusal(folder).startswith(str(path))


def test_a_huge_but_legal_config_is_refused_without_allocating(tmp_path):
    """The files are too small for it: shapes are checked before anything is made."""
    huge = {"num_hidden_layers": 4096, "layer_types": cp.REMOVE, "vocab_size": 2**24, "hidden_size": 2**20}
    assert "expected [16777216, 1048576]" in refusal(cp.write_hf(tmp_path, WEIGHTS, CFG, **huge))


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


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [300, -1, 2**31 - 1])
def test_token_ids_out_of_range(folder, token):
    model = load(folder)
    for call in (model.generate, model.logits):
        with pytest.raises(trivium.InvalidArgument, match=rf"{token}.*expected 0 to 299"):
            call([1, token])
    assert model.logits([1, 299]).shape == (2, 300)


def test_token_ids_that_are_no_32_bit_integers(folder):
    model = load(folder)
    for ids in ([2**31], [1.5], ["x"], [None]):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            model.logits(ids)


def test_temperature_nan_is_refused(folder):
    with pytest.raises(trivium.InvalidArgument, match="temperature is nan"):
        load(folder).generate([1, 2], temperature=float("nan"))


@pytest.mark.parametrize(("name", "value"), [("device", "tpu"), ("precision", "int3"), ("device", "cuda:x")])
def test_unknown_options_are_named(folder, name, value):
    with pytest.raises(trivium.Error, match=value):
        trivium.load(folder, **{name: value})


# --- getp -------------------------------------------------------------------------------------------------


def test_getp_prints_one_line_and_exits_with_1(folder, sharded, flat, tmp_path):
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


# --- properties -------------------------------------------------------------------------------------------


def small(values):
    return st.one_of(st.sampled_from(values), st.integers(-2, 40))


CONFIGS = st.fixed_dictionaries(
    {
        "vocab_size": small([1, 50, 200]),
        "hidden_size": small([32, 64, 48]),
        "intermediate_size": small([32, 64, 40]),
        "num_hidden_layers": st.integers(0, 3),
        "num_attention_heads": small([1, 2, 4, 6]),
        "num_key_value_heads": small([1, 2, 3]),
        "head_dim": small([2, 4, 16, 18]),
        "num_local_experts": st.integers(0, 5),
        "num_experts_per_tok": st.integers(0, 5),
        "sliding_window": st.integers(-1, 9),
        "max_position_embeddings": small([16, 100]),
        "rms_norm_eps": st.sampled_from([1e-5, 0.0, -1.0, 1e-30, 1.0]),
        "swiglu_limit": st.sampled_from([7.0, 0.1, 0.0, 1e30]),
        "rope_theta": st.sampled_from([150000.0, 1.0, 1.5, 1e12, 0.0]),
        "rope_scaling": st.sampled_from(
            [
                None,
                {"rope_type": "default"},
                {"rope_type": "yarn", "factor": 4.0},
                {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 3, "truncate": True},
                {"rope_type": "yarn", "factor": 0.5, "beta_fast": 1.0, "beta_slow": 1.0},
                {"rope_type": "longrope"},
            ]
        ),
    }
)


def tensors_for(c: dict, mxfp4: bool) -> dict | None:
    """Random weights of the shapes the config asks for, or none where it asks for nonsense."""
    cfg = cp.config(
        c["vocab_size"], c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"],
        c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["num_local_experts"], 1, 1,
    )  # fmt: skip
    if min(cfg.vocab_size, cfg.hidden_size, cfg.intermediate_size, cfg.head_dim, cfg.num_experts) < 1:
        return None
    if min(cfg.num_heads, cfg.num_kv_heads) < 1 or (
        mxfp4 and (cfg.hidden_size % 32 or cfg.intermediate_size % 32)
    ):
        return None
    return oracle.to_hf_tensors(oracle.random_weights(cfg, 0, quantise_experts=mxfp4), mxfp4)


VALID = oracle.to_hf_tensors(WEIGHTS)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(config=CONFIGS, mxfp4=st.booleans(), data=st.data())
def test_any_config_either_runs_or_is_refused(tmp_path_factory, config, mxfp4, data):
    tensors = tensors_for(config, mxfp4)
    folder = tmp_path_factory.getbasetemp() / "property"
    path = cp.write_hf(
        folder, None, CFG, mxfp4=mxfp4, tensors=tensors or VALID, layer_types=cp.REMOVE, **config
    )
    try:
        model = load(path)
    except trivium.ModelFormatError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert tensors is not None
    count = min(config["max_position_embeddings"], data.draw(st.integers(1, 20)))
    logits = model.logits([i % config["vocab_size"] for i in range(count)])
    assert logits.shape == (count, config["vocab_size"]) and np.isfinite(logits).all()
    assert len(model.generate([0], max_tokens=3, ignore_eos=True).tokens) == min(
        3, config["max_position_embeddings"] - 1
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_changed_byte_of_a_model_loads_or_is_refused(tmp_path_factory, data):
    """Bytes of the header or config; a changed weight is a weight."""
    folder = tmp_path_factory.getbasetemp() / "bytes"
    cp.write_hf(folder, None, CFG, tensors=VALID)
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    end = 8 + struct.unpack_from("<Q", content)[0] if path.suffix == ".safetensors" else len(content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(
            st.one_of(st.sampled_from(b'"{}[],:0195-. \n\\u'), st.integers(0, 255))
        )
    path.write_bytes(content)
    try:
        model = load(path.parent)
    except trivium.ModelFormatError as error:
        assert str(error) and "\n" not in str(error)
        return
    model.logits([1, 2, 3])
