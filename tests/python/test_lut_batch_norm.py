"""Batch norm in LUT language models: numpy, torch and the native loader."""

import json

import numpy as np
import pytest
import trivium
from trivium import _core, lut

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)


def small(vocab=257, **options):
    options = dict(synapse_meta=META, random_seed=11, use_batch_norm=True) | options
    return lut.LUTTransformer(vocab, 16, 8, 3, 2, 2, 4, 3, 2, **options)


def trained(**options):
    """A model whose norms are far from the identity."""
    model, rng = small(**options), np.random.default_rng(4)
    for norm in model.named_norms().values():
        norm.weight[:] = rng.uniform(0.3, 2, 16)
        norm.bias[:] = rng.standard_normal(16)
    for seed in range(3):
        model.forward(np.random.default_rng(seed).integers(0, 256, (4, 8)))
    return model


def random_norm(channels=3):
    norm, rng = lut.BatchNorm(channels), np.random.default_rng(1)
    norm.weight[:], norm.bias[:] = rng.standard_normal(channels), rng.standard_normal(channels)
    return norm


def test_gradients_are_finite_differences():
    norm, rng = random_norm(), np.random.default_rng(2)
    x, gy = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 3)).astype(np.float32)

    def objective(x, weight, bias):
        flat = x.reshape(-1, 3)
        normal = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        return float(((normal * weight + bias) * gy.reshape(-1, 3)).sum())

    values = [a.astype(np.float64) for a in (x, norm.weight, norm.bias)]
    norm.forward(x.astype(np.float32))
    gradients = [norm.backward(gy), norm.weight_gradient, norm.bias_gradient]
    for which, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            steps = []
            for h in (1e-5, -1e-5):
                moved = [v.copy() for v in values]
                moved[which][place] += h
                steps.append(objective(*moved))
            assert abs((steps[0] - steps[1]) / 2e-5 - gradient[place]) < 1e-4


def test_it_is_torchs_batch_norm():
    torch = pytest.importorskip("torch")
    ours, theirs, rng = random_norm(5), torch.nn.BatchNorm1d(5), np.random.default_rng(3)
    with torch.no_grad():
        theirs.weight[:], theirs.bias[:] = torch.from_numpy(ours.weight), torch.from_numpy(ours.bias)
    for _ in range(3):
        x = (3 * rng.standard_normal((7, 5)) + 1).astype(np.float32)
        there = torch.from_numpy(x).requires_grad_()
        y, gy = theirs(there), rng.standard_normal((7, 5)).astype(np.float32)
        y.backward(torch.from_numpy(gy))
        np.testing.assert_allclose(ours.forward(x), y.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(ours.backward(gy), there.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.running_mean, theirs.running_mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.running_var, theirs.running_var.numpy(), atol=1e-5)
    theirs.eval()
    np.testing.assert_allclose(ours.forward(x, training=False), theirs(there).detach().numpy(), atol=1e-5)


def test_an_empty_batch_and_evaluation_leave_the_averages_alone():
    norm = random_norm()
    before = {name: a.copy() for name, a in norm.state_dict().items()}
    y = norm.forward(np.zeros((0, 4, 3), np.float32))
    assert y.shape == (0, 4, 3) and norm.backward(y).shape == (0, 4, 3)
    norm.forward(np.ones((2, 3), np.float32), training=False)
    for name, value in norm.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_the_transformer_normalises_before_it_adds():
    model = small(dropout=0.0)
    tokens = np.random.default_rng(1).integers(0, 257, (3, 8))
    z = model.embedding[tokens].astype(np.float32)
    for i in range(2):
        for layer in (model.attention[i], model.ffn[i]):
            y = layer.forward(z, training=False).astype(np.float64)
            flat = y.reshape(-1, 16)
            z = z + ((y - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)).astype(np.float32)
    want = model.unembedder.forward(z, training=False)
    np.testing.assert_allclose(model.forward(tokens), want, atol=1e-5)


def test_norms_take_part_in_state_parameters_and_gradients(tmp_path):
    model, plain = trained(), small(use_batch_norm=False)
    assert model.num_parameters() - plain.num_parameters() == 4 * 2 * 16 and not plain.named_norms()
    logits = model.forward(np.random.default_rng(1).integers(0, 256, (2, 8)))
    model.backward(np.random.default_rng(2).standard_normal(logits.shape).astype(np.float32))
    for norm in model.named_norms().values():
        assert np.abs(norm.weight_gradient).max() > 0 and np.abs(norm.bias_gradient).max() > 0
    other = small(random_seed=12)
    other.load_state_dict(model.state_dict())
    tokens = np.arange(6)[None]
    np.testing.assert_array_equal(other.forward(tokens, False), model.forward(tokens, False))


@pytest.mark.parametrize("options", [{}, {"no_ffn": True}])
def test_saved_models_give_the_same_logits(tmp_path, options):
    """The loader puts scales into the weights, so that results differ by roundings."""
    model = trained(**options)
    model.save(tmp_path)
    loaded, tokens = trivium.load(tmp_path), list(b"def f(x)")
    want = model.forward(np.array([tokens]), training=False)[0]
    np.testing.assert_allclose(loaded.logits(tokens), want, atol=1e-4)
    again = lut.LUTTransformer.load(tmp_path)
    np.testing.assert_array_equal(again.forward(np.array([tokens]), training=False)[0], want)
    prompts = ["def f(x):", "R", "The quick brown fox"]
    for prompt, result in zip(prompts, loaded.generate(prompts, max_tokens=12, temperature=0)):
        assert loaded.generate(prompt, max_tokens=12, temperature=0).tokens == result.tokens


@pytest.mark.backend
def test_a_device_gives_the_logits_of_the_cpu(tmp_path, backend):
    trained().save(tmp_path)
    tokens = list(b"def f(x): return")
    want = trivium.load(tmp_path, device="cpu").logits(tokens)
    np.testing.assert_array_equal(trivium.load(tmp_path, device=backend).logits(tokens), want)


def test_bad_norms_are_explained(tmp_path):
    trained().save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name: np.array(t) for name, t in _core.load_safetensors(path).items()}
    name = "layers.1.ffn_norm.running_var"

    def expect(part, value):
        changed = {k: v for k, v in (tensors | {name: value}).items() if v is not None}
        _core.save_safetensors(path, changed)
        with pytest.raises(trivium.ModelFormatError) as error:
            trivium.load(tmp_path)
        assert name in str(error.value) and part in str(error.value) and "\n" not in str(error.value)

    expect("-1", np.full(16, -1, np.float32))
    expect("[17]", np.ones(17, np.float32))
    expect("float64", np.ones(16))
    expect("NaN", np.full(16, np.nan, np.float32))
    expect(name, None)
    config = json.loads((tmp_path / "config.json").read_text()) | {"use_batch_norm": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(trivium.ModelFormatError, match="use_batch_norm"):
        trivium.load(tmp_path)


BAD = {
    "channels": (lambda: lut.BatchNorm(0), "channels is 0"),
    "width": (lambda: random_norm().forward(np.zeros((2, 4), np.float32)), "x is [2, 4]"),
    "one row": (lambda: random_norm().forward(np.zeros((1, 3), np.float32)), "one row"),
    "no forward": (lambda: random_norm().backward(np.zeros((2, 3), np.float32)), "nothing was saved"),
    "state": (lambda: random_norm().load_state_dict({}), "running_var"),
    "variance": (
        lambda: random_norm().load_state_dict(
            random_norm().state_dict() | {"running_var": np.full(3, -1, np.float32)}
        ),
        "negative",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, part = BAD[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        call()
    assert part in str(error.value) and "\n" not in str(error.value)
