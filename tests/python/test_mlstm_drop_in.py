"""trivium.torch and trivium.jax in the place of mlstm_kernels: the same calls, types and results."""

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import mlstm_oracle as oracle  # noqa: E402


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed")
    module.set_num_threads(2)
    return module


@pytest.fixture(scope="module")
def jax():
    module = pytest.importorskip("jax", reason="jax is not installed")
    pytest.importorskip("trivium._jax", reason="this build has no trivium._jax (TRIVIUM_JAX=ON)")
    return module


@pytest.fixture(scope="module")
def peer(torch):
    pytest.importorskip("mlstm_kernels", reason="mlstm_kernels is not installed: no second opinion")
    from mlstm_kernels.torch.chunkwise.native.fwbw import mlstm_chunkwise__native_custbw

    return mlstm_chunkwise__native_custbw


def tensors(torch, seed=0, tokens=64):
    g = torch.Generator().manual_seed(seed)
    x = {name: torch.randn(2, 2, tokens, d, generator=g) for name, d in (("q", 16), ("k", 16), ("v", 24))}
    x |= {name: torch.randn(2, 2, tokens, generator=g) for name in "if"}
    x["f"] += 2
    state = {"c_initial": (16, 24), "n_initial": (16,), "m_initial": (1,)}
    return x, {name: torch.randn(2, 2, *shape, generator=g) for name, shape in state.items()}


def test_all_keywords_of_the_peer_are_taken(torch, peer):
    from trivium.torch import mlstm_chunkwise

    ours = inspect.signature(mlstm_chunkwise).parameters
    theirs = list(inspect.signature(peer).parameters)
    assert list(ours)[: len(theirs) - 1] == theirs[:-1] and theirs[-1] in ours  # the first by position too


@pytest.mark.parametrize("kernel", ["float32", "bfloat16", "float16"])
def test_the_same_call_gives_the_same(torch, peer, kernel):
    from trivium.torch import mlstm_chunkwise

    x, state = tensors(torch)
    call = dict(**x, **state, return_last_states=True, eps=1e-6, chunk_size=16)
    call["autocast_kernel_dtype"] = getattr(torch, kernel)
    h, last = mlstm_chunkwise(**call)
    want, want_last = peer(**call)
    assert h.dtype == want.dtype == torch.float32  # nothing is cast outside torch.autocast
    assert relative(h, want) < 4e-6
    for a, b in zip(last, want_last):
        assert relative(a, b) < 4e-6


def test_autocast_casts_queries_keys_and_values(torch):
    from trivium.torch import mlstm_chunkwise

    x, _ = tensors(torch)
    want = mlstm_chunkwise(**x)
    narrow = {n: t.bfloat16() if n in "qkv" else t for n, t in x.items()}
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = mlstm_chunkwise(**leaves, autocast_kernel_dtype=torch.bfloat16)
        assert mlstm_chunkwise(**x).dtype == torch.float32
    assert h.dtype == torch.bfloat16 and torch.equal(h, mlstm_chunkwise(**narrow))
    assert relative(h.detach().float(), want) < 2e-2
    h.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_states_of_another_type_are_converted(torch, dtype):
    from trivium.torch import mlstm_chunkwise

    x, state = tensors(torch)
    other = {n: t.to(getattr(torch, dtype)).requires_grad_() for n, t in state.items()}
    h, last = mlstm_chunkwise(**x, **other, return_last_states=True)
    same = mlstm_chunkwise(**x, **{n: t.detach().float() for n, t in other.items()})
    assert torch.equal(h.detach(), same) and all(t.dtype == torch.float32 for t in last)
    h.sum().backward()
    for t in other.values():
        assert t.grad.dtype == t.dtype and t.grad.isfinite().all()


@pytest.mark.parametrize(
    ("i", "f"), [("bfloat16", "float32"), ("float64", "float64"), ("float16", "bfloat16")]
)
def test_gates_of_any_floating_point_type_are_taken(torch, i, f):
    from trivium.torch import mlstm_chunkwise, mlstm_step

    x, state = tensors(torch)
    given = x | {"i": x["i"].to(getattr(torch, i)), "f": x["f"].to(getattr(torch, f))}
    leaves = {n: t.clone().requires_grad_() for n, t in given.items()}
    h = mlstm_chunkwise(**leaves)
    widened = {n: t.float() for n, t in given.items()}
    assert torch.equal(h.detach(), mlstm_chunkwise(**widened))
    h.sum().backward()
    assert (leaves["i"].grad.dtype, leaves["f"].grad.dtype) == (given["i"].dtype, given["f"].dtype)
    steps = []
    for values in (given, widened):
        token = [t[:, :, 0].contiguous() for t in values.values()]
        token[3] = token[3][..., None]
        steps.append(mlstm_step(*token, *(t.clone() for t in state.values())))
    assert torch.equal(*steps)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": "float64"}, "matQ is float64, expected float32, bfloat16 or float16"),
        ({"i": "int32", "f": "int32"}, "vecI is int32, expected float32, bfloat16 or float16"),
        ({"m_initial": "int64"}, "scaM_initial is int64, expected float32"),
    ],
)
def test_what_cannot_be_converted_is_named(torch, change, words):
    from trivium.torch import mlstm_chunkwise

    x, state = tensors(torch)
    given = x | state
    given |= {name: given[name].to(getattr(torch, dtype)) for name, dtype in change.items()}
    with pytest.raises(trivium.InvalidArgument) as error:
        mlstm_chunkwise(**given)
    assert str(error.value) == f"mlstm.chunkwise_fw: {words}"


@pytest.mark.parametrize("name", ["q", "k", "v", "i", "f", "c_initial", "n_initial", "m_initial"])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_scalar_is_named(torch, library, name, request):
    ours = {"q": "matQ", "k": "matK", "v": "matV", "i": "vecI", "f": "vecF"}
    ours |= {"c_initial": "matC_initial", "n_initial": "vecN_initial", "m_initial": "scaM_initial"}
    x, state = tensors(torch)
    given = x | state | {name: torch.tensor(1.0)}
    if library == "torch":
        from trivium.torch import mlstm_chunkwise

        words = rf"{ours[name]} is \[\], expected \["
    else:
        request.getfixturevalue("jax")
        from trivium.jax import mlstm_chunkwise

        given = {n: t.numpy() for n, t in given.items()}
        words = rf"{name} is \[\] float32, expected floating-point \["
    with pytest.raises(trivium.InvalidArgument, match=words):
        mlstm_chunkwise(**given)


@pytest.mark.parametrize("name", ["q", "k", "v", "i", "f", "c", "n", "m"])
def test_a_scalar_is_named_by_a_step(torch, name):
    from trivium.torch import mlstm_step

    x, state = tensors(torch)
    given = {n: t[:, :, 0].contiguous() for n, t in x.items()}
    given |= dict(zip("cnm", state.values())) | {name: torch.tensor(1.0)}
    with pytest.raises(
        trivium.InvalidArgument, match=r"(mat|vec|sca)" + name.upper() + r" is \[\], expected \["
    ):
        mlstm_step(**given)


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("chunk_size", 16.0, "an integer"), ("eps", "x", "a number"), ("qk_scale", "x", "a number"),
        ("grad_mode", 3, '"exact" or "approx"'), ("autocast_kernel_dtype", "int8", "float32"),
    ],
)  # fmt: skip
def test_options_of_a_wrong_type_get_one_sentence(torch, library, option, value, expected, request):
    x, _ = tensors(torch)
    if library == "torch":
        from trivium.torch import mlstm_chunkwise
    else:
        request.getfixturevalue("jax")
        from trivium.jax import mlstm_chunkwise

        x = {n: t.numpy() for n, t in x.items()}
    with pytest.raises((TypeError, trivium.InvalidArgument)) as error:
        mlstm_chunkwise(**x, **{option: value})
    said = str(error.value)
    assert f"{option} is " in said and expected in said and "\n" not in said


@pytest.mark.parametrize("grad_mode", ["exact", "approx"])
@pytest.mark.parametrize("qk_scale", [None, 0.7])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_every_mode_and_scale_has_the_oracles_gradients(torch, library, grad_mode, qk_scale, request):
    x, state, g = oracle.make_inputs(B=1, NH=2, S=40, DQ=8, DV=12)
    arrays = [a.astype(np.float32) for a in (*x.values(), *state.values())]
    g = {name: a.astype(np.float32) for name, a in g.items()}
    exact = [a.astype(np.float64) for a in arrays]
    want = oracle.chunkwise_bw(
        **dict(zip((*x, *state), exact)), dH=g["dH"], dC=g["dC"], dn=g["dn"], L=16, mode=grad_mode,
        allow_tail=True, m_floor=-10.0, qk_scale=qk_scale,
    )  # fmt: skip
    settings = {"chunk_size": 16, "grad_mode": grad_mode, "qk_scale": qk_scale, "return_last_states": True}
    if library == "torch":
        from trivium.torch import mlstm_chunkwise

        leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        h, (c, n, _) = mlstm_chunkwise(*leaves, **settings)
        ((h * torch.tensor(g["dH"])).sum() + (c * torch.tensor(g["dC"])).sum()
         + (n * torch.tensor(g["dn"])).sum()).backward()  # fmt: skip
        got = [t.grad for t in leaves]
    else:
        jax = request.getfixturevalue("jax")
        from trivium.jax import mlstm_chunkwise

        def loss(*a):
            h, (c, n, _) = mlstm_chunkwise(*a, **settings)
            return (h * g["dH"]).sum() + (c * g["dC"]).sum() + (n * g["dn"]).sum()

        got = jax.grad(loss, range(8))(*arrays)
    for name, gradient in zip((*x, *state), got):
        if grad_mode == "approx" and name in ("n0", "m0"):
            assert not np.asarray(gradient).any(), name
        else:
            assert relative(gradient, want[name]) < (1e-4 if name in ("i", "f", "m0") else 1e-5), name


def test_jax_casts_as_the_peer_does(jax):
    import jax.numpy as jnp
    from trivium.jax import mlstm_chunkwise

    x, state, _ = oracle.make_inputs(B=1, NH=2, S=40, DQ=8, DV=12)
    x, state = ({n: jnp.asarray(a, jnp.float32) for n, a in d.items()} for d in (x, state))
    narrow = [jnp.asarray(x[n], jnp.bfloat16) for n in "qkv"]
    want = mlstm_chunkwise(*narrow, x["i"], x["f"])
    got = mlstm_chunkwise(*x.values(), autocast_kernel_dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16 and (got == want).all()
    initial = [jnp.asarray(a, jnp.bfloat16) for a in state.values()]
    initial[2] = initial[2][..., None]
    gates = jnp.asarray(x["i"], jnp.bfloat16), x["f"]
    h, (_, _, m) = mlstm_chunkwise(x["q"], x["k"], x["v"], *gates, *initial, return_last_states=True)
    assert h.dtype == m.dtype == jnp.float32 and m.shape == (1, 2) and bool(jnp.isfinite(h).all())
