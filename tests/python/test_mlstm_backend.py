"""The mLSTM's Python functions and xLSTM generation on the device that --backend names."""

import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import mlstm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402

pytestmark = pytest.mark.backend


def relative(got, want):
    got, want = np.asarray(host(got), np.float64), np.asarray(host(want), np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


def host(t):
    return t.to("cpu").numpy() if isinstance(t, trivium.Tensor) else t


@pytest.fixture(scope="module")
def case(backend):
    """Inputs, initial state and gradients, as float32 arrays and as tensors of the device."""
    arrays = [
        {n: a.astype(np.float32) for n, a in d.items()}
        for d in oracle.make_inputs(B=1, NH=2, S=40, DQ=12, DV=20, seed=4)
    ]
    put = lambda d: {n: trivium.Tensor(np.ascontiguousarray(a), device=backend) for n, a in d.items()}
    return arrays, [put(d) for d in arrays]


@pytest.mark.parametrize("mode", ["exact", "approx"])
def test_passes_match_the_oracle(case, mode):
    (x, state, g), (dx, dstate, dg) = case
    settings = {"L": 16, "allow_tail": True, "m_floor": -10.0}
    h, den, m, last, _ = oracle.chunkwise_fw(**x, **state, **settings)
    arguments = (*dx.values(), *dstate.values())
    out = mlstm.chunkwise_fw(*arguments, return_last_states=True, CHUNK_SIZE=16)
    for got, want in ((out.matH, h), (out.vecN_out, den), (out.vecM_out, m), (out.last_states.C, last[0])):
        assert relative(got, want) < 4e-6
    want = oracle.chunkwise_bw(**x, **state, dH=g["dH"], dC=g["dC"], dn=g["dn"], mode=mode, **settings)
    got = mlstm.chunkwise_bw(
        *arguments, vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=dg["dH"], matDeltaC_last=dg["dC"],
        vecDeltaN_last=dg["dn"], CHUNK_SIZE=16, grad_mode=mode,
    )  # fmt: skip
    for name, gradient in zip((*x, *state), got):
        if mode == "approx" and name in ("n0", "m0"):
            assert not host(gradient).any()
        else:
            assert relative(gradient, want[name]) < 1e-4, name


def test_steps_continue_a_prefill_in_place(case, backend):
    (x, state, _), (_, dstate, _) = case
    want = oracle.recurrent_fw(**x, **state)[0]
    place = lambda a: trivium.Tensor(np.ascontiguousarray(a), device=backend)
    first = [place(x[n][:, :, :33]) for n in "qkvif"]
    c, n, m = mlstm.chunkwise_fw(*first, *dstate.values(), return_last_states=True, CHUNK_SIZE=16).last_states
    for t in range(33, 40):
        h = mlstm.recurrent_step(*(place(x[name][:, :, t]) for name in "qkvif"), c, n, m)
        assert relative(h, want[:, :, t]) < 1e-5
    whole = mlstm.recurrent_sequence(*case[1][0].values(), *dstate.values(), return_last_states=True)
    assert relative(whole.matH, want) < 4e-6
    assert relative(c, whole.last_states.C) < 1e-5


def test_parts_write_into_buffers_of_the_device(case, backend):
    x = case[0][0]
    place = lambda a: trivium.Tensor(np.ascontiguousarray(a, np.float32), device=backend)
    log_f = oracle.log_sigmoid(x["f"][:, :, :32]).reshape(1, 2, 2, 16)
    k, v = (place(x[n][:, :, :32]) for n in "kv")
    gates = place(np.cumsum(log_f, -1)), place(x["i"][:, :, :32].reshape(1, 2, 2, 16))
    shapes = (1, 2, 36, 20), (1, 2, 36), (1, 2, 3)
    buffers = [place(np.full(shape, np.nan)) for shape in shapes]
    made = mlstm.recurrent_fw_C(k, v, *gates, *buffers, CHUNK_SIZE=16)
    want = mlstm.recurrent_fw_C(*(host(t) for t in (k, v, *gates)), CHUNK_SIZE=16)
    for buffer, state, right in zip(buffers, made, want):
        assert relative(buffer, right) < 4e-6
        np.testing.assert_array_equal(host(buffer), host(state))
    if backend != "cpu":
        with pytest.raises(trivium.InvalidArgument, match="matC_states is on cpu, the other tensors on"):
            mlstm.recurrent_fw_C(k, v, *gates, np.zeros(shapes[0], np.float32), CHUNK_SIZE=16)


def test_the_xlstm_demo_model_gives_the_tokens_of_the_cpu(backend):
    folder = trivium.demo_model("xlstm")
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the xLSTM demo model is not in {folder}")
    count = 4 if backend.startswith("emu") else 40
    models = [trivium.load(folder, device=d, precision="float32") for d in (backend, "cpu")]
    got, want = (m.generate("Return the", max_tokens=count, ignore_eos=True) for m in models)
    assert got.tokens == want.tokens and len(got.tokens) == count
