"""Bad model inputs: each gives one sentence that names the file, the tensor or the key, and nothing crashes.

Rows of moe.md 10.5 and dependencies.md R1-R9 as seen through trivium.load() and the getp command.
"""

import json
import logging
import os
import struct

import checkpoints as cp
import numpy as np
import pytest
import trivium
from bad_models import CFG, WEIGHTS, load, refusal
from checkpoints import oracle

LAYER = "model.layers.1."
BLOCKS, SCALES = LAYER + "mlp.experts.down_proj_blocks", LAYER + "mlp.experts.down_proj_scales"


@pytest.fixture
def folder(tmp_path):
    return cp.write_hf(tmp_path / "model", WEIGHTS, CFG)


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
    "name", ["../model/model.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "x\0y", "a" * 256]
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
