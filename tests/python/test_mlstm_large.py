"""The mLSTM's forward pass over the grid of lengths, chunks and head sizes, long sequences and states beyond 2^31."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from trivium import mlstm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 256, 500, 1000, 4096)


def inputs(b, nh, s, dq, dv, seed=0, i=0.0, f=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((b, nh, s, dq), (b, nh, s, dq), (b, nh, s, dv), (b, nh, s), (b, nh, s))
    x = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    x[3] += np.float32(i)
    x[4] += np.float32(f)
    return x


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def expect_outputs(out, want, limit=2e-6):
    """relative L2 of all outputs, and the error of rows: 99 % of them and the worst."""
    assert np.isfinite(np.asarray(out.matH)).all()
    assert relative(out.matH, want) < limit
    error = np.sqrt(((np.asarray(out.matH, np.float64) - want) ** 2).mean(-1))
    rows = error / np.maximum(np.sqrt((np.asarray(want, np.float64) ** 2).mean(-1)), 1e-30)
    assert np.quantile(rows, 0.99) < 1e-5 * limit / 2e-6
    assert rows.max() < 1e-4 * limit / 2e-6


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_and_chunks_match_the_recurrence(length):
    x = inputs(1, 2, length, 8, 12, seed=length)
    want, *_ = oracle.recurrent_fw(*(a.astype(np.float64) for a in x))
    expect_outputs(mlstm.recurrent_sequence(*x), want)
    for chunk in (1, 16, 32, 64, 128, 256):
        expect_outputs(mlstm.chunkwise_fw(*x, CHUNK_SIZE=chunk), want)


@pytest.mark.parametrize(
    "heads",
    [(16, 16), (24, 48), (48, 96), (64, 128), (128, 64), (256, 512), (512, 512), (1, 1), (3, 5), (256, 1024)],
)
def test_head_sizes_match_the_oracle(heads):
    x = inputs(1, 2, 70, *heads, seed=sum(heads))
    want = oracle.parallel_fw(*(a.astype(np.float64) for a in x))[0]
    expect_outputs(mlstm.chunkwise_fw(*x), want)


@pytest.mark.parametrize("b", [1, 2, 3, 8])
@pytest.mark.parametrize("nh", [1, 2, 3, 8])
def test_batches_and_heads_match_the_oracle(b, nh):
    x = inputs(b, nh, 33, 6, 10, seed=10 * b + nh)
    want = oracle.parallel_fw(*(a.astype(np.float64) for a in x))[0]
    expect_outputs(mlstm.chunkwise_fw(*x, CHUNK_SIZE=16), want)


def test_nothing_is_forgotten_over_a_long_sequence():
    """f = 50: log sigmoid(f) is about -2e-22, and the first token counts as much as the last. The denominator is a
    random walk that passes zero; rows count where it is 0.1 |q| |n| / sqrt(DHQK) or more."""
    x = inputs(1, 1, 16384, 8, 8, seed=3)
    x[4][:] = 50
    exact = [a.astype(np.float64) for a in x]
    want, *_ = oracle.recurrent_fw(*exact)
    q, k, _, i, _ = exact
    n = np.cumsum(np.exp(i)[..., None] * k, 2)
    lengths = np.linalg.norm(q, axis=-1) * np.linalg.norm(n, axis=-1)
    kept = np.abs((q * n).sum(-1)) >= 0.1 * lengths
    assert kept.mean() > 0.7
    for out in (mlstm.chunkwise_fw(*x), mlstm.recurrent_sequence(*x)):
        got = np.asarray(out.matH)
        assert np.isfinite(got).all()
        assert relative(got[kept], want[kept]) < 8e-6


GATES = (-100, -60, -50, 0, 50, 60, 100)


def gate_cases(length):
    """Constant pairs, alternating, wide random, a forget gate of -1000, and input gates that rise and fall."""
    time = np.arange(length, dtype=np.float32)
    rng = np.random.default_rng(4)
    for i in GATES:
        for f in GATES:
            yield f"i {i}, f {f}", np.full(length, i), np.full(length, f)
    swing = np.where(time % 2 == 0, 60, -60)
    yield "alternating", swing, -swing
    yield "random", 30 * rng.standard_normal(length), 30 * rng.standard_normal(length)
    yield "f -1000", np.zeros(length), np.full(length, -1000)
    yield "rising", 200 * time / length, np.ones(length)
    yield "falling", -200 * time / length, np.ones(length)


def test_extreme_gates_match_the_oracle():
    x = inputs(1, 1, 80, 8, 8, seed=8)
    x[0], x[1] = np.abs(x[0]), np.abs(x[1])  # denominators that do not cancel
    dh = np.random.default_rng(3).standard_normal(x[2].shape).astype(np.float32)
    for name, i, f in gate_cases(80):
        x[3], x[4] = (np.asarray(g, np.float32)[None, None] for g in (i, f))
        exact = [a.astype(np.float64) for a in x]
        options = {"L": 16, "m_floor": -10.0}
        named = dict(zip("qkvif", exact))
        want, den, m, (c, n, m_last), _ = oracle.chunkwise_fw(**named, **options)
        out = mlstm.chunkwise_fw(*x, CHUNK_SIZE=16, return_last_states=True)
        last = out.last_states
        # m itself is a float32 of up to 3e4, and what den and the state lose by that stands in their units.
        shift = np.exp(np.asarray(out.vecM_out, np.float64) - m)
        last_shift = np.exp(np.asarray(last.m, np.float64) - m_last)
        assert np.abs(np.asarray(out.vecM_out) - m).max() <= 4e-7 * max(1, np.abs(m).max()), name
        assert np.abs(np.asarray(last.m) - m_last).max() <= 4e-7 * max(1, np.abs(m_last).max()), name
        for what, got, right in (
            ("h", out.matH, want),
            ("den", np.asarray(out.vecN_out, np.float64) * shift, den),
            ("C", np.asarray(last.C, np.float64) * last_shift[..., None, None], c),
            ("n", np.asarray(last.n, np.float64) * last_shift[..., None], n),
        ):
            got = np.asarray(got, np.float64)
            assert np.isfinite(got).all(), (name, what)
            error = np.linalg.norm(got - right)
            assert error < 8e-6 * np.linalg.norm(right) + 1e-30, (name, what, error, np.linalg.norm(right))
        got = mlstm.chunkwise_bw(
            *x, vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=dh, CHUNK_SIZE=16
        )
        right, terms = (
            oracle.chunkwise_bw(**named, dH=dh.astype(np.float64), mode=mode, **options)
            for mode in ("exact", "approx")
        )
        for what, gradient in zip("qkvif", got):
            gradient = np.asarray(gradient, np.float64)
            assert np.isfinite(gradient).all(), (name, what)
            error, size = np.linalg.norm(gradient - right[what]), np.linalg.norm(right[what])
            # Where a row sees one token alone the denominator's path cancels the rest, whose rounding stays. Below
            # 1e-30 float32 has no digits left for the products.
            assert error < 1e-4 * size + 1e-5 * np.linalg.norm(terms[what]) + 1e-30, (name, what, error, size)


def test_approximate_gradients_are_close_behind_a_layer_norm():
    """mlstm.md 7.1: a loss that normalises h over its head takes away the part in which the modes differ."""
    x = inputs(2, 2, 60, 16, 16, seed=11, i=-1, f=3)
    out = mlstm.chunkwise_fw(*x)
    h = np.asarray(out.matH, np.float64)
    g = np.random.default_rng(5).standard_normal(h.shape)
    centred = h - h.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True))
    y = centred / deviation
    dh = (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)) / deviation
    exact, approx = (
        mlstm.chunkwise_bw(
            *x,
            vecN_out=out.vecN_out,
            vecM_out=out.vecM_out,
            matDeltaH=dh.astype(np.float32),
            grad_mode=mode,
        )
        for mode in ("exact", "approx")
    )
    for a, b in zip(approx[:5], exact[:5]):
        assert relative(a, b) < 1e-2


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_a_step_of_any_batch_is_the_oracles(batch):
    x, state, _ = oracle.make_inputs(B=batch, NH=2, S=1, DQ=6, DV=10, seed=batch)
    q, k, v, i, f = (x[name].astype(np.float32) for name in "qkvif")
    c, n, m = (state[name].astype(np.float32) for name in ("C0", "n0", "m0"))
    want, *_ = oracle.recurrent_fw(**x, **state)
    got = mlstm.recurrent_sequence(q, k, v, i, f, c, n, m)
    assert relative(got.matH, want) < 2e-6
    tokens = [np.ascontiguousarray(a[:, :, 0]) for a in (q, k, v, i, f)]
    h = mlstm.recurrent_step(*tokens, c, n, m)  # in place
    np.testing.assert_array_equal(h, np.asarray(got.matH)[:, :, 0])
    _, _, _, c1, n1, m1 = oracle.recurrent_fw(**x, **state)
    for mine, theirs in ((c, c1), (n, n1), (m, m1)):
        assert relative(mine, theirs[:, :, -1]) < 2e-6


def test_a_thousand_steps_are_the_sequence():
    x = inputs(2, 2, 1000, 8, 8, seed=12, f=4)
    whole = mlstm.recurrent_sequence(*x)
    c, n, m = (
        np.zeros((2, 2, 8, 8), np.float32),
        np.zeros((2, 2, 8), np.float32),
        np.zeros((2, 2), np.float32),
    )
    rows = []
    for t in range(1000):
        q, k, v, i, f = (np.ascontiguousarray(a[:, :, t : t + 1]) for a in x)
        out = mlstm.recurrent_sequence(q, k, v, i, f, c, n, m, return_last_states=True)
        rows.append(np.asarray(out.matH))
        c, n, m = (np.asarray(s) for s in out.last_states)
    assert np.array_equal(np.concatenate(rows, 2), np.asarray(whole.matH))


def test_small_outputs_keep_their_accuracy():
    x = inputs(1, 1, 300, 16, 16, seed=5, i=-10)
    x[4][:] = np.linspace(3, 6, 300, dtype=np.float32)
    want, *_ = oracle.recurrent_fw(*(a.astype(np.float64) for a in x))
    assert np.abs(want).max() < 1e-2
    expect_outputs(mlstm.chunkwise_fw(*x), want)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("scale", [None, 0.03, 1.5])
def test_eps_and_scale(eps, scale):
    x = inputs(1, 2, 50, 8, 8, seed=6)
    want = oracle.parallel_fw(*(a.astype(np.float64) for a in x), qk_scale=scale, eps=eps)[0]
    options = dict(qk_scale=scale, EPS=eps, CHUNK_SIZE=16)
    out = mlstm.chunkwise_fw(*x, **options)
    expect_outputs(out, want)
    dh = np.random.default_rng(7).standard_normal(want.shape).astype(np.float32)
    exact = dict(zip("qkvif", (a.astype(np.float64) for a in x)))
    for mode in ("exact", "approx"):
        want = oracle.chunkwise_bw(
            **exact, dH=dh.astype(np.float64), L=16, allow_tail=True, qk_scale=scale, eps=eps, mode=mode,
            m_floor=-10.0,
        )  # fmt: skip
        got = mlstm.chunkwise_bw(
            *x, vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=dh, grad_mode=mode, **options
        )
        for name, gradient in zip("qkvif", got):
            assert relative(gradient, want[name]) < 1e-4, (mode, name)


@pytest.mark.slow
@pytest.mark.parametrize("length", [65536, 262144])
def test_long_sequences_match_the_recurrence(length):
    x = inputs(1, 1, length, 16, 16, seed=length, f=5)
    chunked = mlstm.chunkwise_fw(*x, return_last_states=True)
    stepped = mlstm.recurrent_sequence(*x, return_last_states=True)
    at = np.unique(np.r_[0:64, np.random.default_rng(1).integers(0, length, 2000), length - 64 : length])
    got, want = np.asarray(chunked.matH)[:, :, at], np.asarray(stepped.matH)[:, :, at]
    assert np.isfinite(got).all()
    assert relative(got, want) < 8e-6
    scale = np.exp(np.asarray(chunked.last_states.m) - np.asarray(stepped.last_states.m))[..., None]
    assert relative(np.asarray(chunked.last_states.n) * scale, stepped.last_states.n) < 8e-6


@pytest.mark.slow
def test_gradients_of_a_long_sequence_match_the_oracle():
    """65,536 tokens; the oracle's recursion in chunks is float64. No gradient enters where the denominator cancels."""
    length = 65536
    x, state, g = oracle.make_inputs(B=1, NH=1, S=length, DQ=8, DV=8, seed=3, f_off=5.0)
    x, state, g = ({name: a.astype(np.float32) for name, a in d.items()} for d in (x, state, g))
    exact = lambda d: {name: a.astype(np.float64) for name, a in d.items()}
    _, den, _, _, n, _ = oracle.recurrent_fw(**exact(x), **exact(state))
    size = np.linalg.norm(x["q"], axis=-1) * np.linalg.norm(n[:, :, 1:], axis=-1) * 8**-0.5
    kept = den >= 0.1 * size
    assert kept.mean() > 0.75
    g["dH"] = np.where(kept[..., None], g["dH"], np.float32(0))
    arguments = [x[name] for name in "qkvif"] + [state[name] for name in ("C0", "n0", "m0")]
    out = mlstm.chunkwise_fw(*arguments)
    for mode in ("exact", "approx"):
        want = oracle.chunkwise_bw(
            **exact(x),
            **exact(state),
            **exact({n: g[n] for n in ("dH", "dC", "dn")}),
            L=64,
            mode=mode,
            m_floor=-10.0,
        )
        got = mlstm.chunkwise_bw(
            *arguments, vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=g["dH"], matDeltaC_last=g["dC"],
            vecDeltaN_last=g["dn"], grad_mode=mode,
        )  # fmt: skip
        for name, gradient in zip(("q", "k", "v", "i", "f", "C0", "n0", "m0"), got):
            if mode == "approx" and name in ("n0", "m0"):
                assert not np.asarray(gradient).any()
            else:
                limit = 4e-4 if name in ("i", "f", "m0") else 4e-5  # four times those of short sequences
                assert relative(gradient, want[name]) < limit, (mode, name)


def test_the_sigmoid_gates_gradients_without_a_denominator():
    """normalize=False: h = q C / sqrt(d) alone; against differences of the float64 oracle."""
    x = inputs(1, 2, 21, 4, 6, seed=9)
    dh = np.random.default_rng(2).standard_normal((1, 2, 21, 6)).astype(np.float32)
    options = {"sigmoid_input_gate": True, "normalize": False, "CHUNK_SIZE": 16}
    out = mlstm.chunkwise_fw(*x, **options)
    exact = [a.astype(np.float64) for a in x]
    assert relative(out.matH, oracle.siging_fw(*exact, normalize=False)[0]) < 2e-6
    got = mlstm.chunkwise_bw(*x, vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=dh, **options)

    def loss():
        return (oracle.siging_fw(*exact, normalize=False)[0] * dh).sum()

    for gradient, a in zip(got, exact):
        want, step = np.zeros_like(a), 1e-5
        for place in np.ndindex(a.shape):
            kept = a[place]
            a[place] = kept + step
            above = loss()
            a[place] = kept - step
            want[place] = (above - loss()) / (2 * step)
            a[place] = kept
        assert relative(gradient, want) < 1e-5


def free_bytes():
    for line in open("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_states_beyond_two_to_the_31st_element():
    """8193 chunks of states of 512 x 512: the last block begins at element 2^31 of C."""
    chunk, chunks, head = 16, 8192, 512
    if free_bytes() < 14 << 30:
        pytest.skip("14 GiB of free memory are needed for 2^31 states")
    x = inputs(1, 1, chunk * chunks, head, head, seed=1, f=3)
    out = mlstm.chunkwise_fw(*x, CHUNK_SIZE=chunk, return_all_states=True, return_last_states=True)
    c = np.from_dlpack(out.all_states.C)
    assert c.size > 2**31
    for at in (chunks, chunks - 1):  # beyond the boundary, and the last before it
        short = [a[:, :, (at - 40) * chunk : at * chunk] for a in x]
        begin = (at - 40) * head
        state = {
            "matC_initial": c[:, :, begin : begin + head],
            "vecN_initial": np.asarray(out.all_states.n)[:, :, begin : begin + head],
            "scaM_initial": np.asarray(out.all_states.m)[:, :, at - 40],
        }
        again = mlstm.chunkwise_fw(*short, **state, CHUNK_SIZE=chunk, return_last_states=True).last_states
        assert relative(c[:, :, at * head : (at + 1) * head], again.C) < 1e-5
    assert np.array_equal(c[:, :, chunks * head :], np.asarray(out.last_states.C))
