"""LUTTransformer against a composition of oracle layers; saved folders through trivium.load and getp."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import lut

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import lut_oracle as oracle  # noqa: E402

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)


def small(vocab=257, context=8, layers=2, **options):
    options = dict(synapse_meta=META, random_seed=11) | options
    return lut.LUTTransformer(vocab, 16, context, 3, layers, 2, 4, 3, 2, **options)


def wide(layer):
    return layer.weight.astype(np.float64)


class Reference:
    """The same network from oracle functions, in float64."""

    def __init__(self, model):
        self.model = model

    def forward(self, tokens):
        m = self.model
        z = m.embedding.astype(np.float64)[tokens]
        self.saved = []
        B, S = tokens.shape
        for i, attention in enumerate(m.attention):
            pe = attention.positional_embeddings.astype(np.float64)[: S - 1]
            y, saved = oracle.seq_forward(z, attention.anchors, pe, wide(attention))
            self.saved.append(saved)
            z = z + y
            y, saved = oracle.fc_forward(z.reshape(B * S, -1), m.ffn[i].anchors, wide(m.ffn[i]))
            self.saved.append(saved)
            z = z + y.reshape(z.shape)
        y, saved = oracle.fc_forward(z.reshape(B * S, -1), m.unembedder.anchors, wide(m.unembedder))
        self.saved.append(saved)
        return y.reshape(B, S, -1)

    def backward(self, g):
        m, (B, S, _) = self.model, g.shape
        E, out = m.embedding.shape[1], {}
        gz, out["unembedder"] = oracle.fc_backward(
            g.reshape(B * S, -1), self.saved[-1], m.unembedder.anchors, wide(m.unembedder), E
        )
        gz = gz.reshape(B, S, E)
        for i in reversed(range(len(m.attention))):
            gx, out[f"layers.{i}.ffn"] = oracle.fc_backward(
                gz.reshape(B * S, E), self.saved[2 * i + 1], m.ffn[i].anchors, wide(m.ffn[i]), E
            )
            gz = gz + gx.reshape(gz.shape)
            a = m.attention[i]
            gx, gpe, gw = oracle.seq_backward(gz, self.saved[2 * i], a.anchors, wide(a), E, a.positional_dim)
            out[f"layers.{i}.attention"], out[f"layers.{i}.pe"] = gw, gpe
            gz = gz + gx
        return out


def test_the_transformer_is_the_oracles_composition():
    model = small()
    reference = Reference(model)
    tokens = np.random.default_rng(1).integers(0, 257, (2, 8))
    logits = model.forward(tokens)
    np.testing.assert_allclose(logits, reference.forward(tokens), atol=1e-5)
    g = np.random.default_rng(2).standard_normal(logits.shape).astype(np.float32)
    model.backward(g)
    want = reference.backward(g.astype(np.float64))
    for name, layer in model.named_layers().items():
        np.testing.assert_allclose(layer.weight_gradient, want[name], atol=2e-4)
        if layer.positional_dim:
            np.testing.assert_allclose(
                layer.positional_gradient, want[name.replace("attention", "pe")], atol=2e-4
            )


def test_sgd_steps_follow_the_oracle():
    """32 steps of plain SGD, resynchronised each step because near-ties may flip a bit."""
    for policy in ("dense", "row_sparse", "internal"):
        model = small(vocab=32, layers=1, weights_gradient_policy=policy)
        rng = np.random.default_rng(3)
        if policy == "internal":
            model.set_learning_rate_hook(lambda weight: 0.01)
        for _ in range(32):
            tokens = rng.integers(0, 32, (2, 8))
            before = {name: layer.weight.copy() for name, layer in model.named_layers().items()}
            reference = Reference(model)
            g = rng.standard_normal(reference.forward(tokens).shape).astype(np.float32)
            want = reference.backward(g.astype(np.float64))
            model.forward(tokens)
            model.backward(g)
            for name, layer in model.named_layers().items():
                if policy == "dense":
                    layer.weight -= np.float32(0.01) * layer.weight_gradient
                elif policy == "row_sparse":
                    layer.weight -= np.float32(0.01) * layer.weight_gradient.dense(layer.weight.shape)
                np.testing.assert_allclose(
                    layer.weight, before[name] - 0.01 * want[name], atol=1e-3, rtol=1e-3
                )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lut")
    small().save(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return trivium.load(folder, device="cpu")


def test_a_saved_model_gives_the_same_logits(folder, loaded):
    again = lut.LUTTransformer.load(folder)
    text = list(b"def f(")
    want = small().forward(np.array([text]), training=False)[0]
    np.testing.assert_array_equal(again.forward(np.array([text]), training=False)[0], want)
    np.testing.assert_array_equal(loaded.logits(text), want)


def test_positions_beyond_the_context_see_the_last_ones(loaded):
    """Each layer attends to context - 1 cached predecessors; an oracle loop with explicit windows."""
    model = small()
    tokens = np.random.default_rng(5).integers(0, 256, 30)
    z = model.embedding[tokens].astype(np.float64)
    for i, a in enumerate(model.attention):
        y = np.zeros_like(z)
        for j in range(1, len(tokens)):
            window = z[max(0, j - 7) : j + 1][None]
            pe = a.positional_embeddings[: window.shape[1] - 1].astype(np.float64)
            y[j] = oracle.seq_forward(window, a.anchors, pe, wide(a))[0][0, -1]
        z = z + y
        z = z + oracle.fc_forward(z, model.ffn[i].anchors, wide(model.ffn[i]))[0]
    want = oracle.fc_forward(z, model.unembedder.anchors, wide(model.unembedder))[0]
    np.testing.assert_allclose(loaded.logits(tokens), want, atol=1e-5)


def test_text_does_not_depend_on_the_batch(loaded):
    prompts = ["def f(x):", "R", "The quick brown fox", "αβγ", "x" * 40]
    together = loaded.generate(prompts, max_tokens=20, temperature=0)
    for prompt, result in zip(prompts, together):
        alone = loaded.generate(prompt, max_tokens=20, temperature=0)
        assert alone.tokens == result.tokens


def test_bytes_are_tokens(loaded):
    text = "naïve 日本\n\x00\x7f"
    assert loaded.tokenizer.encode(text) == list(text.encode())
    assert loaded.tokenizer.decode(list(text.encode())) == text
    assert loaded.config["model_type"] == "lut_transformer" and loaded.precision == "float32"


def test_getp_runs_a_saved_model(folder, loaded, tmp_path):
    getp = Path(trivium.__file__).parent / "bin" / "getp"
    prompts = ["Return the", "A class"]
    (tmp_path / "in.txt").write_text("2\n" + "".join(f"{p}\n" for p in prompts))
    run = subprocess.run(
        [getp, folder, "-m", "getp", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.txt", "-n", "30"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert len(lines) == 2
    text = subprocess.run(
        [getp, folder, "-m", "generate", "-i", "Return the", "-n", "30"], capture_output=True, timeout=120
    )
    assert text.returncode == 0, text.stderr


BAD_CONFIGS = {
    "context_size": (1, '"context_size" is 1'),
    "positional_dim": (29, "positional_dim"),
    "num_heads": (0, '"num_heads" is 0'),
    "n_detectors": ("4", '"n_detectors" is not an integer'),
    "eos_token_id": (300, "eos_token_id"),
    "embedding_dim": (17, "embedding"),
    "cmp_eps": (-1, "cmp_eps"),
}


@pytest.mark.parametrize("key", BAD_CONFIGS)
def test_bad_configs_are_explained(key, folder, tmp_path):
    value, part = BAD_CONFIGS[key]
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(trivium.ModelFormatError) as error:
        trivium.load(tmp_path)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_bad_weights_are_explained(folder, tmp_path):
    from trivium import _core

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    tensors = {name: np.array(t) for name, t in _core.load_safetensors(folder / "model.safetensors").items()}

    def expect(part, **changed):
        _core.save_safetensors(
            tmp_path / "model.safetensors", {k: v for k, v in (tensors | changed).items() if v is not None}
        )
        with pytest.raises(trivium.ModelFormatError) as error:
            trivium.load(tmp_path)
        assert part in str(error.value)

    anchors = tensors["unembedder.anchors"].copy()
    anchors[0, 0, 0] = 16
    expect("anchors hold 16", **{"unembedder.anchors": anchors})
    expect("unembedder.weight", **{"unembedder.weight": None})
    expect("[257, 16]", embedding=np.zeros((256, 16), np.float32))
    weight = tensors["layers.0.ffn.weight"].copy()
    weight[0, 0, 0] = np.nan
    expect("layers.0.ffn.weight", **{"layers.0.ffn.weight": weight})


BAD = {
    "vocab": (lambda: small(vocab=300).save("/nonexistent"), "vocab_size is 300"),
    "context": (lambda: small(context=1), "context_size is 1"),
    "dropout": (lambda: small(dropout=1.0), "dropout is 1.0"),
    "tokens": (lambda: small().forward(np.zeros((1, 9), int)), "tokens are [1, 9]"),
    "token": (lambda: small().forward(np.full((1, 2), 257)), "257 to 257"),
    "state": (lambda: small().load_state_dict({"other.weight": np.zeros(1)}), "'other.weight'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, part = BAD[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        call()
    assert part in str(error.value) and "\n" not in str(error.value)


def test_dropout_keeps_the_scale_and_the_gradient_its_mask():
    model = small(dropout=0.5)
    tokens = np.random.default_rng(1).integers(0, 257, (4, 8))
    logits = model.forward(tokens)
    assert (logits != model.forward(tokens, training=False)).any()
    model.forward(tokens)
    model.backward(np.ones_like(logits))
    assert not model._masks
