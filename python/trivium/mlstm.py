"""The mLSTM, the matrix-memory cell of xLSTM (Beck et al. 2024), in chunkwise, recurrent and backward form.

Names, arguments and shapes follow the published kernels: B batch, NH heads, S tokens, L chunk size, NC = ceil(S / L)
chunks. matQ, matK [B, NH, S, DHQK] and matV [B, NH, S, DHHV] are float32, bfloat16 or float16; vecI and vecF
[B, NH, S] are gate pre-activations; states are float32, stabilised by scaM, a natural logarithm. Arguments are Tensors
or arrays with DLPack or a buffer; results are Tensors.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> q, k, v = (rng.standard_normal((1, 2, 100, 16), dtype=np.float32) for _ in range(3))
>>> i, f = (rng.standard_normal((1, 2, 100), dtype=np.float32) for _ in range(2))
>>> h, n_out, m_out, last, states = chunkwise_fw(q, k, v, i, f, return_last_states=True)
>>> h.shape, last[0].shape
((1, 2, 100, 16), (1, 2, 16, 16))
"""

from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._core import InvalidArgument, Tensor
from ._mlstm_parts import (
    M_FLOOR,
    ExactStateGradients,
    StateGradients,
    States,
    at_last,
    check_grad_mode,
    options,
    parallel_bw_dQKV,
    parallel_fw_H,
    recurrent_bw_dC,
    recurrent_fw_C,
)

__all__ = [
    "ExactStateGradients",
    "ForwardOutput",
    "Gradients",
    "StateGradients",
    "States",
    "chunkwise_bw",
    "chunkwise_fw",
    "parallel_bw_dQKV",
    "parallel_fw_H",
    "recurrent_bw_dC",
    "recurrent_fw_C",
    "recurrent_sequence",
    "recurrent_step",
]


class ForwardOutput(NamedTuple):
    matH: Tensor  # [B, NH, S, DHHV], matQ's dtype
    vecN_out: Tensor  # [B, NH, S] float32: the denominator before EPS
    vecM_out: Tensor  # [B, NH, S] float32: the stabiliser of each output
    last_states: States | None
    all_states: States | None


class Gradients(NamedTuple):
    """Of the inputs, with their shapes and dtypes; those of the initial state are None without one."""

    matDeltaQ: Tensor
    matDeltaK: Tensor
    matDeltaV: Tensor
    vecDeltaI: Tensor
    vecDeltaF: Tensor
    matDeltaC_initial: Tensor | None
    vecDeltaN_initial: Tensor | None
    scaDeltaM_initial: Tensor | None


def chunkwise_fw(
    matQ: Any,
    matK: Any,
    matV: Any,
    vecI: Any,
    vecF: Any,
    matC_initial: Any = None,
    vecN_initial: Any = None,
    scaM_initial: Any = None,
    qk_scale: float | None = None,
    return_last_states: bool = False,
    return_all_states: bool = False,
    CHUNK_SIZE: int = 64,
    EPS: float = 1e-6,
    *,
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
    m_floor: float = M_FLOOR,
    strict_chunks: bool = False,
    check_finite: bool = False,
) -> ForwardOutput:
    """The chunkwise forward pass; any S, the last chunk may be short.

    qk_scale multiplies q and defaults to DHQK^-1/2. sigmoid_input_gate replaces exp(i) by sigmoid(i): there is no m, so
    scaM_initial is None, and normalize=False leaves the denominator out. strict_chunks refuses an S that is no multiple
    of CHUNK_SIZE; check_finite names the first element of an argument that is NaN or infinite (m may be -infinity)."""
    h, n_out, _, m_out, last, states = _forward(
        (matQ, matK, matV, vecI, vecF),
        (matC_initial, vecN_initial, scaM_initial),
        options(
            "mlstm.chunkwise_fw",
            qk_scale,
            EPS,
            CHUNK_SIZE,
            m_floor,
            sigmoid_input_gate=sigmoid_input_gate,
            normalize=normalize,
            strict_chunks=strict_chunks,
            check_finite=check_finite,
        ),
        bool(return_last_states),
        bool(return_all_states),
    )
    return ForwardOutput(h, n_out, m_out, last, states)


def _forward(inputs: Any, initial: Any, made: "_core.MlstmOptions", want_last: bool, want_all: bool) -> Any:
    """(matH, vecN_out, vecNt, vecM_out, last states, all states)"""
    q, k, v, i, f = inputs
    c, n, m = initial
    out: Any = _core.mlstm_chunkwise_fw(q, k, v, i, f, c, n, m, made, want_last, want_all)
    last, states = States(*out[4:7]), States(*out[7:])
    return *out[:4], last if want_last else None, states if want_all else None


def chunkwise_bw(
    matQ: Any,
    matK: Any,
    matV: Any,
    vecI: Any,
    vecF: Any,
    matC_initial: Any = None,
    vecN_initial: Any = None,
    scaM_initial: Any = None,
    qk_scale: float | None = None,
    matC_states: Any = None,
    scaM_states: Any = None,
    vecN_out: Any = None,
    vecM_out: Any = None,
    matDeltaH: Any = None,
    matDeltaC_last: Any = None,
    CHUNK_SIZE: int = 64,
    EPS: float = 1e-6,
    *,
    vecNt: Any = None,
    vecN_states: Any = None,
    vecDeltaN_last: Any = None,
    scaDeltaM_last: Any = None,
    grad_mode: str = "exact",
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
    strict_chunks: bool = False,
    check_finite: bool = False,
) -> Gradients:
    """Gradients of chunkwise_fw, from its vecN_out and vecM_out and the gradients of its results.

    grad_mode "exact" is the true gradient but for terms of EPS: every stabiliser counts as a constant, which matH does
    not depend on otherwise, so scaDeltaM_last is accepted and not used. "approx" also takes the denominator and n for
    constants, as the published kernels do. States are computed again where they are not given; vecNt is the signed
    denominator."""
    del scaDeltaM_last
    for name, value in (("vecN_out", vecN_out), ("vecM_out", vecM_out), ("matDeltaH", matDeltaH)):
        if value is None:
            raise InvalidArgument(f"mlstm.chunkwise_bw: {name} is missing")
    check_grad_mode("mlstm.chunkwise_bw", grad_mode)
    made = options(
        "mlstm.chunkwise_bw",
        qk_scale,
        EPS,
        CHUNK_SIZE,
        sigmoid_input_gate=sigmoid_input_gate,
        normalize=normalize,
        strict_chunks=strict_chunks,
        check_finite=check_finite,
    )
    initial = (matC_initial, vecN_initial, scaM_initial)
    states = (matC_states, vecN_states, scaM_states)
    out = _core.mlstm_chunkwise_bw(
        matQ,
        matK,
        matV,
        vecI,
        vecF,
        *initial,
        *states,
        vecN_out,
        vecM_out,
        vecNt,
        matDeltaH,
        matDeltaC_last,
        vecDeltaN_last,
        made,
        grad_mode,
    )
    return Gradients(*out)


def recurrent_step(
    matQ: Any,
    matK: Any,
    matV: Any,
    vecI: Any,
    vecF: Any,
    matC: Any,
    vecN: Any,
    scaM: Any = None,
    qk_scale: float | None = None,
    EPS: float = 1e-6,
    *,
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
    check_finite: bool = False,
) -> Tensor:
    """One token: matQ, matK [B, NH, DHQK], matV [B, NH, DHHV], gates [B, NH] -> [B, NH, DHHV].

    The state, matC [B, NH, DHQK, DHHV] float32 or bfloat16, vecN [B, NH, DHQK] and scaM [B, NH] or [B, NH, 1], is
    updated in place; with sigmoid_input_gate there is no scaM."""
    made = options(
        "mlstm.recurrent_step",
        qk_scale,
        EPS,
        sigmoid_input_gate=sigmoid_input_gate,
        normalize=normalize,
        check_finite=check_finite,
    )
    h, _, _ = _core.mlstm_recurrent(matQ, matK, matV, vecI, vecF, matC, vecN, scaM, made, True)
    return h


def recurrent_sequence(
    matQ: Any,
    matK: Any,
    matV: Any,
    vecI: Any,
    vecF: Any,
    matC_initial: Any = None,
    vecN_initial: Any = None,
    scaM_initial: Any = None,
    qk_scale: float | None = None,
    return_last_states: bool = False,
    EPS: float = 1e-6,
    *,
    sigmoid_input_gate: bool = False,
    normalize: bool = True,
    check_finite: bool = False,
) -> ForwardOutput:
    """chunkwise_fw token by token: the same function, without a floor under m. all_states is None."""
    op = "mlstm.recurrent_sequence"
    made = options(
        op,
        qk_scale,
        EPS,
        sigmoid_input_gate=sigmoid_input_gate,
        normalize=normalize,
        check_finite=check_finite,
    )
    q, v = _core.from_dlpack(matQ), _core.from_dlpack(matV)
    initial = [matC_initial, vecN_initial, scaM_initial][: 2 if sigmoid_input_gate else 3]
    if sigmoid_input_gate and scaM_initial is not None:
        raise InvalidArgument(f"{op}: scaM_initial is given, but with the sigmoid input gate there is no m")
    given = [x is not None for x in initial]
    if any(given) and not all(given):
        raise InvalidArgument(f"{op}: matC_initial, vecN_initial and scaM_initial go together")
    if all(given):
        state = [_core.from_dlpack(x, copy=True) for x in initial]
        if len(state) == 3 and len(state[2].shape) == 3 and state[2].shape[2] == 1:
            state[2] = at_last(state[2], 0)
    else:
        for name, t in (("matQ", q), ("matV", v)):
            if len(t.shape) != 4:
                raise InvalidArgument(f"{op}: {name} is {list(t.shape)}, expected [B, NH, S, DH]")
        shapes = (*q.shape[:2], q.shape[3], v.shape[3]), (*q.shape[:2], q.shape[3]), q.shape[:2]
        state = [Tensor(np.zeros(shape, np.float32), device=q.device) for shape in shapes[: len(initial)]]
    c, n, m = state[0], state[1], None if sigmoid_input_gate else state[2]
    h, n_out, m_out = _core.mlstm_recurrent(q, matK, v, vecI, vecF, c, n, m, made, False)
    return ForwardOutput(h, n_out, m_out, States(c, n, m) if return_last_states else None, None)


# The names of the published kernels. Their backward pass is the approximate one, and its arguments have other names.
_mlstm_chunkwise_fw = chunkwise_fw
_mlstm_chunkwise__recurrent_fw_C = recurrent_fw_C
_mlstm_chunkwise__parallel_fw_H = parallel_fw_H

_PUBLISHED_NAMES = {
    "chunk_size": "CHUNK_SIZE",
    "num_chunks": "NUM_CHUNKS",
    "eps": "EPS",
    "scaM_inter": "scaM_states",
    "scaMinter_states": "scaM_states",
    "vecM": "vecM_out",
    "vecM_combine": "vecM_out",
}


def _renamed(op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, value in arguments.items():
        ours = _PUBLISHED_NAMES.get(name, name)
        if ours in renamed or (ours != name and ours in arguments):
            raise TypeError(f"{op}: {name} is another name of {ours}, and both are given")
        renamed[ours] = value
    return renamed


def _mlstm_chunkwise_bw(*args: Any, **kwargs: Any) -> Gradients:
    """chunkwise_bw with grad_mode "approx" unless another is given."""
    return chunkwise_bw(*args, **({"grad_mode": "approx"} | _renamed("_mlstm_chunkwise_bw", kwargs)))


def _mlstm_chunkwise__recurrent_bw_dC(*args: Any, **kwargs: Any) -> StateGradients | ExactStateGradients:
    """recurrent_bw_dC, also with the published names of its arguments."""
    return recurrent_bw_dC(*args, **_renamed("_mlstm_chunkwise__recurrent_bw_dC", kwargs))


def _mlstm_chunkwise__parallel_bw_dQKV(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """parallel_bw_dQKV, also with the published names of its arguments."""
    return parallel_bw_dQKV(*args, **_renamed("_mlstm_chunkwise__parallel_bw_dQKV", kwargs))
