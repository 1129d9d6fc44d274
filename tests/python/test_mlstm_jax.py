"""trivium.jax: values and gradients against trivium.mlstm and the oracle, under jit."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402


@pytest.fixture(scope="module")
def jax():
    module = pytest.importorskip("jax", reason="jax is not installed")
    try:
        import trivium.jax  # noqa: F401
    except ImportError as error:
        assert "TRIVIUM_JAX=ON" in str(error)
        pytest.skip(f"trivium.jax is not in this build: {error}")
    return module


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


def make(**sizes):
    x, state, g = oracle.make_inputs(**sizes)
    return [{n: a.astype(np.float32) for n, a in d.items()} for d in (x, state, g)]


def test_values_and_gradients_match_the_oracle(jax):
    from trivium.jax import mlstm_chunkwise

    x, state, g = make(B=2, NH=2, S=40, DQ=16, DV=24)
    arrays = [*x.values(), *state.values()]

    def loss(*a):
        h, (c, n, _) = mlstm_chunkwise(*a, return_last_states=True, chunk_size=16, eps=0.0)
        return (h * g["dH"]).sum() + (c * g["dC"]).sum() + (n * g["dn"]).sum(), h

    (_, h), grads = jax.jit(jax.value_and_grad(loss, range(8), has_aux=True))(*arrays)
    kw = dict(L=16, allow_tail=True, eps=0.0, m_floor=-10.0)
    assert relative(h, oracle.chunkwise_fw(**x, **state, **kw)[0]) < 2e-6
    want = oracle.chunkwise_bw(**x, **state, dH=g["dH"], dC=g["dC"], dn=g["dn"], mode="exact", **kw)
    for name, got in zip((*x, *state), grads):
        assert relative(got, want[name]) < 1e-4, name


def test_without_a_state_and_in_bfloat16(jax):
    import jax.numpy as jnp
    from trivium.jax import mlstm_chunkwise

    x, _, _ = make(B=1, NH=2, S=20, DQ=8, DV=8, state=False)
    want = mlstm_chunkwise(*x.values())
    narrow = [jnp.asarray(x[n], jnp.bfloat16) for n in "qkv"]
    got = mlstm_chunkwise(*narrow, x["i"], x["f"])
    assert got.dtype == jnp.bfloat16
    assert relative(np.asarray(got, np.float32), want) < 2e-2
    grads = jax.grad(lambda q: mlstm_chunkwise(q, *narrow[1:], x["i"], x["f"]).astype(jnp.float32).sum())(
        narrow[0]
    )
    assert grads.dtype == jnp.bfloat16 and np.isfinite(np.asarray(grads, np.float32)).all()


def test_wrong_arguments_are_named(jax):
    from trivium.jax import mlstm_chunkwise

    x, state, _ = make()
    with pytest.raises(ValueError, match="grad_mode"):
        mlstm_chunkwise(*x.values(), grad_mode="fast")
    with pytest.raises(ValueError, match="m_initial"):
        mlstm_chunkwise(*x.values(), c_initial=state["C0"])
    with pytest.raises(Exception, match="matK"):
        mlstm_chunkwise(x["q"], x["k"][:, :, :5], *list(x.values())[2:])
