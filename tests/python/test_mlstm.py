"""trivium.mlstm and trivium.torch: the oracle, finite differences, mlstm_kernels' torch code, and arguments."""

import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import mlstm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


def make(seed=0, **sizes):
    x, state, g = oracle.make_inputs(seed=seed, **sizes)
    f32 = lambda d: {n: a.astype(np.float32) for n, a in d.items()}
    return f32(x), f32(state), f32(g)


def call(x):
    return x["q"], x["k"], x["v"], x["i"], x["f"]


def initial(state):
    return {"matC_initial": state["C0"], "vecN_initial": state["n0"], "scaM_initial": state["m0"]}


@pytest.mark.parametrize("sizes", [(2, 2, 24, 5, 7, 8), (1, 3, 65, 16, 24, 32), (1, 1, 200, 64, 128, 64)])
def test_forward_and_gradients_match_the_oracle(sizes):
    b, nh, s, dq, dv, chunk = sizes
    x, state, g = make(B=b, NH=nh, S=s, DQ=dq, DV=dv)
    h, den, m, last, _ = oracle.chunkwise_fw(**x, **state, L=chunk, allow_tail=True, m_floor=-10.0)
    out = mlstm.chunkwise_fw(
        *call(x), **initial(state), return_last_states=True, return_all_states=True, CHUNK_SIZE=chunk
    )
    assert relative(out.matH, h) < 2e-6
    assert relative(out.vecN_out, den) < 2e-6
    assert relative(out.vecM_out, m) < 1e-6
    assert relative(out.last_states.C, last[0]) < 2e-6
    chunks = -(-s // chunk)
    assert out.all_states.C.shape == (b, nh, (chunks + 1) * dq, dv)
    assert out.all_states.n.shape == (b, nh, (chunks + 1) * dq)
    assert out.all_states.m.shape == (b, nh, chunks + 1)
    for mode in ("exact", "approx"):
        want = oracle.chunkwise_bw(
            **x,
            **state,
            dH=g["dH"],
            dC=g["dC"],
            dn=g["dn"],
            L=chunk,
            mode=mode,
            allow_tail=True,
            m_floor=-10.0,
        )
        got = mlstm.chunkwise_bw(
            *call(x),
            **initial(state),
            vecN_out=out.vecN_out,
            vecM_out=out.vecM_out,
            matDeltaH=g["dH"],
            matDeltaC_last=g["dC"],
            vecDeltaN_last=g["dn"],
            CHUNK_SIZE=chunk,
            grad_mode=mode,
        )
        for name, value in zip(("q", "k", "v", "i", "f", "C0", "n0", "m0"), got):
            if mode == "approx" and name in ("n0", "m0"):
                assert not np.asarray(value).any()
            else:
                assert relative(value, want[name]) < 1e-4, (mode, name)


def test_exact_gradients_match_finite_differences():
    x, state, g = make(seed=5, B=1, NH=1, S=6, DQ=3, DV=4)

    def loss(z):
        h, _, _, c, n, m = oracle.recurrent_fw(**z, eps=0.0)
        # A loss on the state as its users see it: C exp(m), n exp(m).
        scale = np.exp(m[:, :, -1])
        return (
            (h * g["dH"]).sum()
            + (c[:, :, -1] * scale[..., None, None] * g["dC"]).sum()
            + (n[:, :, -1] * scale[..., None] * g["dn"]).sum()
        )

    z = {n: a.astype(np.float64) for n, a in {**x, **state}.items()}
    out = mlstm.chunkwise_fw(*call(x), **initial(state), return_last_states=True, EPS=0.0, CHUNK_SIZE=4)
    scale = np.exp(np.asarray(out.last_states.m))
    got = mlstm.chunkwise_bw(
        *call(x),
        **initial(state),
        vecN_out=out.vecN_out,
        vecM_out=out.vecM_out,
        matDeltaH=g["dH"],
        matDeltaC_last=g["dC"] * scale[..., None, None],
        vecDeltaN_last=g["dn"] * scale[..., None],
        EPS=0.0,
        CHUNK_SIZE=4,
    )
    for name, value in zip(("q", "k", "v", "i", "f", "C0", "n0", "m0"), got):
        numeric = np.zeros_like(z[name])
        for index in np.ndindex(*z[name].shape):
            ends = []
            for sign in (1, -1):
                moved = {n: a.copy() for n, a in z.items()}
                moved[name][index] += sign * 1e-5
                ends.append(loss(moved))
            numeric[index] = (ends[0] - ends[1]) / 2e-5
        assert relative(value, numeric) < 2e-5, name


def test_the_seeds_names_exist_and_their_backward_is_the_approximate_one():
    x, _, g = make(B=1, NH=2, S=32, DQ=8, DV=12)
    h, n_out, m_out, last, states = mlstm._mlstm_chunkwise_fw(*call(x), return_all_states=True, CHUNK_SIZE=16)
    assert last is None
    log_f = oracle.log_sigmoid(x["f"]).astype(np.float32)
    vec_b = np.cumsum(log_f.reshape(1, 2, 2, 16), -1)
    vec_i = x["i"].reshape(1, 2, 2, 16)
    buffers = [np.empty(t.shape, np.float32) for t in states]
    parts = mlstm._mlstm_chunkwise__recurrent_fw_C(
        x["k"], x["v"], vec_b, vec_i, *buffers, CHUNK_SIZE=16, NUM_CHUNKS=2
    )
    for part, whole, buffer in zip(parts, states, buffers):
        assert relative(part, whole) < 4e-6
        np.testing.assert_array_equal(part, buffer)
    h2, n2, m2 = mlstm._mlstm_chunkwise__parallel_fw_H(
        x["q"], x["k"], x["v"], *parts, vec_i, vec_b, CHUNK_SIZE=16
    )
    assert relative(h2, h) < 4e-6 and relative(n2, n_out) < 4e-6 and relative(m2, m_out) < 1e-6
    known = dict(vecN_out=n_out, vecM_out=m_out, matDeltaH=g["dH"])
    whole = mlstm._mlstm_chunkwise_bw(*call(x), **known, chunk_size=16)
    for a, b in zip(whole[:5], mlstm.chunkwise_bw(*call(x), **known, CHUNK_SIZE=16, grad_mode="approx")):
        np.testing.assert_array_equal(a, b)
    dc, first, m_first = mlstm._mlstm_chunkwise__recurrent_bw_dC(
        x["q"], log_f, states.m, m_out, g["dH"], n_out, CHUNK_SIZE=16, store_initial_state=True
    )
    assert dc.shape == (1, 2, 2 * 8, 12) and first.shape == (1, 2, 8, 12) and m_first.shape == (1, 2)
    got = mlstm._mlstm_chunkwise__parallel_bw_dQKV(
        x["q"], x["k"], x["v"], log_f, x["i"], states.C, states.m, g["dH"], n_out, m_out, dc, CHUNK_SIZE=16
    )
    for a, b in zip(got[:4], whole[:4]):
        assert relative(a, b) < 1e-5
    sigmoid = np.exp(oracle.log_sigmoid(-x["f"].astype(np.float64)))
    assert relative(np.asarray(got[4]) * sigmoid, whole[4]) < 1e-5


def test_exact_parts_make_the_whole():
    x, state, g = make(B=1, NH=2, S=48, DQ=8, DV=12, seed=3)
    out = mlstm.chunkwise_fw(*call(x), **initial(state), return_all_states=True, CHUNK_SIZE=16)
    log_f = oracle.log_sigmoid(x["f"]).astype(np.float32)
    chunked = (1, 2, 3, 16)
    vec_b = np.cumsum(log_f.reshape(chunked), -1)
    forward = x["q"], x["k"], x["v"], *out.all_states, x["i"].reshape(chunked), vec_b
    h, n_out, m_out, nt = mlstm.parallel_fw_H(*forward, CHUNK_SIZE=16, return_vecNt=True)
    want = oracle.chunkwise_bw(
        **x, **state, dH=g["dH"], dC=g["dC"], dn=g["dn"], L=16, mode="exact", m_floor=-10.0
    )
    after = mlstm.recurrent_bw_dC(
        x["q"], log_f, out.all_states.m, m_out, g["dH"], n_out, g["dC"],
        CHUNK_SIZE=16, store_initial_state=True, grad_mode="exact", matH=h, vecNt=nt, vecDeltaN_last=g["dn"],
    )  # fmt: skip
    assert after.vecDeltaN_states.shape == (1, 2, 3 * 8)
    got = mlstm.parallel_bw_dQKV(
        x["q"], x["k"], x["v"], log_f, x["i"], out.all_states.C, out.all_states.m, g["dH"], n_out, m_out,
        after.matDeltaC_states, CHUNK_SIZE=16, grad_mode="exact", vecN_states=out.all_states.n,
        vecDeltaN_states=after.vecDeltaN_states,
    )  # fmt: skip
    got = [*got[:4], np.asarray(got[4]) * oracle.sigmoid(-x["f"].astype(np.float64))]
    got += [after.matDeltaC_initial, after.vecDeltaN_initial]
    for name, value in zip(("q", "k", "v", "i", "f", "C0", "n0"), got):
        assert relative(value, want[name]) < 1e-4, name


def test_parts_say_what_their_mode_needs():
    x, _, g = make(B=1, NH=1, S=16, DQ=4, DV=4)
    out = mlstm.chunkwise_fw(*call(x), return_all_states=True, CHUNK_SIZE=16)
    states = out.all_states
    known = x["q"], x["f"], states.m, out.vecM_out, g["dH"], out.vecN_out
    with pytest.raises(ValueError, match="matH is missing, which the exact gradient needs"):
        mlstm.recurrent_bw_dC(*known, CHUNK_SIZE=16, grad_mode="exact")
    with pytest.raises(ValueError, match="vecNt is given, but only the exact gradient needs it"):
        mlstm.recurrent_bw_dC(*known, CHUNK_SIZE=16, vecNt=out.vecN_out)
    with pytest.raises(ValueError, match="vecDeltaN_last is given"):
        mlstm.recurrent_bw_dC(*known, CHUNK_SIZE=16, vecDeltaN_last=states.n)
    with pytest.raises(ValueError, match='grad_mode is "fast"'):
        mlstm.recurrent_bw_dC(*known, CHUNK_SIZE=16, grad_mode="fast")
    dc = mlstm.recurrent_bw_dC(*known, CHUNK_SIZE=16).matDeltaC_states
    rest = x["q"], x["k"], x["v"], x["f"], x["i"], states.C, states.m, g["dH"], out.vecN_out, out.vecM_out, dc
    with pytest.raises(ValueError, match="vecN_states is missing, which the exact gradient needs"):
        mlstm.parallel_bw_dQKV(*rest, CHUNK_SIZE=16, grad_mode="exact")


def test_steps_continue_a_prefill_in_place():
    x, _, _ = make(B=2, NH=2, S=40, DQ=16, DV=24)
    whole = np.asarray(mlstm.recurrent_sequence(*call(x)).matH)
    cut = {n: np.ascontiguousarray(a[:, :, :33]) for n, a in x.items()}
    last = mlstm.chunkwise_fw(*call(cut), return_last_states=True, CHUNK_SIZE=16).last_states
    c, n, m = (np.array(t) for t in last)
    for t in range(33, 40):
        h = mlstm.recurrent_step(*(np.ascontiguousarray(a[:, :, t]) for a in call(x)), c, n, m)
        assert relative(h, whole[:, :, t]) < 1e-5
    with pytest.raises(ValueError, match="matQ"):
        mlstm.recurrent_step(*call(x), c, n, m)


def test_initial_m_may_have_a_last_dimension_of_one():
    x, state, _ = make()
    flat = mlstm.chunkwise_fw(*call(x), **initial(state)).matH
    state["m0"] = state["m0"][..., None]
    np.testing.assert_array_equal(mlstm.chunkwise_fw(*call(x), **initial(state)).matH, flat)


def test_arguments_are_checked_by_name():
    x, state, _ = make()
    with pytest.raises(ValueError, match="matK"):
        mlstm.chunkwise_fw(x["q"], x["k"][:, :, :3], x["v"], x["i"], x["f"])
    with pytest.raises(ValueError, match="vecN_initial"):
        mlstm.chunkwise_fw(*call(x), matC_initial=state["C0"], scaM_initial=state["m0"])
    with pytest.raises(ValueError, match="vecN_out"):
        mlstm.chunkwise_bw(*call(x))
    with pytest.raises(ValueError, match="grad_mode"):
        out = mlstm.chunkwise_fw(*call(x))
        mlstm.chunkwise_bw(
            *call(x), vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=out.matH, grad_mode="fast"
        )
    with pytest.raises(ValueError, match="NUM_CHUNKS"):
        mlstm.parallel_fw_H(*(x["q"],) * 8, CHUNK_SIZE=8, NUM_CHUNKS=7)


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed")
    module.set_num_threads(2)
    return module


@pytest.fixture(scope="module")
def peer(torch):
    pytest.importorskip("mlstm_kernels", reason="mlstm_kernels is not installed: no second opinion")
    from mlstm_kernels.torch.chunkwise.native.fwbw import mlstm_chunkwise__native_autograd

    return mlstm_chunkwise__native_autograd


def test_torch_gradients_match_the_peers_autograd(torch, peer):
    from trivium.torch import mlstm_chunkwise

    torch.manual_seed(0)
    x = [torch.randn(2, 2, 64, d) for d in (16, 16, 24)] + [torch.randn(2, 2, 64), torch.randn(2, 2, 64) + 2]
    x += [torch.randn(2, 2, 16, 24), torch.randn(2, 2, 16), torch.randn(2, 2, 1)]
    mine = [t.clone().requires_grad_() for t in x]
    theirs = [t.double().requires_grad_() for t in x]
    h, (c, n, m) = mlstm_chunkwise(*mine, return_last_states=True, eps=0.0, chunk_size=16)
    h2, (c2, n2, m2) = peer(*theirs, return_last_states=True, eps=0.0, chunk_size=16)
    for a, b in ((h, h2), (c, c2), (n, n2), (m, m2)):
        assert relative(a.detach(), b.detach()) < 2e-6
    g, gc, gn = torch.randn_like(h), torch.randn_like(c), torch.randn_like(n)
    scale = torch.exp(m)
    loss = (h * g).sum() + (c * scale.detach()[..., None] * gc).sum() + (n * scale.detach() * gn).sum()
    loss.backward()
    scale2 = torch.exp(m2)
    ((h2 * g).sum() + (c2 * scale2[..., None] * gc).sum() + (n2 * scale2 * gn).sum()).backward()
    for name, a, b in zip("q k v i f c n m".split(), mine, theirs):
        assert relative(a.grad, b.grad) < 1e-5, name


def test_torch_ops_pass_torchs_own_checks(torch):
    q, k, v = (torch.randn(1, 2, 20, d, requires_grad=True) for d in (8, 8, 12))
    i, f = (torch.randn(1, 2, 20, requires_grad=True) for _ in range(2))
    import trivium.torch  # noqa: F401

    arguments = (q, k, v, i, f, None, None, None, True, 1e-6, 16, None, "exact")
    torch.library.opcheck(torch.ops.trivium.mlstm_forward.default, arguments)


@pytest.mark.filterwarnings("error")  # numpy's where a tensor comes otherwise than by DLPack
def test_torch_functions_run_where_their_tensors_are(torch, monkeypatch):
    """torch hands over a tensor by DLPack, which a GPU's need, only without gradients and on its current device."""
    import contextlib

    from trivium.torch import mlstm_chunkwise, mlstm_step

    current, seen = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.shape)
        yield
        current.pop()

    def watched(name):
        real = getattr(mlstm, name)
        monkeypatch.setattr(mlstm, name, lambda *a, **kw: seen.append((name, *current)) or real(*a, **kw))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_forward", "chunkwise_bw", "recurrent_step"):
        watched(name)
    q, k, v = (torch.randn(1, 1, 5, 4, requires_grad=True) for _ in range(3))
    i, f = (torch.randn(1, 1, 5) for _ in range(2))
    h, state = mlstm_chunkwise(q, k, v, i, f, return_last_states=True)
    h.sum().backward()
    mlstm_step(*(t[:, :, 0] for t in (q, k, v, i, f)), *(t.detach() for t in state))
    shape = q.shape
    assert seen == [("_forward", shape), ("chunkwise_bw", shape), ("recurrent_step", (1, 1, 4))]


def test_torch_layer_loads_a_checkpoints_layer(torch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import xLSTMConfig, xLSTMForCausalLM
    from trivium.torch import mLSTMLayer

    torch.manual_seed(0)
    cfg = xLSTMConfig(
        vocab_size=50,
        hidden_size=128,
        num_hidden_layers=1,
        num_heads=2,
        chunk_size=16,
        autocast_kernel_dtype="float32",
    )
    theirs = xLSTMForCausalLM(cfg).backbone.blocks[0].mlstm_layer.eval()
    mine = mLSTMLayer(128, 2)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 128)
    with torch.no_grad():
        assert relative(mine(x)[0], theirs(x)[0]) < 1e-4


def test_torch_layer_learns(torch):
    from trivium.torch import mLSTMLayer

    torch.manual_seed(0)
    layer = mLSTMLayer(32, 2, chunk_size=16)
    layer.igate_preact.bias.data.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    x = torch.randn(4, 30, 32)
    target = torch.roll(x, 1, 1)  # the token before
    losses = []
    for _ in range(40):
        loss = ((layer(x)[0] - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_torch_bfloat16_and_step(torch):
    from trivium.torch import mlstm_chunkwise, mlstm_step

    q, k, v = (torch.randn(1, 2, 17, d) for d in (16, 16, 24))
    i, f = torch.randn(1, 2, 17), torch.randn(1, 2, 17) + 2
    want = mlstm_chunkwise(q, k, v, i, f)
    got = mlstm_chunkwise(*(t.bfloat16() for t in (q, k, v)), i, f)
    assert got.dtype == torch.bfloat16 and relative(got.float(), want) < 2e-2
    cut = [t[:, :, :16].contiguous() for t in (q, k, v, i, f)]
    _, (c, n, m) = mlstm_chunkwise(*cut, return_last_states=True)
    h = mlstm_step(*(t[:, :, 16].contiguous() for t in (q, k, v, i, f)), c, n, m)
    assert relative(h, want[:, :, 16]) < 1e-5


def test_every_name_is_documented():
    assert all(getattr(mlstm, name).__doc__ for name in mlstm.__all__)
    assert isinstance(trivium.mlstm.M_FLOOR, float)
