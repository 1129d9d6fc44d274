"""trivium.lut: layers against the oracle, policies, connectivity, saving, and every bad argument."""

import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import _core, lut
from trivium.lut import connectivity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import lut_oracle as oracle  # noqa: E402


def noisy(low=-1.0):
    return lut.SynapseMeta(min_weight=low, initial_weight=low, initial_noise_level=-2 * low)


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max(initial=0)))


@pytest.mark.parametrize("outputs", [1, 5, 33])
@pytest.mark.parametrize("seed", [1, 2])
def test_rows_match_the_oracle(seed, outputs):
    rng = np.random.default_rng(seed)
    layer = lut.LUTLayer(7, 3, 9, outputs, synapse_meta=noisy(), random_seed=seed)
    x, gy = (
        rng.standard_normal((6, 7)).astype(np.float32),
        rng.standard_normal((6, outputs)).astype(np.float32),
    )
    want, saved = oracle.fc_forward(x.astype(np.float64), layer.anchors, layer.weight.astype(np.float64))
    gx, gw = oracle.fc_backward(
        gy.astype(np.float64), saved, layer.anchors, layer.weight.astype(np.float64), 7
    )
    close(layer.forward(x), want)
    close(layer.backward(gy), gx)
    close(layer.weight_gradient, gw)


@pytest.mark.parametrize("npe", [0, 2])
def test_sequences_match_the_oracle(npe):
    rng = np.random.default_rng(npe)
    layer = lut.LUTLayer(
        6, 2, 4, 5, sequence_length=6, positional_dim=npe, synapse_meta=noisy(), random_seed=3
    )
    x, gy = (
        rng.standard_normal((2, 6, 6)).astype(np.float32),
        rng.standard_normal((2, 6, 5)).astype(np.float32),
    )
    pe = layer.positional_embeddings if npe else np.zeros((5, 4, 0))
    wide = [np.asarray(a, np.float64) for a in (x, pe, layer.weight, gy)]
    want, saved = oracle.seq_forward(wide[0], layer.anchors, wide[1], wide[2])
    gx, gpe, gw = oracle.seq_backward(wide[3], saved, layer.anchors, wide[2], 6, npe)
    close(layer.forward(x), want)
    close(layer.backward(gy), gx)
    close(layer.weight_gradient, gw)
    if npe:
        close(layer.positional_gradient, gpe)


@pytest.mark.parametrize("sliced", [False, True])
def test_product_modes_match_the_oracle(sliced):
    rng = np.random.default_rng(7)
    layer = lut.LUTLayer(
        3,
        3,
        4,
        5,
        sequence_length=4,
        positional_dim=3,
        concatenation_product=False,
        sliced_product_mode=sliced,
        synapse_meta=noisy(),
        random_seed=1,
    )
    x, gy = (
        rng.standard_normal((2, 4, 3)).astype(np.float32),
        rng.standard_normal((2, 4, 5)).astype(np.float32),
    )
    wide = [np.asarray(a, np.float64) for a in (x, layer.positional_embeddings, layer.weight, gy)]
    y, (g1, g2, gpe, gw) = oracle.product_forward_backward(
        wide[0], wide[0], layer.anchors, wide[1], wide[2], wide[3], sliced
    )
    close(layer.forward(x), y)
    close(layer.backward(gy), g1 + g2)
    close(layer.weight_gradient, gw)
    close(layer.positional_gradient, gpe)


def projection(**options):
    return lut.ProjectionLUTLayer((8, 7), (6, 9), 3, 5, 2, 4, 3, synapse_meta=noisy(), **options)


def convolution(**options):
    return lut.Conv2DLUTLayer(
        (6, 7),
        3,
        2,
        (2, 1),
        receptive_field_shape=(3, 4),
        receptive_field_stride=(1, 2),
        lut_receptive_field_shape=2,
        lut_receptive_field_stride=2,
        synapse_meta=noisy(),
        **options,
    )


@pytest.mark.parametrize("make", [projection, convolution])
def test_sparse_layers_match_the_oracle(make):
    layer = make(random_seed=5)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, *layer.input_shape)).astype(np.float32)
    y = layer.forward(x)
    assert y.shape == (3, *layer.output_shape)
    gy = rng.standard_normal(y.shape).astype(np.float32)
    # The shared target lists, expanded to one for each cell.
    cells, tables = layer.native.cells, layer.anchors.shape[0]
    degrees = np.repeat(np.diff(layer.targets.pointers), cells)
    ptr = np.concatenate([[0], np.cumsum(degrees)])
    lists = np.split(layer.targets.targets, layer.targets.pointers[1:-1])
    col = np.concatenate([np.tile(one, cells) for one in lists])
    wide, flat_x, flat_gy = (
        layer.weight.astype(np.float64),
        x.reshape(3, -1).astype(np.float64),
        gy.reshape(3, -1),
    )
    want, saved = oracle.sparse_forward(flat_x, layer.anchors, ptr, col, wide, cells, layer.n_outputs)
    gx, gval = oracle.sparse_backward(
        flat_gy.astype(np.float64), saved, layer.anchors, ptr, col, wide, cells, flat_x.shape[1]
    )
    assert len(layer.anchors) == tables
    close(y.reshape(3, -1), want)
    close(layer.backward(gy).reshape(3, -1), gx)
    close(layer.weight_gradient, gval)


def test_projection_connects_what_lies_inside_its_rectangles():
    mask = np.zeros((8, 7), bool)
    mask[:, 0] = True
    layer = projection(input_sparsity_mask=mask, random_seed=2)
    assert not np.isin(layer.anchors % 7, 0).any()
    for group in range(5):
        first, second = (
            layer.targets.targets[slice(*layer.targets.pointers[t : t + 2])]
            for t in (2 * group, 2 * group + 1)
        )
        np.testing.assert_array_equal(first, second)
        rows, columns = first // 9, first % 9
        assert np.ptp(rows) <= 3 and np.ptp(columns) <= 3
    grid = lut.ProjectionLUTLayer(
        (8, 8), (8, 8), 2, 4, 1, 3, 2, detectors_sampling_policy=lut.Sampling("grid", 2, stride=3)
    )
    np.testing.assert_array_equal(grid.anchors.reshape(4, -1).min(1) // 8 >= [1, 1, 4, 4], True)


def test_convolution_looks_through_its_windows():
    layer = convolution(random_seed=1)
    assert layer.detectors_grid == (8, 4) and layer.output_shape == (8, 2)
    for cell, anchors in enumerate(layer.anchors):
        y, x = cell // 4 // 2, cell % 4 // 2 * 2
        assert ((anchors // 7 >= y) & (anchors // 7 < y + 3)).all()
        assert ((anchors % 7 >= x) & (anchors % 7 < x + 4)).all()


@pytest.mark.parametrize(
    "make", [lambda **o: lut.LUTLayer(6, 3, 4, 5, synapse_meta=noisy(), **o), projection]
)
def test_row_sparse_gradients_are_the_dense_ones(make):
    dense, rows = make(random_seed=3), make(random_seed=3, weights_gradient_policy="row_sparse")
    x = np.random.default_rng(1).standard_normal((2, *dense.input_shape)).astype(np.float32)
    gy = np.random.default_rng(2).standard_normal((2, *dense.output_shape)).astype(np.float32)
    for layer in (dense, rows):
        layer.forward(x)
        layer.backward(gy)
    np.testing.assert_array_equal(rows.weight_gradient.dense(dense.weight.shape), dense.weight_gradient)
    index, values = rows.weight_gradient.flat()
    np.testing.assert_array_equal(index, np.flatnonzero(dense.weight_gradient))
    np.testing.assert_array_equal(values, dense.weight_gradient.reshape(-1)[index])


def test_internal_updates_call_the_hook_once():
    layer = lut.LUTLayer(6, 3, 4, 5, synapse_meta=noisy(), random_seed=3, weights_gradient_policy="internal")
    dense = lut.LUTLayer(6, 3, 4, 5, synapse_meta=noisy(), random_seed=3)
    calls = []
    layer.set_learning_rate_hook(lambda weight: calls.append(weight) or 0.5)
    x, gy = np.random.default_rng(1).standard_normal((2, 6)), np.ones((2, 5))
    for one in (layer, dense):
        one.forward(x)
    np.testing.assert_array_equal(layer.backward(gy), dense.backward(gy))
    assert len(calls) == 1 and calls[0] is layer.weight
    close(layer.weight, dense.weight - 0.5 * dense.weight_gradient)
    assert layer.weight_gradient is None


def test_normalized_gradients_and_fixed_point():
    options = dict(synapse_meta=noisy(), random_seed=3)
    plain, scaled = (
        lut.LUTLayer(6, 3, 40, 5, **options),
        lut.LUTLayer(6, 3, 40, 5, normalized=True, **options),
    )
    quanta = lut.LUTLayer(6, 3, 40, 5, summation="int32", int_rescaler=10, **options)
    x, gy = np.random.default_rng(1).standard_normal((3, 6)), np.random.default_rng(2).standard_normal((3, 5))
    y = [layer.forward(x) for layer in (plain, scaled, quanta)]
    gx = [layer.backward(gy) for layer in (plain, scaled, quanta)]
    assert np.abs(scaled.weight_gradient).max() == 1
    close(scaled.weight_gradient, plain.weight_gradient / np.abs(plain.weight_gradient).max())
    x32 = x.astype(np.float32)
    np.testing.assert_array_equal(y[2], oracle.fc_forward_int(x32, plain.anchors, plain.weight, 10, 32))
    np.testing.assert_allclose(gx[2], gx[0], atol=2e-5)


def test_the_layer_accepts_other_arrays_and_leading_dimensions():
    layer = lut.LUTLayer(6, 3, 4, 5, synapse_meta=noisy(), random_seed=3)
    x = np.random.default_rng(1).standard_normal((2, 3, 6)).astype(np.float32)
    y = layer.forward(x)
    assert y.shape == (2, 3, 5) and layer.backward(y).shape == x.shape
    np.testing.assert_array_equal(layer.forward(trivium.Tensor(x)), y)
    np.testing.assert_array_equal(layer.forward(x[:, ::-1])[:, ::-1], y)
    np.testing.assert_array_equal(layer.forward(x.astype(np.float64)), y)
    assert layer.forward(x[:0]).shape == (0, 3, 5)


def test_initial_values_follow_the_seed_alone():
    a, b, c = (lut.LUTLayer(6, 3, 4, 5, synapse_meta=noisy(), random_seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(a.weight, b.weight)
    np.testing.assert_array_equal(a.anchors, b.anchors)
    assert (a.weight != c.weight).any() and (a.anchors[..., 0] != a.anchors[..., 1]).all()
    assert -1 <= a.weight.min() < -0.8 and 0.8 < a.weight.max() <= 1
    assert not lut.LUTLayer(6, 3, 4, 5).weight.any()
    unit = lut.LUTLayer(6, 3, 4, 5, synapse_meta=noisy(), do_normalise_weights=True, random_seed=1)
    np.testing.assert_allclose(np.linalg.norm(unit.weight, axis=-1), 1, rtol=1e-6)
    clipped = lut.LUTLayer(6, 3, 4, 5, synapse_meta=lut.SynapseMeta(initial_noise_level=-1.0), random_seed=1)
    assert not clipped.weight.any()


def test_exact_anchors_do_not_repeat():
    rng = connectivity.generator(1, 0)
    anchors = connectivity.sample_anchors(rng, [np.array([2, 5, 7])], 6, exact=True)
    assert len({tuple(p) for p in anchors[0]}) == 6
    padded = connectivity.sample_anchors(rng, [np.array([2, 5])], 4, exact=True, pad=True)
    assert (padded[0, 2:] == -1).all() and (padded[0, :2] >= 0).all()


def test_saved_layers_come_back(tmp_path):
    for make in (
        projection,
        lambda **o: lut.LUTLayer(6, 2, 4, 5, sequence_length=4, positional_dim=2, synapse_meta=noisy(), **o),
    ):
        layer, other = make(random_seed=1), make(random_seed=2)
        layer.save(tmp_path / "layer.safetensors")
        shape = (2, 4, 6) if layer.sequence_length > 1 else (2, *layer.input_shape)
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        if layer.sequence_length > 1:
            assert (layer.forward(x) != other.forward(x)).any()
            other.load(tmp_path / "layer.safetensors")
            np.testing.assert_array_equal(other.forward(x), layer.forward(x))
        else:
            state = layer.state_dict()
            layer.load(tmp_path / "layer.safetensors")
            for key, value in layer.state_dict().items():
                np.testing.assert_array_equal(value, state[key])


def test_decode_equals_the_whole_sequence():
    layer = lut.LUTLayer(6, 2, 4, 5, sequence_length=6, positional_dim=2, synapse_meta=noisy(), random_seed=1)
    x = np.random.default_rng(1).standard_normal((1, 6, 6)).astype(np.float32)
    want = layer.forward(x)[0]
    cache = layer.native.make_cache(1)
    for j in range(6):
        y = layer.native.decode(
            layer.weight,
            x[:, j],
            layer.positional_embeddings,
            np.zeros(1, np.int32),
            np.full(1, j, np.int32),
            cache,
        )
        np.testing.assert_array_equal(y.numpy()[0], want[j])


L = lut.LUTLayer
BAD = {
    "n_inputs": (lambda: L(1, 2, 3, 4), "at least 2"),
    "no outputs": (lambda: L(6, 2, 3, 0), "outputs is 0"),
    "no detectors": (lambda: L(6, 2, 0, 4), "n_detectors is 0"),
    "no pairs": (lambda: L(6, 0, 3, 4), "n_anchors_per_detector is 0"),
    "too many bits": (lambda: L(6, 15, 3, 4, sequence_length=4, positional_dim=2), "32 bits"),
    "sequence without positional_dim": (lambda: L(6, 2, 3, 4, sequence_length=4), "positional_dim is None"),
    "positional_dim without sequence": (lambda: L(6, 2, 3, 4, positional_dim=2), "positional_dim is 2"),
    "sliced": (
        lambda: L(
            6,
            2,
            3,
            4,
            sequence_length=4,
            positional_dim=2,
            concatenation_product=False,
            sliced_product_mode=True,
        ),
        "positional_dim is 2",
    ),
    "policy": (lambda: L(6, 2, 3, 4, weights_gradient_policy="spars"), "'spars'"),
    "internal normalized": (
        lambda: L(6, 2, 3, 4, weights_gradient_policy="internal", normalized=True),
        "normalized",
    ),
    "internal int32": (lambda: L(6, 2, 3, 4, weights_gradient_policy="internal", summation="int32"), "int32"),
    "summation": (lambda: L(6, 2, 3, 4, summation="int64"), "'int64'"),
    "rescaler": (lambda: L(6, 2, 3, 4, summation="int32", int_rescaler=0), "int_rescaler is 0"),
    "quantum": (
        lambda: L(6, 2, 3, 4, summation="int32", synapse_meta=lut.SynapseMeta(learning_rate=1e-4)),
        "quantum",
    ),
    "min above max": (lambda: lut.SynapseMeta(min_weight=2), "min_weight is 2"),
    "initial outside": (lambda: lut.SynapseMeta(initial_weight=-1), "initial_weight is -1"),
    "learning rate": (lambda: lut.SynapseMeta(learning_rate=1.5), "learning_rate is 1.5"),
    "seed": (lambda: L(6, 2, 3, 4, random_seed=0), "random_seed is 0"),
    "window": (lambda: lut.Conv2DLUTLayer((4, 4), 2, 1, 1, receptive_field_shape=5), "window of (5, 5)"),
    "shape": (lambda: lut.Conv2DLUTLayer((4, 0), 2, 1, 1), "input_shape"),
    "probability": (lambda: projection(projection_prob=0), "projection_prob is 0"),
    "mask": (lambda: projection(input_sparsity_mask=np.zeros((8, 7))), "input_sparsity_mask"),
    "sampling": (lambda: projection(detectors_sampling_policy=lut.Sampling("spiral")), "'spiral'"),
    "grid": (lambda: projection(detectors_sampling_policy=lut.Sampling("grid", 3)), "too small for 5"),
    "exact": (lambda: L(2, 3, 1, 1, exact_anchors=True), "2 distinct pairs"),
    "mode": (lambda: _core.LutLayer(2, 1, np.zeros((1, 1, 2), np.int32), mode="rowz"), "rowz"),
    "x": (lambda: L(6, 2, 3, 4).forward(np.zeros((2, 5))), "x is [2, 5]"),
    "no forward": (lambda: L(6, 2, 3, 4).backward(np.zeros((2, 4))), "nothing was saved"),
    "hook": (lambda: L(6, 2, 3, 4).set_learning_rate_hook(lambda w: 1.0), "internal policy, not dense"),
    "state": (
        lambda: L(6, 2, 3, 4).load_state_dict({"weight": np.zeros(3)}),
        "expected ['anchors', 'weight']",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, part = BAD[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        call()
    assert part in str(error.value) and "\n" not in str(error.value)


def test_bad_backward_calls():
    layer = L(6, 2, 3, 4, weights_gradient_policy="internal")
    x, gy = np.zeros((2, 6)), np.zeros((2, 4))
    layer.forward(x)
    with pytest.raises(trivium.InvalidArgument, match="needs set_learning_rate_hook"):
        layer.backward(gy)
    for eta in (-1.0, float("nan")):
        layer.set_learning_rate_hook(lambda weight, eta=eta: eta)
        with pytest.raises(trivium.InvalidArgument, match="eta is"):
            layer.backward(gy)
    layer.set_learning_rate_hook(lambda weight: 1.0)
    with pytest.raises(trivium.InvalidArgument, match=r"gy is \[2, 3\]"):
        layer.backward(np.zeros((2, 3)))
    layer.backward(gy)
    with pytest.raises(trivium.InvalidArgument, match="nothing was saved"):
        layer.backward(gy)
    layer.forward(x, training=False)
    with pytest.raises(trivium.InvalidArgument, match="nothing was saved"):
        layer.backward(gy)
