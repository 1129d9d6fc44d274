"""The mLSTM with the sigmoid input gate: its state is (C, n), and it passes between all functions."""

import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import mlstm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402

GATE = {"sigmoid_input_gate": True}


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def inputs(s=40, dq=8, dv=12, seed=2):
    rng = np.random.default_rng(seed)
    shapes = [(1, 2, s, dq), (1, 2, s, dq), (1, 2, s, dv), (1, 2, s), (1, 2, s)]
    x = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    x[4] += 2
    return x


def cut(x, begin, end):
    return [np.ascontiguousarray(a[:, :, begin:end]) for a in x]


def token(x, t):
    return [np.ascontiguousarray(a[:, :, t]) for a in x]


@pytest.mark.parametrize("normalize", [True, False])
def test_last_states_pass_from_call_to_call_to_step(normalize):
    x, options = inputs(), GATE | {"normalize": normalize}
    want = oracle.siging_fw(*(a.astype(np.float64) for a in x), normalize=normalize)[0]
    first = mlstm.chunkwise_fw(*cut(x, 0, 17), **options, CHUNK_SIZE=16, return_last_states=True)
    assert first.last_states.m is None
    second = mlstm.chunkwise_fw(
        *cut(x, 17, 33), *first.last_states, **options, CHUNK_SIZE=16, return_last_states=True
    )
    third = mlstm.recurrent_sequence(*cut(x, 33, 36), *second.last_states, **options, return_last_states=True)
    assert second.last_states.m is None and third.last_states.m is None
    c, n, m = (None if t is None else np.array(t) for t in third.last_states)
    rows = [np.asarray(out.matH) for out in (first, second, third)]
    for t in range(36, 40):
        rows.append(np.asarray(mlstm.recurrent_step(*token(x, t), c, n, m, **options))[:, :, None])
    assert relative(np.concatenate(rows, 2), want) < 2e-6


def test_in_torch_too():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from trivium.torch import mlstm_chunkwise, mlstm_step

    x = inputs()
    want = oracle.siging_fw(*(a.astype(np.float64) for a in x))[0]
    tensors = lambda arrays: [torch.tensor(a) for a in arrays]
    options = GATE | {"return_last_states": True, "chunk_size": 16}
    h1, state = mlstm_chunkwise(*tensors(cut(x, 0, 20)), **options)
    h2, (c, n, m) = mlstm_chunkwise(*tensors(cut(x, 20, 39)), *state, **options)
    assert state[2] is None and m is None
    h3 = mlstm_step(*tensors(token(x, 39)), c, n, m, **GATE)
    assert relative(torch.cat([h1, h2, h3[:, :, None]], 2), want) < 2e-6


def losses(x, state, g, normalize):
    h, _, c, n = oracle.siging_fw(*x, **state, eps=0.0, normalize=normalize)
    return (h * g[0]).sum() + (c * g[1]).sum() + (n * g[2]).sum()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("through", ["numpy", "torch"])
def test_gradients_with_states_match_finite_differences(normalize, through):
    x, rng = inputs(21, 4, 6, 5), np.random.default_rng(7)
    random = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    state = {"C0": random(1, 2, 4, 6), "n0": random(1, 2, 4)}
    g = random(1, 2, 21, 6), random(1, 2, 4, 6), random(1, 2, 4)
    if through == "numpy":
        options = GATE | {"normalize": normalize, "CHUNK_SIZE": 16, "EPS": 0.0}
        out = mlstm.chunkwise_fw(*x, *state.values(), **options)
        got = mlstm.chunkwise_bw(
            *x, *state.values(), vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=g[0], matDeltaC_last=g[1],
            vecDeltaN_last=g[2], **options,
        )  # fmt: skip
        assert got.scaDeltaM_initial is None
    else:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        from trivium.torch import mlstm_chunkwise

        leaves = [torch.tensor(a, requires_grad=True) for a in (*x, *state.values())]
        h, (c, n, _) = mlstm_chunkwise(
            *leaves, return_last_states=True, chunk_size=16, eps=0.0, normalize=normalize, **GATE
        )
        loss = (
            (h * torch.tensor(g[0])).sum() + (c * torch.tensor(g[1])).sum() + (n * torch.tensor(g[2])).sum()
        )
        loss.backward()
        got = [t.grad for t in leaves]
    exact = [a.astype(np.float64) for a in x]
    start = {name: a.astype(np.float64) for name, a in state.items()}
    for gradient, a in zip(got, [*exact, *start.values()]):
        want = np.zeros_like(a)
        for place in np.ndindex(a.shape):
            kept, ends = a[place], []
            for step in (1e-5, -1e-5):
                a[place] = kept + step
                ends.append(losses(exact, start, g, normalize))
            a[place] = kept
            want[place] = (ends[0] - ends[1]) / 2e-5
        assert relative(gradient, want) < 2e-5


def test_an_m_is_refused():
    x = inputs()
    last = mlstm.chunkwise_fw(*x, return_last_states=True).last_states
    c, n, m = (np.array(t) for t in last)
    for call in (
        lambda: mlstm.chunkwise_fw(*x, c, n, m, **GATE),
        lambda: mlstm.recurrent_sequence(*x, c, n, m, **GATE),
        lambda: mlstm.recurrent_step(*token(x, 0), c, n, m, **GATE),
    ):
        with pytest.raises(trivium.InvalidArgument, match="with the sigmoid input gate there is no m"):
            call()
    with pytest.raises(trivium.InvalidArgument, match="scaM is missing"):
        mlstm.recurrent_step(*token(x, 0), c, n)
