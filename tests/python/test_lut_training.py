"""Training of LUT models step by step beside the oracle, in the configuration of the reference's own test, and a toy
task, on the device that --backend names (lut.md 8 and 11.3)."""

import numpy as np
import pytest
import trivium
from test_lut_model import Reference
from trivium import lut

pytestmark = pytest.mark.backend
META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
RATE = 0.01
OPTIONS = {
    "dense": {},
    "row_sparse": {"weights_gradient_policy": "row_sparse"},
    "internal": {"weights_gradient_policy": "internal"},
    "int32": {"summation": "int32", "int_rescaler": 10.0},
}


def transformer(**options):
    """V 256, E 32, S 8, Npe 4, 2 layers of 2 heads, Nt 4, Nc 3."""
    return lut.LUTTransformer(256, 32, 8, 4, 2, 2, 4, 3, synapse_meta=META, random_seed=5, **options)


def step(layer):
    """Plain SGD on what backward left in a layer."""
    g = layer.weight_gradient
    if g is not None:
        weight = layer.state_dict()["weight"]
        g = g.dense(weight.shape) if isinstance(g, lut.RowGradient) else g
        layer.weight = layer._on_device(weight - np.float32(RATE) * g)
    if layer.positional_dim:
        pe = layer.state_dict()["positional_embeddings"] - np.float32(RATE) * layer.positional_gradient
        layer.positional_embeddings = layer._on_device(pe)


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_of_the_reference_configuration_follow_the_oracle(backend, name):
    """Logits, tables and embeddings after each step; the oracle starts from our values, as near-ties may flip."""
    emulated = backend.startswith("emu")
    for batch, steps in ((1, 2),) if emulated else ((1, 32), (4, 32)):
        follow(backend, name, batch, steps)


def follow(backend, name, batch, steps):
    model, mirror = transformer(device=backend, **OPTIONS[name]), transformer()
    if name == "internal":
        model.set_learning_rate_hook(lambda weight: RATE)
    rng = np.random.default_rng(batch)
    for number in range(steps):
        tokens = rng.integers(0, 256, (batch, 8))
        mirror.load_state_dict(model.state_dict())
        reference = Reference(mirror)
        want = reference.forward(tokens)
        np.testing.assert_allclose(model.forward(tokens, training=False), want, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(model.forward(tokens), want, atol=1e-3, rtol=1e-3)
        g = rng.standard_normal(want.shape).astype(np.float32)
        gradients = reference.backward(g.astype(np.float64))
        model.backward(g)
        before = mirror.named_layers()
        for key, layer in model.named_layers().items():
            step(layer)
            after = before[key].weight - RATE * gradients[key]
            state = layer.state_dict()
            np.testing.assert_allclose(
                state["weight"], after, atol=1e-3, rtol=1e-3, err_msg=f"{number} {key}"
            )
            if layer.positional_dim:
                after = before[key].positional_embeddings - RATE * gradients[key.replace("attention", "pe")]
                got = state["positional_embeddings"]
                np.testing.assert_allclose(got, after, atol=1e-3, rtol=1e-3, err_msg=f"{number} {key}")


def toy_losses(device, steps):
    """Parity of three order relations on 8 inputs with 16 detectors."""
    rng = np.random.default_rng(1)
    layer = lut.LUTLayer(8, 6, 16, 1, random_seed=5, device=device)
    # Every detector sees the three relations, so that the task is learnable at all.
    anchors = layer.anchors.copy()
    anchors[:, :3] = [[0, 1], [2, 3], [4, 5]]
    layer.load_state_dict({"anchors": anchors, "weight": layer.state_dict()["weight"]})
    losses = []
    for _ in range(steps):
        x = rng.standard_normal((64, 8)).astype(np.float32)
        want = np.sign(x[:, 0] - x[:, 1]) * np.sign(x[:, 2] - x[:, 3]) * np.sign(x[:, 4] - x[:, 5])
        error = layer.forward(x)[:, 0] - want
        losses.append(float(np.mean(error**2)))
        layer.backward(error[:, None] / 16)
        weight = layer.state_dict()["weight"] - np.float32(0.5) * layer.weight_gradient
        layer.weight = layer._on_device(weight)
    return losses


def test_a_toy_task_is_learned(backend):
    """The loss falls by ten; an emulated device takes the CPU's first steps, bit for bit."""
    if backend.startswith("emu"):
        assert toy_losses(backend, 4) == toy_losses("cpu", 4)
        return
    losses = toy_losses(backend, 300)
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 10


def test_queued_results_are_there_when_they_are_read(backend):
    layer = lut.LUTLayer(6, 3, 4, 5, synapse_meta=META, random_seed=1, device=backend)
    x = trivium.Tensor(np.random.default_rng(1).standard_normal((7, 6), np.float32), device=backend)
    want = None
    for read in (
        lambda y: y.to("cpu").numpy(),
        lambda y: trivium.Tensor(y, copy=True).to("cpu").numpy(),
        lambda y: y.to("bfloat16").to("float32").to("cpu").numpy(),
        lambda y: np.from_dlpack(y, device="cpu") if backend != "cpu" else y.numpy(),
    ):
        y, _ = layer.native.forward(layer.weight, x)
        got = read(y)
        want = got if want is None else want
        np.testing.assert_allclose(got, want, rtol=2**-8)
    trivium.synchronize(backend)
    assert want.all()
