"""Sequences one position at a time give the bits of whole ones, from every kind of layer."""

import numpy as np
import pytest
import trivium
from trivium import _core, lut

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
LENGTH = 7
SEQUENCE = dict(sequence_length=LENGTH, synapse_meta=META, random_seed=1)
LAYERS = {
    "dense": lambda: lut.LUTLayer(6, 2, 21, 33, positional_dim=2, **SEQUENCE),
    "no embedding": lambda: lut.LUTLayer(6, 3, 5, 4, positional_dim=0, **SEQUENCE),
    "fixed point": lambda: lut.LUTLayer(
        6, 2, 5, 4, positional_dim=2, summation="int32", int_rescaler=1.0, **SEQUENCE
    ),
    "sparse": lambda: lut.Conv2DLUTLayer(
        (4, 4),
        2,
        1,
        1,
        receptive_field_shape=2,
        receptive_field_stride=1,
        lut_receptive_field_shape=2,
        positional_dim=2,
        **SEQUENCE,
    ),
}


def inputs(layer, sequences, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((sequences, LENGTH, *layer.input_shape)).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_steps_give_the_bits_of_the_whole(name):
    layer = LAYERS[name]()
    x = inputs(layer, 3)
    y, cache = layer.forward(x, training=False), layer.make_cache(3)
    assert np.abs(y).max() > 0
    for j in range(LENGTH):
        step = layer.decode(x[:, j], cache)
        assert step.shape == (3, *layer.output_shape)
        np.testing.assert_array_equal(step, y[:, j], err_msg=f"position {j}")
    assert cache.positions.tolist() == [LENGTH] * 3


def test_past_the_length_a_position_sees_the_last_ones():
    layer = LAYERS["dense"]()
    x = np.concatenate([inputs(layer, 2, 1), inputs(layer, 2, 2)], 1)
    cache = layer.make_cache(2)
    steps = [layer.decode(x[:, j], cache) for j in range(2 * LENGTH)]
    for end in range(LENGTH, 2 * LENGTH + 1):
        window = layer.forward(x[:, end - LENGTH : end], training=False)
        np.testing.assert_array_equal(steps[end - 1], window[:, -1], err_msg=f"position {end - 1}")


def test_a_reset_starts_one_sequence_or_all():
    layer = LAYERS["dense"]()
    x, cache = inputs(layer, 2), layer.make_cache(2)
    y = layer.forward(x, training=False)
    for j in range(4):
        layer.decode(x[:, j], cache)
    cache.reset(1)
    step = layer.decode(np.stack([x[0, 4], x[1, 0]]), cache)
    np.testing.assert_array_equal(step, [y[0, 4], y[1, 0]])
    cache.reset()
    np.testing.assert_array_equal(layer.decode(x[:, 0], cache), y[:, 0])


def test_decoding_between_forward_and_backward_changes_no_gradient():
    layer = LAYERS["dense"]()
    x = inputs(layer, 2)
    gx = layer.backward(layer.forward(x))
    y = layer.forward(x)
    layer.decode(x[:, 0], layer.make_cache(2))
    np.testing.assert_array_equal(layer.backward(y), gx)


@pytest.mark.parametrize("more", [{}, {"no_ffn": True}, {"use_batch_norm": True, "dropout": 0.5}])
def test_a_transformer_decodes_its_own_logits(more):
    model = lut.LUTTransformer(32, 12, LENGTH, 2, 2, 2, 3, 3, 2, synapse_meta=META, random_seed=4, **more)
    tokens = np.random.default_rng(1).integers(0, 32, (3, LENGTH))
    logits, cache = model.forward(tokens, training=False), model.make_cache(3)
    for j in range(LENGTH):
        np.testing.assert_array_equal(model.decode(tokens[:, j], cache), logits[:, j])


def test_the_index_of_a_cache_is_a_copy():
    layer = LAYERS["dense"]()
    cache, x = layer.make_cache(1), inputs(layer, 1)
    layer.decode(x[:, 0], cache)
    cache.native.index.numpy()[...] = 1 << 28
    np.testing.assert_array_equal(layer.decode(x[:, 1], cache), layer.forward(x, training=False)[:, 1])


MODEL = dict(vocab_size=8, embedding_dim=4, context_size=3, positional_dim=1, num_layers=1, num_heads=1)
BAD = {
    "mode": (lambda: lut.LUTLayer(6, 2, 3, 4).make_cache(), "mode is rows"),
    "sequences": (lambda: LAYERS["dense"]().make_cache(0), "sequences is 0"),
    "cache": (lambda: LAYERS["dense"]().decode(np.zeros((1, 6)), None), "cache is NoneType"),
    "other cache": (
        lambda: LAYERS["dense"]().decode(np.zeros((1, 6)), LAYERS["no embedding"]().make_cache()),
        "the cache is of a layer",
    ),
    "rank": (
        lambda: LAYERS["dense"]().decode(np.zeros((1, 1, 6)), LAYERS["dense"]().make_cache()),
        "[1, 1, 6]",
    ),
    "count": (
        lambda: LAYERS["dense"]().decode(np.zeros((3, 6)), LAYERS["dense"]().make_cache(2)),
        "3 sequences",
    ),
    "reset": (lambda: LAYERS["dense"]().make_cache(2).reset(2), "sequence is 2"),
    "tokens": (lambda: decode_tokens([[1]]), "tokens are [1, 1]"),
    "token": (lambda: decode_tokens([8]), "8 to 8"),
}


def decode_tokens(tokens):
    model = lut.LUTTransformer(**MODEL, n_detectors=2, n_anchors_per_detector=2, random_seed=1)
    model.decode(np.array(tokens), model.make_cache())


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, part = BAD[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        call()
    assert part in str(error.value) and "\n" not in str(error.value)


def test_a_step_may_have_a_row_of_every_slot():
    layer = LAYERS["dense"]()
    x = inputs(layer, 4)
    cache = layer.native.make_cache(4)
    slots, first = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    layer.native.decode(layer.weight, x[:, 0].copy(), layer.positional_embeddings, slots, first, cache)
    with pytest.raises(
        trivium.InvalidArgument, match="2 rows of one slot in a step, the cache was made for 1"
    ):
        layer.native.decode(
            layer.weight, x[:2, 0].copy(), layer.positional_embeddings, first[:2], first[:2], cache
        )
    assert isinstance(cache, _core.LutCache)
