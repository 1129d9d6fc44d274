"""The mLSTM for jax: a custom_vjp function over trivium's kernels, called through jax.ffi.

On the CPU, and on GPUs that jax calls cuda or rocm where trivium's backend of that name is installed: there the kernels
are queued on XLA's stream. The GPU path is compiled and runs on the emulator in the tests; no test ran it on a GPU.

>>> import jax, jax.numpy as jnp
>>> q = k = v = jax.random.normal(jax.random.key(0), (1, 2, 100, 16))
>>> i = f = jnp.zeros((1, 2, 100))
>>> mlstm_chunkwise(q, k, v, i, f).shape
(1, 2, 100, 16)
"""

from functools import partial
from typing import Any

from ._core import InvalidArgument
from ._mlstm_parts import check_grad_mode, check_integer, check_number

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError(f"trivium.jax needs jax, which cannot be imported: {error}") from error
try:
    from . import _jax
except ImportError as error:
    raise ImportError(
        f"trivium.jax needs the module trivium._jax, which this build does not have ({error}); build with TRIVIUM_JAX=ON"
    ) from error

__all__ = ["mlstm_chunkwise"]

# A GPU's backend is loaded by the first call there, which says so where it cannot be had.
for _platform, _handlers in _jax.handlers().items():
    for _name, _handler in _handlers.items():
        jax.ffi.register_ffi_target(_name, _handler, platform=_platform)

_F32 = jnp.float32
_KERNEL_DTYPES = [jnp.dtype(t) for t in (jnp.float32, jnp.bfloat16, jnp.float16)]


def _forward(settings: Any, x: Any, state: Any) -> Any:
    q, _, v, _, _ = x
    b, nh, s, dqk = q.shape
    gate = jax.ShapeDtypeStruct((b, nh, s), _F32)
    results = [
        jax.ShapeDtypeStruct(v.shape, v.dtype),
        gate,
        gate,
        gate,
        *(jax.ShapeDtypeStruct(shape, _F32) for shape in ((b, nh, dqk, v.shape[3]), (b, nh, dqk), (b, nh))),
    ]
    scale, eps, chunk, _ = settings
    call = jax.ffi.ffi_call("trivium_mlstm_forward", results, vmap_method="sequential")
    h, n_out, nt, m_out, *last = call(*x, *state, qk_scale=scale, eps=eps, chunk_size=chunk)
    return (h, tuple(last)), (x, state, n_out, nt, m_out)


def _backward(settings: Any, saved: Any, grads: Any) -> Any:
    x, state, n_out, nt, m_out = saved
    dh, (dc, dn, _) = grads
    scale, eps, chunk, exact = settings
    gates = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in (*x, *state)]
    call = jax.ffi.ffi_call("trivium_mlstm_backward", gates, vmap_method="sequential")
    out = call(
        *x, *state, n_out, nt, m_out, dh, dc, dn, qk_scale=scale, eps=eps, chunk_size=chunk, exact=exact
    )
    return tuple(out[:5]), tuple(out[5:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlstm(settings: Any, x: Any, state: Any) -> Any:
    return _forward(settings, x, state)[0]


_mlstm.defvjp(_forward, _backward)


def _float_array(name: str, value: Any, *shapes: str) -> Any:
    t = jnp.asarray(value)
    if t.ndim not in [shape.count(",") + 1 for shape in shapes] or not jnp.issubdtype(t.dtype, jnp.floating):
        expected = f"floating-point {' or '.join(shapes)}"
        raise InvalidArgument(f"mlstm_chunkwise: {name} is {list(t.shape)} {t.dtype}, expected {expected}")
    return t


def _kernel_dtype(value: Any) -> Any:
    dtype = jnp.dtype(value)
    if dtype not in _KERNEL_DTYPES:
        raise InvalidArgument(
            f"mlstm_chunkwise: autocast_kernel_dtype is {dtype}, expected float32, bfloat16 or float16"
        )
    return dtype


def mlstm_chunkwise(
    q: Any,
    k: Any,
    v: Any,
    i: Any,
    f: Any,
    c_initial: Any = None,
    n_initial: Any = None,
    m_initial: Any = None,
    return_last_states: bool = False,
    eps: float = 1e-6,
    chunk_size: int = 64,
    *,
    qk_scale: float | None = None,
    grad_mode: str = "exact",
    autocast_kernel_dtype: Any = None,
) -> Any:
    """The mLSTM with gradients: q, k [B, NH, S, DHQK], v [B, NH, S, DHHV], gate pre-activations i, f [B, NH, S].

    q, k and v are float32, bfloat16 or float16 on one device, of which autocast_kernel_dtype makes that type, as in
    mlstm_kernels; gates and initial states of other floating-point types are converted. Returns h like v or, with
    return_last_states, (h, (c, n, m)) with m [B, NH]; m_initial may be [B, NH, 1] too. Works under jit and grad;
    grad_mode as in trivium.mlstm.chunkwise_bw. Arrays on a GPU whose backend this installation lacks are an error of the
    call that names the backend and the reason; chunk_size is 16, 32, ... 1024 there."""
    op = "mlstm_chunkwise"
    check_grad_mode(op, grad_mode)
    check_number(op, "eps", eps)
    check_integer(op, "chunk_size", chunk_size)
    if qk_scale is not None:
        check_number(op, "qk_scale", qk_scale)
    initial = {"c_initial": c_initial, "n_initial": n_initial, "m_initial": m_initial}
    given = [t is not None for t in initial.values()]
    if any(given) and not all(given):
        raise InvalidArgument(f"{op}: c_initial, n_initial and m_initial go together")
    q, k, v = (_float_array(name, t, "[B, NH, S, DH]") for name, t in {"q": q, "k": k, "v": v}.items())
    i, f = (_float_array(name, t, "[B, NH, S]").astype(_F32) for name, t in {"i": i, "f": f}.items())
    if autocast_kernel_dtype is not None:
        kernel_dtype = _kernel_dtype(autocast_kernel_dtype)
        q, k, v = (t.astype(kernel_dtype) for t in (q, k, v))
    if q.dtype not in _KERNEL_DTYPES:
        raise InvalidArgument(f"{op}: q is {q.dtype}, expected float32, bfloat16 or float16")
    b, nh, _, dqk = q.shape
    if all(given):
        c = _float_array("c_initial", c_initial, "[B, NH, DHQK, DHHV]")
        n = _float_array("n_initial", n_initial, "[B, NH, DHQK]")
        m = _float_array("m_initial", m_initial, "[B, NH]", "[B, NH, 1]")
        if m.shape == (b, nh, 1):
            m = m.reshape(b, nh)
        state = (c.astype(_F32), n.astype(_F32), m.astype(_F32))
    else:
        state = (
            jnp.zeros((b, nh, dqk, v.shape[3]), _F32),
            jnp.zeros((b, nh, dqk), _F32),
            jnp.zeros((b, nh), _F32),
        )
    scale = float(dqk**-0.5 if qk_scale is None else qk_scale)
    settings = (scale, float(eps), int(chunk_size), grad_mode == "exact")
    h, last = _mlstm(settings, (q, k, v, i, f), state)
    return (h, last) if return_last_states else h
