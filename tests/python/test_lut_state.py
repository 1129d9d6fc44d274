"""Copies, pickles and saved states of trivium.lut layers, and what lies between a forward and its backward."""

import copy
import json
import pickle

import numpy as np
import pytest
import trivium
from trivium import lut

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
SEQUENCE = dict(sequence_length=4, positional_dim=2)


def rows(seed=1, **options):
    return lut.LUTLayer(7, 3, 5, 4, synapse_meta=META, random_seed=seed, **options)


def projection(seed=1, **options):
    return lut.ProjectionLUTLayer(
        (6, 6), (5, 5), 3, 4, 2, 3, (9, 3), synapse_meta=META, random_seed=seed, **options
    )


def sequence(seed=1, **options):
    return lut.LUTLayer(6, 2, 3, 5, synapse_meta=META, random_seed=seed, **SEQUENCE, **options)


def product(seed=1, **options):
    return sequence(seed, concatenation_product=False, **options)


def inputs(layer):
    lead = (2, 4) if layer.sequence_length > 1 else (3,)
    return np.random.default_rng(1).standard_normal((*lead, *layer.input_shape)).astype(np.float32)


@pytest.mark.parametrize("make", [rows, projection, sequence, product])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_layers_of_their_own(make, copied):
    layer = make()
    x = inputs(layer)
    y = layer.forward(x)
    other = copied(layer)
    np.testing.assert_array_equal(other.forward(x), y)
    np.testing.assert_array_equal(other.backward(y), layer.backward(y))
    np.testing.assert_array_equal(other.weight_gradient, layer.weight_gradient)
    other.weight += 1
    np.testing.assert_array_equal(layer.forward(x), y)
    assert (other.forward(x) != y).any()
    unsaved = copied(layer)  # layer holds a forward; a copy does not
    with pytest.raises(trivium.InvalidArgument, match="nothing was saved"):
        unsaved.backward(y)


def test_a_copied_transformer_is_the_same_and_its_own():
    model = lut.LUTTransformer(32, 12, 6, 2, 1, 2, 3, 3, 2, synapse_meta=META, random_seed=4)
    other, tokens = copy.deepcopy(model), np.arange(6)[None]
    logits = model.forward(tokens)
    np.testing.assert_array_equal(other.forward(tokens), logits)
    other.unembedder.weight += 1
    np.testing.assert_array_equal(model.forward(tokens), logits)


@pytest.mark.parametrize("make", [rows, projection, sequence, product])
def test_backward_belongs_to_the_forward_whatever_became_of_its_input(make):
    layer = make()
    x = inputs(layer)
    gy = layer.forward(x)
    want = layer.backward(gy)
    layer.forward(x)
    x *= -1
    np.testing.assert_array_equal(layer.backward(gy), want)


BAD_STATES = {
    "weight": (lambda s: s["weight"][:2], "weight is float32"),
    "weight dtype": (lambda s: s["weight"].astype(np.float64), "weight is float64"),
    "anchors shape": (lambda s: s["anchors"][:1], "anchors are"),
    "anchors range": (lambda s: s["anchors"] + 100, "expected less than"),
    "anchors fractions": (lambda s: s["anchors"] + 0.7, "anchors are float64"),
    "anchors wide": (lambda s: s["anchors"].astype(np.int64) + 2**32, "expected at most 32 bits"),
    "targets fractions": (lambda s: s["targets"] + 0.3, "targets are"),
    "targets range": (lambda s: s["targets"] + 100, "targets[0] is"),
    "pointers": (lambda s: s["pointers"][::-1].copy(), "pointers run from"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_refused_state_leaves_the_layer_as_it_was(name):
    change, part = BAD_STATES[name]
    layer, other = projection(), projection(2)
    state, x = other.state_dict(), inputs(layer)
    state[name.split()[0]] = change(state)
    y = layer.forward(x)
    gx = layer.backward(y)
    layer.forward(x)
    with pytest.raises(trivium.InvalidArgument) as error:
        layer.load_state_dict(state)
    assert part in str(error.value)
    np.testing.assert_array_equal(layer.backward(y), gx)
    np.testing.assert_array_equal(layer.forward(x), y)


def test_a_loaded_layer_does_not_take_a_gradient_of_the_one_before():
    layer, x = rows(), inputs(rows())
    y = layer.forward(x)
    layer.load_state_dict(rows(2).state_dict())
    with pytest.raises(trivium.InvalidArgument, match="nothing was saved"):
        layer.backward(y)


BAD = {
    "anchors fractions": (
        lambda: lut.LUTLayerBasic((7,), (4,), np.array([[[0.9, 1.9]]])),
        "anchors are float64",
    ),
    "anchors wide": (lambda: lut.LUTLayerBasic((7,), (4,), np.array([[[2**32 + 1, 2]]])), "at most 32 bits"),
    "n_inputs": (lambda: lut.LUTLayer(7.5, 3, 5, 4), "n_inputs is 7.5"),
    "n_outputs": (lambda: lut.LUTLayer(7, 3, 5, 4.5), "n_outputs is 4.5"),
    "n_detectors": (lambda: lut.LUTLayer(7, 3, "5", 4), "n_detectors is '5'"),
    "n_anchors": (lambda: lut.LUTLayer(7, 3.5, 5, 4), "n_anchors_per_detector is 3.5"),
    "seed": (lambda: lut.LUTLayer(7, 3, 5, 4, random_seed=1.5), "random_seed is 1.5"),
    "noise": (lambda: lut.SynapseMeta(initial_noise_level=float("nan")), "initial_noise_level is nan"),
    "bound": (lambda: lut.SynapseMeta(max_weight=float("inf")), "max_weight is inf"),
    "noise text": (lambda: lut.SynapseMeta(initial_noise_level="a"), "initial_noise_level is 'a'"),
    "sequence_length": (lambda: rows(sequence_length=4.0, positional_dim=2), "sequence_length is 4.0"),
    "positional_dim": (lambda: rows(sequence_length=4, positional_dim=2.5), "positional_dim is 2.5"),
    "group_size": (lambda: rows(group_size=3.5), "group_size is 3.5"),
    "window": (lambda: lut.Conv2DLUTLayer((6.7, 6), 2, 2, 2), "input_shape is (6.7, 6)"),
    "window stride": (
        lambda: lut.Conv2DLUTLayer((6, 6), 2, 2, 2, receptive_field_stride=1.5),
        "receptive_field_stride is 1.5",
    ),
    "groups": (lambda: lut.ProjectionLUTLayer((6, 6), (5, 5), 2, 3.5, 1, 3, 3), "n_detector_groups is 3.5"),
    "mask": (
        lambda: lut.ProjectionLUTLayer((6, 6), (5, 5), 2, 3, 1, 3, 3, output_sparsity_mask=[[True]]),
        "output_sparsity_mask is a list",
    ),
    "vocab_size": (lambda: lut.LUTTransformer(32.5, 12, 6, 2, 1, 2, 3, 3), "vocab_size is 32.5"),
    "complex": (lambda: rows().forward(np.zeros((3, 7), complex)), "x is complex"),
    "hook": (
        lambda: rows(weights_gradient_policy="internal").set_learning_rate_hook(0.1),
        "learning rate hook is 0.1",
    ),
    "tokens": (
        lambda: lut.LUTTransformer(32, 12, 6, 2, 1, 2, 3, 3).forward(np.zeros((1, 6), bool)),
        "tokens are bool",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, part = BAD[name]
    with pytest.raises(trivium.InvalidArgument) as error:
        call()
    assert part in str(error.value) and "\n" not in str(error.value)


def edited(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


BAD_CONFIGS = {
    "unknown": (lambda c: c.update(hidden_size=8), "has ['hidden_size']"),
    "missing": (lambda c: c.pop("vocab_size"), "lacks ['vocab_size']"),
    "text": (lambda c: c.update(vocab_size="256"), "vocab_size is '256'"),
    "fraction": (lambda c: c.update(num_layers=1.5), "num_layers is 1.5"),
    "null": (lambda c: c.update(embedding_dim=None), "embedding_dim is None"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configurations_are_named_with_their_file(tmp_path, name):
    change, part = BAD_CONFIGS[name]
    lut.LUTTransformer(256, 12, 6, 2, 1, 2, 3, 3).save(tmp_path)
    assert lut.LUTTransformer.load(tmp_path).config["num_heads"] == 2
    edited(tmp_path, change)
    with pytest.raises(trivium.ModelFormatError) as error:
        lut.LUTTransformer.load(tmp_path)
    assert part in str(error.value) and "config.json" in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_configurations_that_are_no_objects_are_refused(tmp_path, text):
    lut.LUTTransformer(256, 12, 6, 2, 1, 2, 3, 3).save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(trivium.ModelFormatError, match=str(tmp_path)):
        lut.LUTTransformer.load(tmp_path)


def test_options_do_not_contradict_the_folder(tmp_path):
    lut.LUTTransformer(256, 12, 6, 2, 1, 2, 3, 3).save(tmp_path)
    assert lut.LUTTransformer.load(tmp_path, dropout=0.5).dropout == 0.5
    with pytest.raises(trivium.InvalidArgument, match="vocab_size"):
        lut.LUTTransformer.load(tmp_path, vocab_size=5)


def test_a_wrong_option_is_not_blamed_on_the_folder(tmp_path):
    lut.LUTTransformer(256, 12, 6, 2, 1, 2, 3, 3).save(tmp_path)
    with pytest.raises(trivium.InvalidArgument, match=r"^dropout is 2, expected 0 up to 1$"):
        lut.LUTTransformer.load(tmp_path, dropout=2)
    edited(tmp_path, lambda c: c.update(num_layers=1.5))
    with pytest.raises(trivium.ModelFormatError, match=r"config\.json: num_layers is 1\.5"):
        lut.LUTTransformer.load(tmp_path, dropout=2)


def test_what_another_layer_saved_is_refused():
    """Its addresses may lie outside of this layer's tables."""
    x = inputs(rows())
    few = lut.LUTLayer(7, 1, 5, 4, synapse_meta=META, random_seed=1)
    y, saved = rows().native.forward(rows().weight, x)
    with pytest.raises(trivium.InvalidArgument, match="saved is of a layer with 3 anchors"):
        few.native.backward(few.weight, y, saved)


@pytest.mark.parametrize(
    "other", [dict(n_detectors=4), dict(n_anchors_per_detector=1), dict(sequence_length=9)]
)
def test_a_cache_of_another_layer_is_refused(other):
    sizes = dict(n_inputs=6, n_anchors_per_detector=2, n_detectors=3, n_outputs=5, **SEQUENCE)
    layer, wrong = lut.LUTLayer(**sizes), lut.LUTLayer(**sizes | other)

    def decode(cache):
        zero = np.zeros(1, np.int32)
        x = np.zeros((1, 6), np.float32)
        return wrong.native.decode(wrong.weight, x, wrong.positional_embeddings, zero, zero, cache)

    assert decode(wrong.native.make_cache(1)).shape == (1, 5)
    with pytest.raises(trivium.InvalidArgument, match="the cache is of a layer"):
        decode(layer.native.make_cache(1))


LATER = {
    "unembedder.weight": lambda a: a[:1],
    "unembedder.anchors": lambda a: a + 100,
    "layers.1.ffn_norm.running_var": lambda a: -a - 1,
    "layers.1.attention.positional_embeddings": lambda a: a.astype(np.float64),
    "embedding": lambda a: a[:3],
}


@pytest.mark.parametrize("name", LATER)
def test_a_transformer_takes_all_of_a_state_or_nothing(name):
    def model(seed):
        sizes = (32, 12, 6, 2, 2, 2, 3, 3, 2)
        return lut.LUTTransformer(*sizes, use_batch_norm=True, synapse_meta=META, random_seed=seed)

    taker, giver = model(4), model(5)
    before = {key: value.copy() for key, value in taker.state_dict().items()}
    state = giver.state_dict()
    bad = state | {name: LATER[name](state[name])}
    with pytest.raises(trivium.InvalidArgument) as error:
        taker.load_state_dict(bad)
    assert str(error.value).startswith(name.rpartition(".")[0] or name)
    for key, value in taker.state_dict().items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    taker.load_state_dict(state)
    for key, value in taker.state_dict().items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
