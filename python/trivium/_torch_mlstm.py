"""The mLSTM for torch: an autograd function over trivium's kernels, and a layer.

>>> import torch
>>> q, k, v = torch.randn(3, 1, 2, 100, 16).unbind()
>>> i, f = torch.randn(2, 1, 2, 100).unbind()
>>> mlstm_chunkwise(q, k, v, i, f).shape
torch.Size([1, 2, 100, 16])
"""

from typing import Any

import torch

from . import mlstm
from ._core import InvalidArgument
from ._mlstm_parts import check_grad_mode, check_integer, check_number, options
from ._torch_lut import _torch

__all__ = ["mLSTMLayer", "mlstm_chunkwise", "mlstm_step"]


def _empty(like: torch.Tensor) -> torch.Tensor:
    """In the place of a result that is not there: an operator has no optional ones."""
    return like.new_empty(0, dtype=torch.float32)


def _tensors(values: Any, like: torch.Tensor) -> list[torch.Tensor]:
    return [_empty(like) if v is None else _torch(v) for v in values]


def _device_of(t: torch.Tensor) -> Any:
    """A context in which t's device is torch's current one: elsewhere torch hands over no tensors. By DLPack our work
    waits for torch's current stream of that device, and that stream for our work."""
    return torch.cuda.device_of(t)


def _detached(*values: torch.Tensor | None) -> list[torch.Tensor | None]:
    """For DLPack."""
    return [None if v is None else v.detach() for v in values]


@torch.library.custom_op("trivium::mlstm_forward", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    i: torch.Tensor,
    f: torch.Tensor,
    c0: torch.Tensor | None,
    n0: torch.Tensor | None,
    m0: torch.Tensor | None,
    return_last_states: bool,
    eps: float,
    chunk_size: int,
    qk_scale: float | None,
    grad_mode: str,
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    flags = {"sigmoid_input_gate": sigmoid_input_gate, "normalize": normalize}
    made = options("mlstm_chunkwise", qk_scale, eps, chunk_size, **flags)
    with _device_of(q):
        h, n_out, nt, m_out, last, _ = mlstm._forward(
            _detached(q, k, v, i, f), _detached(c0, n0, m0), made, return_last_states, False
        )
        return (*_tensors((h, n_out, nt, m_out), q), *_tensors(last or (None,) * 3, q))


@_forward.register_fake
def _(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    i,
    f,
    c0,
    n0,
    m0,
    return_last_states,
    eps,
    chunk_size,
    qk_scale,
    grad_mode,
    sigmoid_input_gate=False,
    normalize=True,
):
    b, nh, s, dqk = q.shape
    gate = [q.new_empty((b, nh, s), dtype=torch.float32) for _ in range(3)]
    shapes = [(b, nh, dqk, v.shape[3]), (b, nh, dqk), (b, nh)] if return_last_states else [(0,)] * 3
    if sigmoid_input_gate:
        shapes[2] = (0,)
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    return (h, *gate, *(q.new_empty(shape, dtype=torch.float32) for shape in shapes))


@torch.library.custom_op("trivium::mlstm_backward", mutates_args=())
def _backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    i: torch.Tensor,
    f: torch.Tensor,
    c0: torch.Tensor | None,
    n0: torch.Tensor | None,
    m0: torch.Tensor | None,
    n_out: torch.Tensor,
    m_out: torch.Tensor,
    nt: torch.Tensor,
    dh: torch.Tensor,
    dc: torch.Tensor | None,
    dn: torch.Tensor | None,
    eps: float,
    chunk_size: int,
    qk_scale: float | None,
    grad_mode: str,
    sigmoid_input_gate: bool,
    normalize: bool,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    with _device_of(q):
        x, (c, n, m) = _detached(q, k, v, i, f), _detached(c0, n0, m0)
        saved = _detached(n_out, m_out, nt, dh, dc, dn)
        grads = mlstm.chunkwise_bw(
            x[0],
            x[1],
            x[2],
            x[3],
            x[4],
            c,
            n,
            m,
            qk_scale=qk_scale,
            vecN_out=saved[0],
            vecM_out=saved[1],
            vecNt=saved[2],
            matDeltaH=saved[3],
            matDeltaC_last=saved[4],
            vecDeltaN_last=saved[5],
            CHUNK_SIZE=chunk_size,
            EPS=eps,
            grad_mode=grad_mode,
            sigmoid_input_gate=sigmoid_input_gate,
            normalize=normalize,
        )
        out = _tensors(grads, n_out)
        if m0 is not None:
            out[7] = out[7].reshape(m0.shape)
        return tuple(out)


@_backward.register_fake
def _(q, k, v, i, f, c0, n0, m0, n_out, *_):  # type: ignore[no-untyped-def]
    state = [
        _empty(n_out) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (c0, n0, m0)
    ]
    return (*(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v, i, f)), *state)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, n_out, nt, m_out, *_ = output
    ctx.save_for_backward(*inputs[:8], n_out, m_out, nt)
    ctx.returns_state, *ctx.settings = inputs[8:]


def _gradient(ctx, dh, dn_out, dnt, dm_out, dc, dn, dm):  # type: ignore[no-untyped-def]
    q, k, v, i, f, c0, n0, m0, n_out, m_out, nt = ctx.saved_tensors
    if not ctx.returns_state:
        dc = dn = None
    grads = torch.ops.trivium.mlstm_backward(
        q, k, v, i, f, c0, n0, m0, n_out, m_out, nt, dh.to(v.dtype).contiguous(), dc, dn, *ctx.settings
    )
    state = [None if t is None else grad for t, grad in zip((c0, n0, m0), grads[5:])]
    return (*grads[:5], *state, *[None] * (1 + len(ctx.settings)))


_forward.register_autograd(_gradient, setup_context=_setup)


_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _gates(i: torch.Tensor, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one type the kernels read; what is no floating-point number is left for them to refuse."""
    if i.is_floating_point() and f.is_floating_point() and (i.dtype != f.dtype or i.dtype == torch.float64):
        return i.float(), f.float()
    return i, f


def mlstm_chunkwise(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    i: torch.Tensor,
    f: torch.Tensor,
    c_initial: torch.Tensor | None = None,
    n_initial: torch.Tensor | None = None,
    m_initial: torch.Tensor | None = None,
    return_last_states: bool = False,
    eps: float = 1e-6,
    chunk_size: int = 64,
    *,
    qk_scale: float | None = None,
    grad_mode: str = "exact",
    autocast_kernel_dtype: torch.dtype | None = None,
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """The mLSTM with gradients: q, k [B, NH, S, DHQK], v [B, NH, S, DHHV], gate pre-activations i, f [B, NH, S].

    q, k and v are float32, bfloat16 or float16; gates and initial states of other floating-point types are converted.
    Returns h like v or, with return_last_states, (h, (c, n, m)); m is [B, NH, 1] as in mlstm_kernels, and m_initial
    may be [B, NH] or [B, NH, 1]. Any S. grad_mode "exact" is the true gradient (but for terms of eps), "approx" the one
    of the published kernels, which takes the denominator for a constant. Under torch.autocast q, k and v become
    autocast_kernel_dtype; elsewhere it has no effect, as in mlstm_kernels. sigmoid_input_gate and normalize as in
    trivium.mlstm.chunkwise_fw: with that gate m is None."""
    op = "mlstm_chunkwise"
    check_grad_mode(op, grad_mode)
    check_number(op, "eps", eps)
    check_integer(op, "chunk_size", chunk_size)
    if qk_scale is not None:
        check_number(op, "qk_scale", qk_scale)
    if autocast_kernel_dtype is not None and autocast_kernel_dtype not in _KERNEL_DTYPES:
        raise InvalidArgument(
            f"{op}: autocast_kernel_dtype is {autocast_kernel_dtype!r}, expected torch.float32, torch.bfloat16 or "
            "torch.float16"
        )
    if autocast_kernel_dtype is not None and torch.is_autocast_enabled(q.device.type):
        narrow = lambda t: t if t.dtype == torch.float64 else t.to(autocast_kernel_dtype)
        q, k, v = narrow(q), narrow(k), narrow(v)
    state = [
        t.float() if t is not None and t.is_floating_point() else t for t in (c_initial, n_initial, m_initial)
    ]
    settings = (eps, chunk_size, qk_scale, grad_mode, sigmoid_input_gate, normalize)
    out = torch.ops.trivium.mlstm_forward(q, k, v, *_gates(i, f), *state, return_last_states, *settings)
    if not return_last_states:
        return out[0]
    return out[0], (out[4], out[5], None if sigmoid_input_gate else out[6].unsqueeze(-1))


def mlstm_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    i: torch.Tensor,
    f: torch.Tensor,
    c: torch.Tensor,
    n: torch.Tensor,
    m: torch.Tensor | None = None,
    eps: float = 1e-6,
    *,
    qk_scale: float | None = None,
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
) -> torch.Tensor:
    """One token without gradients: q, k [B, NH, DHQK], v [B, NH, DHHV], i, f [B, NH] or [B, NH, 1] -> [B, NH, DHHV].

    The state, c float32 or bfloat16, n and m float32, is updated in place, which autograd's version counters show. With
    sigmoid_input_gate there is no m."""
    i, f = (g.detach().squeeze(2) if g.ndim == 3 else g.detach() for g in _gates(i, f))
    flags = {"sigmoid_input_gate": sigmoid_input_gate, "normalize": normalize}
    with _device_of(q):
        token, state = _detached(q, k, v), _detached(c, n, m)
        arguments = (*token, i, f, *state, qk_scale, eps)
        h = mlstm.recurrent_step(*arguments, **flags)  # type: ignore[arg-type]
        for t in (c, n, m):
            if t is not None:
                torch.autograd.graph.increment_version(t)
        return _torch(h)


class mLSTMLayer(torch.nn.Module):
    """The sequence mixing layer of xLSTM: projections, cell, per-head LayerNorm, output gate. x [B, S, dim] -> the same.

    Parameter names are those of an xLSTMForCausalLM checkpoint, so its mlstm_layer state loads as it is."""

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        qk_dim_factor: float = 0.5,
        v_dim_factor: float = 1.0,
        use_bias: bool = False,
        norm_eps: float = 1e-6,
        eps: float = 1e-6,
        gate_soft_cap: float | None = 15.0,
        chunk_size: int = 64,
        grad_mode: str = "exact",
    ) -> None:
        super().__init__()
        qk_dim, v_dim = int(embedding_dim * qk_dim_factor), int(embedding_dim * v_dim_factor)
        if num_heads < 1 or qk_dim < num_heads or v_dim < num_heads:
            raise InvalidArgument(
                f"mLSTMLayer: embedding_dim is {embedding_dim} and num_heads {num_heads}, which make "
                f"{qk_dim} dimensions of q and k and {v_dim} of v, expected at least one a head"
            )
        if qk_dim % num_heads or v_dim % num_heads:
            raise InvalidArgument(f"mLSTMLayer: {num_heads} heads do not divide {qk_dim} and {v_dim}")
        self.num_heads, self.norm_eps, self.eps = num_heads, norm_eps, eps
        self.gate_soft_cap, self.chunk_size, self.grad_mode = gate_soft_cap, chunk_size, grad_mode
        linear = torch.nn.Linear
        self.q = linear(embedding_dim, qk_dim, bias=use_bias)
        self.k = linear(embedding_dim, qk_dim, bias=use_bias)
        self.v = linear(embedding_dim, v_dim, bias=use_bias)
        self.ogate_preact = linear(embedding_dim, v_dim, bias=use_bias)
        self.igate_preact = linear(embedding_dim, num_heads)
        self.fgate_preact = linear(embedding_dim, num_heads)
        self.multihead_norm = torch.nn.Module()
        self.multihead_norm.weight = torch.nn.Parameter(torch.ones(v_dim))
        if use_bias:
            self.multihead_norm.bias = torch.nn.Parameter(torch.zeros(v_dim))
        self.out_proj = linear(v_dim, embedding_dim, bias=use_bias)
        self.reset_gates()

    def reset_gates(self) -> None:
        """Gates start closed for input and open for memory: biases -10 and 3 to 6."""
        with torch.no_grad():
            for gate in (self.igate_preact, self.fgate_preact):
                gate.weight.zero_()
            self.igate_preact.bias.fill_(-10)
            self.fgate_preact.bias.copy_(torch.linspace(3, 6, self.num_heads))

    def _gate(self, gate: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        z = gate(x).transpose(1, 2).float()
        cap = self.gate_soft_cap
        return (z if cap is None else cap * torch.tanh(z / cap)).contiguous()

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(y, state after the sequence)"""
        if x.ndim != 3 or x.shape[2] != self.q.in_features:
            raise InvalidArgument(
                f"mLSTMLayer: x is {list(x.shape)}, expected [batch, positions, {self.q.in_features}]"
            )
        b, s, _ = x.shape

        def heads(linear: torch.nn.Linear) -> torch.Tensor:
            return linear(x).view(b, s, self.num_heads, linear.out_features // self.num_heads).transpose(1, 2)

        c, n, m = (None, None, None) if state is None else state
        h, state = mlstm_chunkwise(
            heads(self.q),
            heads(self.k),
            heads(self.v),
            self._gate(self.igate_preact, x),
            self._gate(self.fgate_preact, x),
            c,
            n,
            m,
            return_last_states=True,
            eps=self.eps,
            chunk_size=self.chunk_size,
            grad_mode=self.grad_mode,
        )
        h = torch.nn.functional.layer_norm(h.float(), h.shape[-1:], eps=self.norm_eps).to(x.dtype)
        h = h.transpose(1, 2).flatten(2) * self.multihead_norm.weight
        if hasattr(self.multihead_norm, "bias"):
            h = h + self.multihead_norm.bias
        return self.out_proj(torch.sigmoid(self.ogate_preact(x)) * h), state
