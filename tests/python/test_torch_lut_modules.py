"""LUT modules as torch's own machinery meets them: copies, states, frozen parameters, empty batches, tokens."""

import copy
import io

import numpy as np
import pytest
import trivium
from trivium import lut

torch = pytest.importorskip("torch")
from trivium.torch import LUTLayer, LUTTransformer, lut_module  # noqa: E402

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
CASES = {
    "rows": (dict(n_inputs=7, n_anchors_per_detector=3, n_detectors=5, n_outputs=4), (7,)),
    "sequence": (
        dict(
            n_inputs=6,
            n_anchors_per_detector=2,
            n_detectors=3,
            n_outputs=5,
            sequence_length=4,
            positional_dim=2,
        ),
        (4, 6),
    ),
}
CASES["product"] = (CASES["sequence"][0] | dict(concatenation_product=False), (4, 6))
POLICIES = ["dense", "row_sparse", "internal"]


def make(name="rows", seed=1, **options):
    return LUTLayer(**CASES[name][0], synapse_meta=META, random_seed=seed, **options)


def projection(seed, **options):
    shape = ((6, 6), (5, 5), 3, 4, 2, 3, (9, 3))
    return lut_module(lut.ProjectionLUTLayer(*shape, synapse_meta=META, random_seed=seed, **options))


def inputs(name="rows", batch=3):
    return torch.randn(batch, *CASES[name][1], generator=torch.Generator().manual_seed(1))


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("copied", [copy.deepcopy, by_torch_save])
def test_copies_are_modules_of_their_own(name, copied):
    module, x = make(name), inputs(name)
    y = module(x)
    other = copied(module)
    assert torch.equal(other(x), y)
    with torch.no_grad():
        other.weight.add_(1)
    assert torch.equal(module(x), y) and not torch.equal(other(x), y)
    assert np.shares_memory(other.layer.weight, other.weight.detach().numpy())
    other.load_state_dict(make(name, seed=2).state_dict())  # other anchors, of the copy alone
    assert torch.equal(module(x), y)
    assert torch.equal(other(x), make(name, seed=2)(x))
    del module
    (other(x) ** 2).sum().backward()
    assert other.weight.grad.abs().sum() > 0


def test_averaged_models_take_layers():
    module = make()
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    assert torch.equal(averaged(inputs()), module(inputs()))


def test_states_of_sparse_modules_carry_their_targets():
    """Other seeds give other targets, at times as many of them, which no shape gives away."""
    source, x = projection(1), torch.randn(2, 6, 6)
    y, loaded = source(x), 0
    for seed in range(2, 40):
        other = projection(seed)
        before = other(x)
        if other.weight.shape == source.weight.shape:
            other.load_state_dict(source.state_dict())
            assert torch.equal(other(x), y) and not torch.equal(before, y)
            loaded += 1
            continue
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            other.load_state_dict(source.state_dict())
        assert torch.equal(other(x), before)
    assert loaded > 0


@pytest.mark.parametrize("name", ["anchors", "targets"])
def test_a_structure_that_cannot_be_is_refused_and_not_kept(name):
    module = projection(1)
    state = module.state_dict() | {name: getattr(module, name) + 100}
    before = getattr(module, name).clone()
    with pytest.raises(trivium.InvalidArgument, match=name):
        module.load_state_dict(state)
    assert torch.equal(getattr(module, name), before)
    module.load_state_dict(module.state_dict())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_frozen_weights_stay_and_inputs_keep_their_gradient(name, policy):
    free, frozen = make(name, weights_gradient_policy="dense"), make(name, weights_gradient_policy=policy)
    if policy == "internal":
        frozen.set_learning_rate_hook(lambda weight: 0.25)
    frozen.weight.requires_grad_(False)
    before, grads = frozen.weight.clone(), []
    for module in (free, frozen):
        x = inputs(name).requires_grad_()
        (module(x) ** 2).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert torch.equal(frozen.weight, before) and frozen.weight.grad is None
    if name != "rows":
        assert torch.equal(free.positional_embeddings.grad, frozen.positional_embeddings.grad)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_an_empty_batch_has_zero_gradients(name, policy):
    module, x = make(name, weights_gradient_policy=policy), inputs(name, batch=0).requires_grad_()
    if policy == "internal":
        module.set_learning_rate_hook(lambda weight: 0.25)
    before = module.weight.clone()
    y = module(x)
    assert y.shape == (0, *CASES[name][1][:-1], CASES[name][0]["n_outputs"])
    y.sum().backward()
    assert x.grad.shape == x.shape and torch.equal(module.weight, before)
    assert policy == "internal" or not module.weight.grad.to_dense().any()


def test_row_sparse_modules_break_a_compiled_graph():
    plain, compiled = (make(weights_gradient_policy="row_sparse") for _ in range(2))
    torch._dynamo.reset()
    for run in (plain, torch.compile(compiled, backend="aot_eager")):
        (torch.sin(run(torch.tanh(inputs()))) ** 2).sum().backward()
    assert compiled.weight.grad.is_sparse
    torch.testing.assert_close(compiled.weight.grad.to_dense(), plain.weight.grad.to_dense())


@pytest.mark.parametrize("bad", [np.zeros((3, 7), np.float32), torch.zeros(3, 7, dtype=torch.complex64)])
def test_inputs_that_are_no_real_tensors_are_named(bad):
    with pytest.raises(trivium.InvalidArgument, match=r"expected a torch\.Tensor of real numbers"):
        make()(bad)


def byte_model():
    return LUTTransformer(256, 12, 6, 2, 1, 2, 3, 3, 2, synapse_meta=META, random_seed=4)


@pytest.mark.parametrize("how", ["vector_to_parameters", "assign", "deepcopy"])
def test_a_saved_model_has_the_parameters_that_torch_replaced(tmp_path, how):
    model = byte_model()
    if how == "deepcopy":
        model = copy.deepcopy(model)
    halved = {name: p.detach() / 2 for name, p in model.named_parameters()}
    if how == "assign":
        model.load_state_dict(model.state_dict() | halved, assign=True)
    else:
        vector = torch.nn.utils.parameters_to_vector(model.parameters())
        torch.nn.utils.vector_to_parameters(vector / 2, model.parameters())
    model.eval().save(tmp_path)
    with torch.no_grad():
        want = model(torch.tensor([list(b"abcdef")]))[0].numpy()
        assert np.abs(want - byte_model()(torch.tensor([list(b"abcdef")]))[0].numpy()).max() > 0.1
    np.testing.assert_allclose(trivium.load(tmp_path).logits(list(b"abcdef")), want, atol=1e-5)


def test_tokens_are_checked_and_never_taken_for_a_mask():
    model = byte_model()
    text = torch.tensor([list(b"abcdef")])
    assert torch.equal(model(text.to(torch.uint8)), model(text))
    assert model(text[:0]).shape == (0, 6, 256)
    for tokens, part in (
        (text - 300, "expected 0 to 255"),
        (text + 200, "expected 0 to 255"),
        (text.bool(), "torch.bool"),
        (text.float(), "torch.float32"),
        (text[0], r"\[6\]"),
        (text[:, :0], r"\[1, 0\]"),
        (text.repeat(1, 2), r"\[1, 12\]"),
    ):
        with pytest.raises(trivium.InvalidArgument, match=part):
            model(tokens)
