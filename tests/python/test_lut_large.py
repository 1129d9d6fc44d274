"""LUT layers at the size of the reference language model, and long sequences, on the device that --backend names."""

import numpy as np
import pytest
import trivium
from trivium import _core, lut

pytestmark = [pytest.mark.backend, pytest.mark.slow]


@pytest.fixture(autouse=True)
def not_emulated(backend):
    if backend.startswith("emu"):
        pytest.skip("too large for an emulated device")


def random_layer(device, inputs, tables, pairs, outputs, **options):
    meta = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
    return lut.LUTLayer(
        inputs, pairs, tables, outputs, synapse_meta=meta, random_seed=1, device=device, **options
    )


def test_an_attention_layer_of_the_reference_model(backend):
    """32 sequences of 32, 64 tables of 2^16 rows of 32 (537 MB), 1.02 M row reads; gradients of the used rows."""
    layer = random_layer(backend, 32, 64, 6, 32, sequence_length=32, positional_dim=4)
    rng = np.random.default_rng(1)
    x, gy = (rng.standard_normal((32, 32, 32)).astype(np.float32) for _ in range(2))
    there = [trivium.Tensor(a, device=backend) for a in (x, gy)]
    y, saved = layer.native.forward(layer.weight, there[0], layer.positional_embeddings)
    index, pe = saved.index.to("cpu").numpy(), saved.pe_index.to("cpu").numpy()
    weight = np.asarray(layer.weight).reshape(-1, 32)
    want, cells = np.zeros((32, 32, 32)), {}
    for j in range(1, 32):
        for i in range(j):
            cell = np.arange(64) << 16 | index[:, j] << 10 | index[:, i] << 4 | pe[j - i - 1]
            want[:, j] += weight[cell].sum(1, dtype=np.float64)
            cells[i, j] = cell
    np.testing.assert_allclose(y.to("cpu").numpy(), want, atol=2e-3)
    g = layer.native.backward(layer.weight, there[1], saved, policy="rows")
    rows, gw = g.rows.numpy(), g.gw.to("cpu").numpy().reshape(-1, 32)
    used = np.unique(np.concatenate([cell.ravel() for cell in cells.values()]))
    np.testing.assert_array_equal(rows, used)
    np.testing.assert_allclose(np.vdot(gw, weight[rows]), np.vdot(gy, want), rtol=1e-3)
    wide = np.zeros(gw.shape)
    for (_, j), cell in cells.items():
        np.add.at(wide, np.searchsorted(rows, cell).ravel(), np.repeat(gy[:, j], 64, axis=0))
    np.testing.assert_allclose(gw, wide, atol=1e-3)


def test_a_long_sequence_adds_every_earlier_position(backend):
    """S = 1024: 523 776 pairs a table, whatever the distance."""
    layer = random_layer(backend, 16, 8, 3, 32, sequence_length=1024, positional_dim=4)
    weight = trivium.Tensor(np.ones(layer.native.weight_shape, np.float32), device=backend)
    x = np.random.default_rng(2).standard_normal((1, 1024, 16)).astype(np.float32)
    there = trivium.Tensor(x, device=backend)
    y, saved = layer.native.forward(weight, there, layer.positional_embeddings)
    want = np.repeat(8.0 * np.arange(1024)[:, None], 32, axis=1)
    np.testing.assert_array_equal(y.to("cpu").numpy()[0], want)
    ones = trivium.Tensor(np.ones((1, 1024, 32), np.float32), device=backend)
    g = layer.native.backward(weight, ones, saved)
    gw = g.gw.to("cpu").numpy()
    np.testing.assert_array_equal(gw.sum((1, 2)), np.full(8, 32 * 523776.0))
    assert not g.gx.to("cpu").numpy().any()  # all rows are equal: no flip changes anything


def test_many_samples_and_wide_rows(backend):
    layer = random_layer(backend, 8, 2, 3, 4097)
    x = np.random.default_rng(3).integers(-3, 4, (70000, 8)).astype(np.float32)
    index = np.zeros((70000, 2), np.int64)
    for t in range(2):
        for r, (a, b) in enumerate(layer.anchors[t]):
            index[:, t] |= (x[:, a] > x[:, b]).astype(np.int64) << r
    native = _core.LutLayer(8, 1, layer.anchors, device=backend)
    one = np.asarray(layer.weight)[..., :1].copy()
    y, saved = native.forward(trivium.Tensor(one, device=backend), trivium.Tensor(x, device=backend))
    np.testing.assert_array_equal(saved.index.to("cpu").numpy(), index)
    want = one[0, index[:, 0]] + one[1, index[:, 1]]
    np.testing.assert_array_equal(y.to("cpu").numpy(), want)
    few = trivium.Tensor(x[:300], device=backend)
    wide, _ = layer.native.forward(layer.weight, few, training=False)
    weight = np.asarray(layer.weight)
    np.testing.assert_array_equal(
        wide.to("cpu").numpy(), weight[0, index[:300, 0]] + weight[1, index[:300, 1]]
    )
