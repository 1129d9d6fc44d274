"""trivium.torch.mlstm_chunkwise, mlstm_step and mLSTMLayer as torch's own machinery meets them."""

import pytest
import trivium

torch = pytest.importorskip("torch")
from trivium.torch import mlstm_chunkwise, mlstm_step, mLSTMLayer  # noqa: E402


def strided(batch=2, heads=2, tokens=70, dim=8):
    """q, k, v and gates as a layer makes them: views of [B, S, NH, DH], which no layout of the results follows."""
    g = torch.Generator().manual_seed(1)
    wide = [torch.randn(batch, tokens, heads, dim, generator=g).transpose(1, 2) for _ in range(3)]
    return [*wide, *(torch.randn(batch, tokens, heads, generator=g).transpose(1, 2) for _ in range(2))]


def state(batch=2, heads=2, dim=8):
    g = torch.Generator().manual_seed(2)
    shapes = (batch, heads, dim, dim), (batch, heads, dim), (batch, heads, 1)
    return [torch.randn(shape, generator=g) for shape in shapes]


@pytest.mark.parametrize("with_state", [False, True])
def test_what_torch_is_told_of_results_is_true_for_strided_arguments(with_state):
    initial = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in state()] if with_state else [None] * 3
    leaves = [t.requires_grad_() for t in strided()]
    torch.library.opcheck(
        torch.ops.trivium.mlstm_forward.default,
        (*leaves, *initial, True, 1e-6, 64, None, "exact"),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


def test_a_layer_compiled_by_default_gives_the_same():
    """inductor lays its buffers out by what the op says of its results."""
    torch.manual_seed(1)
    layer, x = mLSTMLayer(16, 2), torch.randn(2, 70, 16)
    torch._dynamo.reset()
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        layer.zero_grad()
        y, last = run(x)
        (y.sin().sum() + last[0].sum()).backward()
        results.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    for plain, compiled in zip(*results):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_state", [False, True])
def test_an_empty_batch_has_empty_results(with_state):
    x = [t.requires_grad_() for t in strided(batch=0)]
    initial = [t.requires_grad_() for t in state(batch=0)] if with_state else []
    h, (c, n, m) = mlstm_chunkwise(*x, *initial, return_last_states=True)
    assert (h.shape, c.shape, n.shape, m.shape) == ((0, 2, 70, 8), (0, 2, 8, 8), (0, 2, 8), (0, 2, 1))
    (h.sum() + c.sum() + n.sum()).backward()
    assert all(t.grad.shape == t.shape for t in (*x, *initial))
    assert mLSTMLayer(16, 2)(torch.zeros(0, 5, 16))[0].shape == (0, 5, 16)


def test_an_empty_sequence_is_named():
    for call in (
        lambda: mlstm_chunkwise(*strided(tokens=0)),
        lambda: mLSTMLayer(16, 2)(torch.zeros(2, 0, 16)),
    ):
        with pytest.raises(trivium.InvalidArgument, match="the sequence is empty"):
            call()


def test_a_step_that_changes_what_a_gradient_needs_is_noticed():
    q, k, v, i, f = (t[:, :, 0] for t in strided())
    c, n, m = state()
    weight = torch.ones(1, requires_grad=True)
    y = (weight * c).sum()
    mlstm_step(q, k, v, i, f, c, n, m)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with torch.inference_mode():
        assert mlstm_step(q, k, v, i, f, *(t.clone() for t in (c, n, m))).shape == v.shape


def test_a_step_takes_tokens_that_are_views_of_a_sequence():
    whole = [t[:, :, 3] for t in strided()]
    assert not whole[0].is_contiguous()
    results = []
    for token in (whole, [t.contiguous() for t in whole]):
        c, n, m = state()
        results.append((mlstm_step(*token, c, n, m), c, n, m))
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("dim", "heads"), [(8, 0), (8, -2), (0, 1), (1, 1)])
def test_layers_without_dimensions_are_refused(dim, heads):
    with pytest.raises(trivium.InvalidArgument, match=f"embedding_dim is {dim} and num_heads {heads}"):
        mLSTMLayer(dim, heads)


@pytest.mark.parametrize("shape", [(5, 16), (2, 5, 15), (1, 2, 5, 16)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(trivium.InvalidArgument, match=r"expected \[batch, positions, 16\]"):
        mLSTMLayer(16, 2)(torch.zeros(shape))
