"""Logits and greedy continuations against transformers' GptOssForCausalLM on the CPU (eager, float32).

Two directions: checkpoints that transformers saved (dense bfloat16), and checkpoints in the published MXFP4
layout, which transformers dequantises itself. attention_mask is always given: without it generate() derives one
from the pad id.
"""

import json

import checkpoints as cp
import numpy as np
import pytest
import trivium
from checkpoints import CASES, oracle

BOUND = 1e-4  # relative L2 error of float32 logits, moe.md 10.2
TOKENS = 41

# (GptOssConfig arguments, shards of the saved checkpoint); H != I everywhere
SAVED = {
    "a": {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 6,
        "num_experts_per_tok": 2, "sliding_window": 5,
    },
    "wide_heads_no_yarn": {
        "vocab_size": 211, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "num_local_experts": 8,
        "num_experts_per_tok": 4, "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "one_layer_odd_group": {
        "vocab_size": 100, "hidden_size": 40, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 3,
        "num_experts_per_tok": 3, "sliding_window": 3,
    },
    "yarn_truncated": {
        "vocab_size": 150, "hidden_size": 56, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 24, "num_local_experts": 4,
        "num_experts_per_tok": 1, "sliding_window": 8,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 50000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 1024, "truncate": True,
        },
    },
    "all_full_attention": {
        "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": 4,
        "layer_types": ["full_attention", "full_attention"],
    },
    "tied_without_attention_bias": {
        "vocab_size": 120, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": 6, "tie_word_embeddings": True, "attention_bias": False,
    },
}  # fmt: skip
MXFP4 = ("a", "b_equal_widths", "sharded", "no_yarn", "odd_group")


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed: no reference to compare with")
    pytest.importorskip("transformers", reason="transformers is not installed")
    module.set_num_threads(2)
    return module


def reference(torch, folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **options
    ).eval()


def reference_logits(torch, model, ids):
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return model(tokens, attention_mask=torch.ones_like(tokens)).logits[0].numpy()


def save_with_transformers(torch, folder, arguments, **options):
    from transformers import GptOssConfig, GptOssForCausalLM

    cfg = GptOssConfig(
        max_position_embeddings=256, initial_context_length=4096, eos_token_id=2, pad_token_id=1, **arguments
    )
    torch.manual_seed(0)
    model = GptOssForCausalLM(cfg)
    with torch.no_grad():
        for parameter in model.parameters():  # fresh biases are zero and would hide mistakes
            parameter.normal_(0, 0.3)
    model.to(torch.bfloat16).save_pretrained(folder, **options)


@pytest.mark.parametrize("name", SAVED)
def test_checkpoints_saved_by_transformers(torch, tmp_path, name):
    save_with_transformers(torch, tmp_path, SAVED[name])
    ids = np.random.default_rng(3).integers(0, SAVED[name]["vocab_size"], TOKENS).tolist()
    want = reference_logits(torch, reference(torch, tmp_path), ids)
    got = trivium.load(tmp_path, device="cpu", precision="float32").logits(ids)
    assert cp.relative_error(got, want) <= BOUND
    assert (got.argmax(1) == want.argmax(1)).all()


def test_a_sharded_checkpoint_saved_by_transformers(torch, tmp_path):
    save_with_transformers(torch, tmp_path, SAVED["a"], max_shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3
    ids = np.random.default_rng(4).integers(0, 320, TOKENS).tolist()
    want = reference_logits(torch, reference(torch, tmp_path), ids)
    got = trivium.load(tmp_path, device="cpu", precision="float32").logits(ids)
    assert cp.relative_error(got, want) <= BOUND


@pytest.mark.parametrize("name", MXFP4)
def test_mxfp4_checkpoints_dequantised_by_transformers(torch, tmp_path, name):
    from transformers import Mxfp4Config

    pytest.importorskip("accelerate", reason="accelerate is not installed: transformers needs it for MXFP4")
    case = CASES[name]
    cp.write_case(tmp_path, name)
    model = reference(torch, tmp_path, quantization_config=Mxfp4Config(dequantize=True))
    ids = cp.random_ids(case.config, TOKENS, 9)
    want = reference_logits(torch, model, ids)
    assert cp.relative_error(want, oracle.forward(cp.case_weights(name), case.config, ids)) <= BOUND
    got = trivium.load(tmp_path, device="cpu", precision="float32").logits(ids)
    assert cp.relative_error(got, want) <= BOUND


def test_greedy_continuation_equals_transformers_generate(torch, tmp_path):
    save_with_transformers(torch, tmp_path, SAVED["a"])
    model = reference(torch, tmp_path)
    ours = trivium.load(tmp_path, device="cpu", precision="float32")
    for seed in range(2):
        ids = np.random.default_rng(seed).integers(3, 320, 4 + 9 * seed).tolist()
        tokens = torch.tensor([ids])
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, min_new_tokens=40, max_new_tokens=40,
            eos_token_id=None,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert ours.generate(ids, max_tokens=40, ignore_eos=True).tokens == out


def test_bfloat16_logits_of_one_layer_are_near_the_references_float32(torch, tmp_path):
    """One layer, so that a token that goes to another expert changes no other token's."""
    save_with_transformers(torch, tmp_path, SAVED["one_layer_odd_group"])
    ids = np.random.default_rng(5).integers(0, 100, TOKENS).tolist()
    want = reference_logits(torch, reference(torch, tmp_path), ids)
    got = trivium.load(tmp_path, device="cpu", precision="bfloat16").logits(ids)
    assert np.median(np.abs(got - want)) <= 0.02 * want.std()
