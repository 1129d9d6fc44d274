"""Bad config.json files, and properties: any config and any changed byte loads and runs, or is refused.

Rows of moe.md 10.5 and dependencies.md R6-R8.
"""

import struct

import checkpoints as cp
import numpy as np
import pytest
import trivium
from bad_models import CFG, WEIGHTS, load, refusal
from checkpoints import oracle
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture
def folder(tmp_path):
    return cp.write_hf(tmp_path / "model", WEIGHTS, CFG)


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
        {"rope_type": "yarn", "beta_fast": 1e-320},
        {"rope_type": "yarn", "beta_slow": 1e300},
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
