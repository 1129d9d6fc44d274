"""Options of trivium.lut's layers, one by one: what they change, and what is refused or warned of."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import lut

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import lut_oracle as oracle  # noqa: E402

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max(initial=0)))


def test_equal_inputs_of_a_pair_are_a_warning(caplog):
    anchors = np.array([[[0, 1], [2, 2]], [[1, 1], [0, 2]]], np.int32)
    with caplog.at_level(logging.WARNING, logger="trivium"):
        layer = lut.LUTLayerBasic((3,), (2,), anchors, synapse_meta=META, random_seed=1)
        assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
            "lut layer: 2 anchor pairs compare an input with itself: their bit is always 0"
        ]
        caplog.clear()
        lut.LUTLayerBasic((3,), (2,), anchors[:1, :1])
        assert not caplog.records
    x = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    want, saved = oracle.fc_forward(x.astype(np.float64), anchors, layer.weight.astype(np.float64))
    close(layer.forward(x), want)
    gy = np.ones_like(want)
    gx, _ = oracle.fc_backward(gy, saved, anchors, layer.weight.astype(np.float64), 3)
    close(layer.backward(gy), gx)


def test_one_embedding_for_all_tables():
    layer = lut.LUTLayer(
        6, 2, 4, 5, sequence_length=6, positional_dim=2, unified_pe=True, synapse_meta=META, random_seed=3
    )
    assert layer.positional_embeddings.shape == (5, 2)
    rng = np.random.default_rng(1)
    x, gy = (rng.standard_normal((2, 6, n)).astype(np.float32) for n in (6, 5))
    pe = np.repeat(layer.positional_embeddings[:, None], 4, axis=1).astype(np.float64)
    w = layer.weight.astype(np.float64)
    want, saved = oracle.seq_forward(x.astype(np.float64), layer.anchors, pe, w)
    gx, gpe, gw = oracle.seq_backward(gy.astype(np.float64), saved, layer.anchors, w, 6, 2)
    close(layer.forward(x), want)
    close(layer.backward(gy), gx)
    close(layer.weight_gradient, gw)
    close(layer.positional_gradient, gpe.sum(1))


def test_a_threshold_of_comparisons():
    layer = lut.LUTLayer(7, 3, 9, 5, cmp_eps=0.5, synapse_meta=META, random_seed=2)
    x = np.random.default_rng(1).standard_normal((6, 7)).astype(np.float32)
    y = layer.forward(x)
    u = x[:, layer.anchors[..., 0]] - x[:, layer.anchors[..., 1]]
    index = ((u >= 0.5) << np.arange(3)).sum(-1)
    close(y, layer.weight[np.arange(9), index].sum(1))
    assert (index != ((u > 0) << np.arange(3)).sum(-1)).any()


def projection(**options):
    return lut.ProjectionLUTLayer((8, 7), (6, 9), 3, 6, 2, 4, 3, synapse_meta=META, random_seed=2, **options)


def reached(layer):
    """The outputs of each group of two detectors."""
    lists = np.split(layer.targets.targets, layer.targets.pointers[1:-1])
    for first, second in zip(lists[::2], lists[1::2]):
        np.testing.assert_array_equal(first, second)
    return lists[::2]


def test_projections_leave_out_masked_outputs_and_those_not_drawn():
    full, mask = reached(projection()), np.zeros((6, 9), bool)
    mask[:, ::2] = True
    masked = reached(projection(output_sparsity_mask=mask))
    for all_of_it, some in zip(full, masked):
        np.testing.assert_array_equal(some, all_of_it[all_of_it % 9 % 2 == 1])
    layer = lut.ProjectionLUTLayer((20, 20), (20, 20), 2, 40, 2, 5, 9, projection_prob=0.5, random_seed=1)
    whole = lut.ProjectionLUTLayer((20, 20), (20, 20), 2, 40, 2, 5, 9, random_seed=1)
    drawn = sum(map(len, reached(layer))) / sum(map(len, reached(whole)))
    assert 0.4 < drawn < 0.6


def test_projections_place_their_groups_around_a_mean():
    where = lut.Sampling("normal", mean=(10.0, 30.0), sd=(1.0, 2.0))
    centres = where.centres(np.random.default_rng(1), 2000, (40, 40))
    np.testing.assert_allclose(centres.mean(0), [10, 30], atol=0.2)
    np.testing.assert_allclose(centres.std(0), [1, 2], atol=0.1)
    default = lut.Sampling("normal").centres(np.random.default_rng(1), 4000, (60, 30))
    np.testing.assert_allclose(default.mean(0), [30, 15], atol=0.7)
    uniform = lut.Sampling("uniform", padding=3.0).centres(np.random.default_rng(1), 2000, (40, 20))
    assert uniform.min() == 3 and (uniform.max(0) == [36, 16]).all()


def test_convolutions_are_layers_of_sequences_too():
    options = dict(sequence_length=4, positional_dim=2, synapse_meta=META, random_seed=3)
    layer = lut.Conv2DLUTLayer(
        (4, 5), 2, 2, 1, receptive_field_shape=2, lut_receptive_field_shape=3, **options
    )
    cells, outputs = layer.native.cells, layer.n_outputs
    full = np.zeros((len(layer.anchors), cells, outputs), np.float32)
    at = 0
    for t, targets in enumerate(np.split(layer.targets.targets, layer.targets.pointers[1:-1])):
        count = cells * len(targets)
        full[t][:, targets] = layer.weight[at : at + count].reshape(cells, -1)
        at += count
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 4, 4, 5)).astype(np.float32)
    wide = [np.asarray(a, np.float64) for a in (x.reshape(2, 4, 20), layer.positional_embeddings, full)]
    want, saved = oracle.seq_forward(wide[0], layer.anchors, wide[1], wide[2])
    y = layer.forward(x)
    assert y.shape == (2, 4, *layer.output_shape)
    close(y.reshape(want.shape), want)
    gx, gpe, _ = oracle.seq_backward(want, saved, layer.anchors, wide[2], 20, 2)
    close(layer.backward(want.reshape(y.shape)).reshape(gx.shape), gx)
    close(layer.positional_gradient, gpe)


@pytest.mark.parametrize("policy", ["dense", "row_sparse"])
def test_a_gradient_that_is_kept_stays_as_it_is(policy):
    """Gradients of some megabytes take the memory of the last one, unless somebody holds it."""
    layer = lut.LUTLayer(8, 2, 40, 4096, synapse_meta=META, random_seed=1, weights_gradient_policy=policy)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 8))

    def gradient(sign):
        layer.forward(x)
        layer.backward(sign * np.ones((64, 4096)))
        g = layer.weight_gradient
        return g if policy == "dense" else g.values

    kept = gradient(1)
    copy = kept.copy()
    np.testing.assert_array_equal(gradient(-1), -copy)
    np.testing.assert_array_equal(kept, copy)
    kept += 1  # the caller's to change
    np.testing.assert_array_equal(gradient(1), copy)
    del kept
    np.testing.assert_array_equal(gradient(1), copy)


BAD = {
    "product of single positions": (
        lambda: lut.LUTLayer(6, 2, 3, 4, concatenation_product=False),
        "concatenation_product is False with sequence_length 1",
    ),
    "sliced alone": (
        lambda: lut.LUTLayer(6, 2, 3, 4, sequence_length=4, positional_dim=6, sliced_product_mode=True),
        "sliced_product_mode is True",
    ),
    "no positions": (lambda: lut.LUTLayer(6, 2, 3, 4, sequence_length=0), "sequence_length is 0"),
    "anchor": (
        lambda: lut.LUTLayerBasic((3,), (2,), np.array([[[0, 3]]], np.int32)),
        "anchors hold 3",
    ),
    "length": (
        lambda: lut.LUTLayer(6, 2, 3, 4, sequence_length=4, positional_dim=2).forward(np.zeros((1, 5, 6))),
        "x is [1, 5, 6]",
    ),
    "targets": (
        lambda: lut.LUTLayerBasic(
            (3,),
            (2,),
            np.array([[[0, 1]]], np.int32),
            lut.Targets(np.array([0, 1]), np.array([2], np.int32)),
        ),
        "targets[0] is 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_named(name):
    call, part = BAD[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        call()
    assert part in str(error.value) and "\n" not in str(error.value)


def test_results_go_into_given_arrays_or_nowhere():
    meta = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
    layer = lut.LUTLayer(6, 3, 4, 5, synapse_meta=meta, random_seed=1)
    x = np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)
    want, saved = layer.native.forward(layer.weight, x)
    assert saved.unchanged
    saved.unchanged = False
    y, delta = np.full((7, 5), np.nan, np.float32), np.full((7, 4), np.nan, np.float32)
    index, least = np.full((7, 4), -9, np.int32), np.full((7, 4), -9, np.int32)
    layer.native.forward(layer.weight, x, out=[y, index, delta, least])
    np.testing.assert_array_equal(y, want.numpy())
    np.testing.assert_array_equal(index, saved.index.numpy())
    np.testing.assert_array_equal(delta, saved.min_delta.numpy())
    np.testing.assert_array_equal(least, saved.min_index.numpy())
    with pytest.raises(trivium.InvalidArgument, match=r"out has 2 arrays, expected 1 \(y\), 4 or 7"):
        layer.native.forward(layer.weight, x, out=[y, index])
    with pytest.raises(trivium.InvalidArgument, match="y is not contiguous"):
        layer.native.forward(layer.weight, x, out=[np.empty((5, 7), np.float32).T])
    with pytest.raises(BufferError, match="copy=False"):
        layer.native.forward(layer.weight, x, out=[[[0.0] * 5] * 7])
    gx = np.full((7, 6), np.nan, np.float32)
    layer.native.backward(layer.weight, y, saved, gx=gx)
    np.testing.assert_array_equal(gx, layer.native.backward(layer.weight, y, saved).gx.numpy())
    assert gx.any()
    gx.flags.writeable = False
    with pytest.raises(trivium.InvalidArgument, match=r"gx is .* read-only"):
        layer.native.backward(layer.weight, y, saved, gx=gx)
