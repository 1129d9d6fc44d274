"""xLSTM language models against transformers' xLSTMForCausalLM, and what the runtime promises of every model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from getp_runner import getp, read_jsonl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402

BOUND = 1e-4  # relative L2 error of float32 logits
# transformers' native path wants query and value dimensions that are multiples of 64
CONFIGS = {
    "two_heads": {"vocab_size": 97, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2},
    "four_heads_wide_ffn": {
        "vocab_size": 211, "hidden_size": 256, "num_hidden_layers": 3, "num_heads": 4, "ffn_proj_factor": 3.1,
        "ffn_round_up_to_multiple_of": 32,
    },
    "one_head_small_caps": {
        "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 1, "num_heads": 1, "qk_dim_factor": 1.0,
        "gate_soft_cap": 5.0, "output_logit_soft_cap": 7.0,
    },
    "value_dim_below_query_dim": {
        "vocab_size": 120, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2, "qk_dim_factor": 2.0,
        "v_dim_factor": 0.5,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed: no reference to compare with")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if not hasattr(transformers, "xLSTMForCausalLM"):
        pytest.skip("this transformers has no xLSTMForCausalLM")
    module.set_num_threads(2)
    return module


@pytest.fixture(scope="module")
def saved(torch, tmp_path_factory):
    """Folder and reference model of each configuration."""
    from transformers import xLSTMConfig, xLSTMForCausalLM

    made = {}
    for seed, (name, arguments) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        cfg = xLSTMConfig(chunk_size=16, autocast_kernel_dtype="float32", eos_token_id=2, **arguments)
        model = xLSTMForCausalLM(cfg).eval()
        with torch.no_grad():
            for key, p in model.named_parameters():  # fresh gates are constant and would hide mistakes
                if "gate_preact.bias" in key:
                    p.normal_(0, 3)
                elif p.ndim > 1:
                    p.normal_(0, 0.2)
                else:
                    p.normal_(1, 0.2)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        made[name] = folder, model
    return made


def some_ids(name, count, seed=0):
    return np.random.default_rng(seed).integers(3, CONFIGS[name]["vocab_size"], count).tolist()


def reference_logits(torch, model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=True).logits[0].numpy()


def relative_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", [1, 5, 16, 17, 40, 130])
def test_logits_match_transformers(torch, saved, name, count):
    folder, model = saved[name]
    ids = some_ids(name, count)
    got = trivium.load(folder, precision="float32").logits(ids)
    assert relative_error(got, reference_logits(torch, model, ids)) <= BOUND


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_match_transformers(torch, saved, name):
    folder, model = saved[name]
    prompt = some_ids(name, 9, 1)
    want = list(prompt)
    for _ in range(64):
        want.append(int(reference_logits(torch, model, want)[-1].argmax()))
    got = trivium.load(folder, precision="float32").generate(prompt, max_tokens=64, ignore_eos=True)
    assert got.tokens == want[len(prompt) :]


def test_logits_and_greedy_tokens_match_the_oracle(saved):
    folder, reference = saved["two_heads"]
    weights = {name: t.double().numpy() for name, t in reference.state_dict().items()}
    model, ids = trivium.load(folder, precision="float32"), some_ids("two_heads", 40, 6)
    want, state = oracle.lm_forward(weights, np.array([ids]), 2, 2, L=16)
    for count in range(1, 41):
        assert relative_error(np.array(model.logits(ids[:count])), want[0, :count]) <= BOUND, count
    tokens = []
    for _ in range(64):
        tokens.append(int(want[0, -1].argmax()))
        want, state = oracle.lm_forward(weights, np.array([tokens[-1:]]), 2, 2, state=state, L=16)
    assert model.generate(ids, max_tokens=64, ignore_eos=True).tokens == tokens


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_are_bit_equal_for_any_cut(saved, precision):
    """logits() cuts ids into steps of 256: the last of 257 comes from a decode step, those of 300 from a short one."""
    folder, _ = saved["two_heads"]
    model = trivium.load(folder, precision=precision)
    ids = some_ids("two_heads", 300, 2)
    whole = np.array(model.logits(ids))
    for count in (1, 7, 8, 9, 63, 64, 65, 128, 255, 256, 257, 258, 290):
        np.testing.assert_array_equal(np.array(model.logits(ids[:count])), whole[:count])


def test_tokens_do_not_depend_on_the_batch(saved):
    folder, _ = saved["four_heads_wide_ffn"]
    model = trivium.load(folder, precision="float32")
    prompts = [some_ids("four_heads_wide_ffn", n, n) for n in (1, 3, 8, 20, 63, 64, 65, 100, 2)]
    together = model.generate(prompts, max_tokens=20, ignore_eos=True)
    for prompt, result in zip(prompts, together):
        assert result.tokens == model.generate(prompt, max_tokens=20, ignore_eos=True).tokens


def test_getp_runs_the_model(saved, tmp_path):
    folder, _ = saved["two_heads"]
    model = trivium.load(folder, precision="float32")
    rows = [{"prompt": some_ids("two_heads", n, n)} for n in (1, 5, 70)]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    getp("getp", folder, "-i", source, "-o", output, "--max-tokens", 12, "--precision", "float32")
    results = read_jsonl(output)
    for row, result in zip(rows, results, strict=True):
        assert result["tokens"] == model.generate(row["prompt"], max_tokens=12).tokens


def test_chat_says_that_there_is_no_format(saved):
    folder, _ = saved["two_heads"]
    with pytest.raises((ValueError, RuntimeError), match="token"):
        trivium.load(folder).chat([{"role": "user", "content": "hello"}])


def test_chat_is_refused_beside_a_tokenizer_too():
    folder = trivium.demo_model("xlstm")
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the xLSTM demo model is not in {folder}")
    model = trivium.load(folder, precision="float32")
    assert model.generate("Return the", max_tokens=1).tokens  # it has a tokenizer, but no chat format
    with pytest.raises((ValueError, RuntimeError)) as error:
        model.chat([{"role": "user", "content": "hello"}])
    assert "chat" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "shards"])
def test_half_precision_and_sharded_checkpoints_match_transformers(torch, saved, tmp_path, stored):
    from transformers import xLSTMForCausalLM

    folder, _ = saved["four_heads_wide_ffn"]
    reference = xLSTMForCausalLM.from_pretrained(folder).eval()
    if stored == "shards":
        reference.save_pretrained(tmp_path, max_shard_size="200KB")
        assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    else:
        reference.to(getattr(torch, stored)).save_pretrained(tmp_path)
    ids = some_ids("four_heads_wide_ffn", 37, 4)
    got = trivium.load(tmp_path, precision="float32").logits(ids)
    assert relative_error(got, reference_logits(torch, reference.float(), ids)) <= BOUND


def test_state_does_not_grow_with_the_sequence(saved):
    folder, _ = saved["two_heads"]
    model = trivium.load(folder, precision="float32")
    result = model.generate(some_ids("two_heads", 600, 5), max_tokens=300, ignore_eos=True)
    assert len(result.tokens) == 300


def test_a_tokenizer_with_nfc_is_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    texts = [
        "cafe\u0301 na\u00efve A\u030a \u212b",
        "s\u0323\u0307 \u1100\u1161\u11a8 \u0958",
        "plain text, it's 42!",
    ] * 3
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.normalizer = tokenizers.normalizers.NFC()
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    reference.train_from_iterator(texts, trainer)
    reference.save(str(tmp_path / "tokenizer.json"))
    mine = trivium.Tokenizer(str(tmp_path))
    for text in texts:
        assert list(mine.encode(text)) == reference.encode(text).ids


def rewrite(folder, target, change, config=None):
    from safetensors.numpy import load_file, save_file

    tensors = change(dict(load_file(folder / "model.safetensors")))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, target / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_other_tensor_names_are_read(saved, tmp_path):
    folder, _ = saved["two_heads"]
    want = np.array(trivium.load(folder, precision="float32").logits(list(range(40))))

    def aliases(tensors):
        out = {}
        for key, value in tensors.items():
            for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
                key = key.replace(f"mlstm_layer.{short}.", f"mlstm_layer.{long}.")
            out[key.replace("backbone.embeddings.", "embedding.")] = value
        return out

    def fused(tensors):
        for layer in range(2):
            p = f"backbone.blocks.{layer}."
            take = lambda *names, p=p: np.concatenate([tensors.pop(p + n) for n in names])
            m = "mlstm_layer."
            tensors[p + m + "qkv_opreact.weight"] = take(
                *(m + n + ".weight" for n in ("q", "k", "v", "ogate_preact"))
            )
            for kind in ("weight", "bias"):
                tensors[p + m + f"ifgate_preact.{kind}"] = take(
                    *(m + n + f"_preact.{kind}" for n in ("igate", "fgate"))
                )
            tensors[p + "ffn.proj_up_gate_z.weight"] = take("ffn.proj_up_gate.weight", "ffn.proj_up.weight")
        return tensors

    for name, change, config in (("aliases", aliases, {}), ("fused", fused, {"weight_mode": "fused"})):
        target = tmp_path / name
        target.mkdir()
        rewrite(folder, target, change, config)
        np.testing.assert_array_equal(
            np.array(trivium.load(target, precision="float32").logits(list(range(40)))), want
        )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_heads": 3}, ["num_heads", "3"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"weight_mode": "other"}, ["weight_mode", "other"]),
        ({"use_bias": True}, ["use_bias"]),
        ({"chunkwise_kernel": "chunkwise--triton_xl_chunk_siging"}, ["chunkwise_kernel", "siging"]),
        ({"gate_soft_cap": -1}, ["gate_soft_cap", "-1"]),
        ({"norm_eps": 0}, ["norm_eps"]),
        ({"vocab_size": 98}, ["backbone.embeddings.weight", "[97, 128]", "[98, 128]"]),
        ({"num_hidden_layers": 3}, ["missing tensors", "backbone.blocks.2.norm_mlstm.weight"]),
    ],
)
def test_bad_configs_are_named(saved, tmp_path, change, words):
    folder, _ = saved["two_heads"]
    rewrite(folder, tmp_path, lambda t: t, change)
    if change.get("hidden_size", 0) is None:
        settings = json.loads((tmp_path / "config.json").read_text())
        settings.pop("hidden_size"), settings.pop("embedding_dim", None)
        (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(trivium.ModelFormatError) as error:
        trivium.load(tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_extra_tensor_is_named(saved, tmp_path):
    folder, _ = saved["two_heads"]
    extra = {"backbone.blocks.9.ffn.proj_up.weight": np.zeros((2, 2), np.float32)}
    rewrite(folder, tmp_path, lambda t: t | extra, {})
    with pytest.raises(trivium.ModelFormatError) as error:
        trivium.load(tmp_path)
    assert str(error.value).endswith(
        'model.safetensors: 1 tensor(s) are not used, the first is "backbone.blocks.9.ffn.proj_up.weight"'
    )


def test_the_demo_model_speaks():
    folder = trivium.demo_model("xlstm")
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the xLSTM demo model is not in {folder}")
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size <= 6e6
    result = trivium.load(folder, precision="float32").generate("Return the", max_tokens=20)
    assert result.text and result.text.isprintable() or "\n" in result.text
