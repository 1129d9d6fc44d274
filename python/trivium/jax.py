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
) -> Any:
    """The mLSTM with gradients: q, k [B, NH, S, DHQK], v [B, NH, S, DHHV], gate pre-activations i, f [B, NH, S].

    q, k and v are float32, bfloat16 or float16 on one device. Returns h like v or, with return_last_states,
    (h, (c, n, m)) with m [B, NH]. Works under jit and grad; grad_mode as in trivium.mlstm.chunkwise_bw. Arrays on a GPU
    whose backend this installation lacks are an error of the call that names the backend and the reason; chunk_size is
    16, 32, ... 1024 there."""
    if grad_mode not in ("exact", "approx"):
        raise InvalidArgument(f'mlstm_chunkwise: grad_mode is "{grad_mode}", expected "exact" or "approx"')
    if q.ndim != 4 or v.ndim != 4:
        raise InvalidArgument(f"mlstm_chunkwise: q is {q.shape} and v {v.shape}, expected [B, NH, S, DH]")
    b, nh, _, dqk = q.shape
    given = [t is not None for t in (c_initial, n_initial, m_initial)]
    if any(given) and not all(given):
        raise InvalidArgument("mlstm_chunkwise: c_initial, n_initial and m_initial go together")
    if all(given):
        state = (c_initial.astype(_F32), n_initial.astype(_F32), m_initial.astype(_F32).reshape(b, nh))
    else:
        state = (
            jnp.zeros((b, nh, dqk, v.shape[3]), _F32),
            jnp.zeros((b, nh, dqk), _F32),
            jnp.zeros((b, nh), _F32),
        )
    scale = float(dqk**-0.5 if qk_scale is None else qk_scale)
    settings = (scale, float(eps), int(chunk_size), grad_mode == "exact")
    h, last = _mlstm(settings, (q, k, v, i.astype(_F32), f.astype(_F32)), state)
    return (h, last) if return_last_states else h
