"""trivium.torch.LUTLayer: autograd, custom ops, torch.compile, optimizers, policies."""

import contextlib

import numpy as np
import pytest
import trivium
from trivium import lut

torch = pytest.importorskip("torch")
from trivium.torch import LUTLayer, LUTTransformer, lut_module  # noqa: E402

META = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
CASES = {
    "rows": dict(n_inputs=7, n_anchors_per_detector=3, n_detectors=5, n_outputs=4),
    "sequence": dict(
        n_inputs=6, n_anchors_per_detector=2, n_detectors=3, n_outputs=5, sequence_length=4, positional_dim=2
    ),
    "product": dict(
        n_inputs=6,
        n_anchors_per_detector=2,
        n_detectors=3,
        n_outputs=5,
        sequence_length=4,
        positional_dim=2,
        concatenation_product=False,
    ),
}


def make(name, **options):
    return LUTLayer(**CASES[name], synapse_meta=META, random_seed=1, **options)


def inputs(name, seed=1):
    shape = (3, 7) if name == "rows" else (3, 4, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_numpy_layer(name):
    layer, reference = make(name), lut.LUTLayer(**CASES[name], synapse_meta=META, random_seed=1)
    x = inputs(name).requires_grad_()
    y = layer(x)
    np.testing.assert_array_equal(y.detach().numpy(), reference.forward(x.detach().numpy()))
    gy = torch.randn(y.shape)
    y.backward(gy)
    np.testing.assert_array_equal(x.grad.numpy(), reference.backward(gy.numpy()))
    np.testing.assert_array_equal(layer.weight.grad.numpy(), reference.weight_gradient)
    if name != "rows":
        np.testing.assert_array_equal(layer.positional_embeddings.grad.numpy(), reference.positional_gradient)


@pytest.mark.parametrize("name", CASES)
def test_the_custom_op_passes_torchs_own_checks(name):
    layer = make(name)
    x = inputs(name).requires_grad_()
    torch.library.opcheck(
        torch.ops.trivium.lut_forward.default,
        (x, layer.weight, layer.positional_embeddings, layer.number, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("name", CASES)
def test_compiled_modules_give_the_same(name):
    layer = make(name)

    def loss(x):
        return (torch.sin(layer(torch.tanh(x))) ** 2).sum()

    x, other = inputs(name).requires_grad_(), inputs(name).requires_grad_()
    plain = loss(x)
    plain.backward()
    grads = layer.weight.grad.clone()
    layer.weight.grad = None
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(other)
    compiled.backward()
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(other.grad, x.grad)
    torch.testing.assert_close(layer.weight.grad, grads)


@pytest.mark.parametrize("name", CASES)
def test_compiled_modules_update_inside_of_backward(name):
    layers = [make(name, weights_gradient_policy="internal") for _ in range(2)]
    inputs_of = [inputs(name).requires_grad_() for _ in layers]
    torch._dynamo.reset()
    for layer, x, compiled in zip(layers, inputs_of, (False, True)):
        layer.set_learning_rate_hook(lambda weight: 0.25)

        def loss(x, layer=layer):
            return (torch.sin(layer(torch.tanh(x))) ** 2).sum()

        (torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss)(x).backward()
    torch.testing.assert_close(*(x.grad for x in inputs_of))
    torch.testing.assert_close(*(layer.weight.detach() for layer in layers))
    assert (layers[0].weight != make(name).weight).any()


def test_row_sparse_gradients_are_sparse_tensors():
    dense, rows = make("rows"), make("rows", weights_gradient_policy="row_sparse")
    for layer in (dense, rows):
        (layer(inputs("rows")) ** 2).sum().backward()
    assert rows.weight.grad.is_sparse
    torch.testing.assert_close(rows.weight.grad.to_dense(), dense.weight.grad)
    torch.optim.SGD(rows.parameters(), lr=0.1).step()
    torch.optim.SGD(dense.parameters(), lr=0.1).step()
    torch.testing.assert_close(rows.weight, dense.weight)


def test_internal_updates_take_their_step_from_the_optimizer():
    dense, layer = make("rows"), make("rows", weights_gradient_policy="internal")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    layer.set_learning_rate_hook(lambda weight: optimizer.param_groups[0]["lr"])
    x, other = inputs("rows").requires_grad_(), inputs("rows").requires_grad_()
    (layer(x) ** 2).sum().backward()
    (dense(other) ** 2).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=0)
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.weight, dense.weight - 0.25 * dense.weight.grad)


def test_optimizers_see_the_layers_own_memory():
    layer = make("rows")
    before = layer.layer.weight.copy()
    (layer(inputs("rows")) ** 2).sum().backward()
    torch.optim.Adam(layer.parameters(), lr=0.1).step()
    assert (layer.layer.weight != before).any()
    np.testing.assert_array_equal(
        layer(inputs("rows")).detach().numpy(), layer.layer.forward(inputs("rows").numpy())
    )


def test_state_dicts_carry_the_structure():
    a, b = make("sequence"), LUTLayer(**CASES["sequence"], synapse_meta=META, random_seed=2)
    assert (a(inputs("sequence")) != b(inputs("sequence"))).any()
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(b(inputs("sequence")), a(inputs("sequence")), rtol=0, atol=0)


def test_any_layer_becomes_a_module():
    layer = lut.ProjectionLUTLayer((6, 6), (5, 5), 3, 4, 2, 3, 3, synapse_meta=META, random_seed=1)
    x = torch.randn(2, 6, 6, requires_grad=True)
    y = lut_module(layer)(x)
    assert y.shape == (2, 5, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_inputs_that_need_no_gradient_and_evaluation():
    layer = make("rows")
    layer(inputs("rows")).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert not layer(inputs("rows")).requires_grad
    half = layer(inputs("rows").to(torch.bfloat16))
    assert half.dtype == torch.float32


def test_bad_inputs_are_named():
    with pytest.raises(trivium.InvalidArgument, match=r"x is \[3, 6\], expected \[batch, 7\]"):
        make("rows")(torch.zeros(3, 6))
    layer = make("rows", weights_gradient_policy="internal")
    with pytest.raises(trivium.InvalidArgument, match="needs set_learning_rate_hook"):
        layer(inputs("rows")).sum().backward()
    x = inputs("rows").requires_grad_()
    (first,) = torch.autograd.grad(make("rows")(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def transformer(cls, **options):
    return cls(32, 12, 6, 2, 2, 2, 3, 3, 2, synapse_meta=META, random_seed=4, **options)


@pytest.mark.parametrize("norm", [False, True])
def test_the_transformer_is_the_numpy_one(norm):
    ours, reference = (
        transformer(LUTTransformer, use_batch_norm=norm),
        transformer(lut.LUTTransformer, use_batch_norm=norm),
    )
    tokens = np.random.default_rng(1).integers(0, 32, (3, 6))
    logits = ours(torch.from_numpy(tokens))
    np.testing.assert_allclose(logits.detach().numpy(), reference.forward(tokens), atol=1e-5)
    g = np.random.default_rng(2).standard_normal(logits.shape).astype(np.float32)
    logits.backward(torch.from_numpy(g))
    reference.backward(g)
    for i, layer in enumerate(ours.attention):
        np.testing.assert_allclose(layer.weight.grad, reference.attention[i].weight_gradient, atol=1e-4)
        np.testing.assert_allclose(
            layer.positional_embeddings.grad, reference.attention[i].positional_gradient, atol=1e-4
        )
    np.testing.assert_allclose(ours.ffn[0].weight.grad, reference.ffn[0].weight_gradient, atol=1e-4)
    for torchs, numpys in zip(ours.ffn_norms, reference.ffn_norms):
        np.testing.assert_allclose(torchs.weight.grad, numpys.weight_gradient, atol=1e-4)
        np.testing.assert_allclose(torchs.running_var, numpys.running_var, rtol=1e-5)
    ours.eval()
    with torch.no_grad():
        evaluated = ours(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(evaluated, reference.forward(tokens, training=False), atol=1e-5)


def test_a_trained_transformer_is_saved_as_a_model_folder(tmp_path):
    numpy_model = lut.LUTTransformer(
        256, 12, 6, 2, 1, 2, 3, 3, 2, synapse_meta=META, random_seed=4, use_batch_norm=True
    )
    model = LUTTransformer(numpy_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    tokens = torch.tensor([list(b"abcdef"), list(b"ghijkl")])
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    model.eval().save(tmp_path)
    with torch.no_grad():
        want = model(tokens)[0].numpy()
    np.testing.assert_allclose(trivium.load(tmp_path).logits(list(b"abcdef")), want, atol=1e-4)
    with pytest.raises(trivium.InvalidArgument, match="dropout"):
        LUTTransformer(numpy_model, dropout=0.5)


def test_layers_stay_float32_and_on_devices_that_trivium_has():
    with pytest.raises(trivium.InvalidArgument, match=r"became torch.float16, expected torch.float32"):
        make("rows").half()
    with pytest.raises(trivium.Unsupported, match="torch's device meta"):
        make("rows").to("meta")
    layer = make("sequence")
    assert layer.to("cpu") is layer and np.shares_memory(layer.layer.weight, layer.weight.detach().numpy())


@pytest.mark.backend
@pytest.mark.parametrize("policy", ["dense", "row_sparse", "internal"])
@pytest.mark.parametrize("name", CASES)
def test_layers_run_where_their_parameters_are(backend, name, policy):
    """On cuda and hip with torch's own tensors; an emulated device has none of torch's, and says so."""
    options = dict(synapse_meta=META, random_seed=1, weights_gradient_policy=policy)
    if backend.startswith("emu"):
        layer = lut.LUTLayer(**CASES[name], device=backend, **options)
        with pytest.raises(trivium.Unsupported, match=f"whose memory torch can share, not on {backend}"):
            lut_module(layer)
        return
    results = []
    for device in ("cpu", "cpu" if backend == "cpu" else "cuda"):
        layer = LUTLayer(**CASES[name], **options).to(device)
        if policy == "internal":
            layer.set_learning_rate_hook(lambda weight: 0.25)
        x = inputs(name).to(device).requires_grad_()
        y = layer(x)
        (y**2).sum().backward()
        gradient = layer.weight if layer.weight.grad is None else layer.weight.grad.to_dense()
        results.append([t.detach().cpu().numpy() for t in (y, x.grad, gradient)])
        assert (
            x.grad.device.type == device and layer.native.device.split(":")[0] == backend or device == "cpu"
        )
    for ours, theirs in zip(*results):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.backend
@pytest.mark.parametrize("name", CASES)
def test_layers_on_a_device_take_and_give_its_tensors(backend, name):
    options = dict(synapse_meta=META, random_seed=1)
    there, here = (lut.LUTLayer(**CASES[name], device=d, **options) for d in (backend, "cpu"))
    x = inputs(name).numpy()
    pe = there.positional_embeddings
    y, saved = there.native.forward(there.weight, trivium.Tensor(x, device=backend), pe)
    g = there.native.backward(there.weight, y, saved)
    assert {t.device.split(":")[0] for t in (y, g.gx, g.gw)} == {backend}
    want = here.forward(x)
    np.testing.assert_array_equal(y.to("cpu").numpy(), want)
    np.testing.assert_array_equal(g.gx.to("cpu").numpy(), here.backward(want))
    np.testing.assert_array_equal(g.gw.to("cpu").numpy(), here.weight_gradient)
    np.testing.assert_array_equal(there.forward(trivium.Tensor(x, device=backend)), want)
    if backend != "cpu":
        with pytest.raises(trivium.InvalidArgument, match=r"x is .*cpu.*expected"):
            there.native.forward(there.weight, x, pe)


@pytest.mark.parametrize("policy", ["dense", "row_sparse", "internal"])
def test_kernels_are_called_with_the_tensors_device_as_the_current_one(monkeypatch, policy):
    """torch hands over a GPU's tensor by DLPack only while its device is the current one."""
    current, seen = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tuple(tensor.shape))
        yield
        current.pop()

    class Watched:
        def __init__(self, native):
            self.native = native

        def __getattr__(self, name):
            if name in ("forward", "backward"):
                seen.append((name, *current))
            return getattr(self.native, name)

    layer = make("rows", weights_gradient_policy=policy)
    if policy == "internal":
        layer.set_learning_rate_hook(lambda weight: 0.25)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(layer, "native", Watched(layer.native))
    layer(inputs("rows").requires_grad_()).sum().backward()
    assert seen == [("forward", (3, 7)), ("backward", (3, 7))]
