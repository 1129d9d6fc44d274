"""The parts of the mLSTM's chunkwise passes; trivium.mlstm has them under the same names, and says what they are of."""

from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._core import InvalidArgument, Tensor

M_FLOOR = -10.0  # outputs use max(m, M_FLOOR), which changes nothing but rounding; -inf turns it off


class States(NamedTuple):
    """States of the cell. As last states C [B, NH, DHQK, DHHV], n [B, NH, DHQK] and m [B, NH]; as all states
    C [B, NH, (NC + 1) DHQK, DHHV], n [B, NH, (NC + 1) DHQK] and m [B, NH, NC + 1], block 0 being the initial one. With
    the sigmoid input gate there is no m: None in last states, and 0 in all states."""

    C: Tensor
    n: Tensor
    m: Tensor | None


class StateGradients(NamedTuple):
    matDeltaC_states: Tensor  # [B, NH, NC DHQK, DHHV]: of the states after chunks 1 to NC
    matDeltaC_initial: Tensor | None
    scaM_initial: Tensor | None  # the initial stabiliser, as given in scaM_states


class ExactStateGradients(NamedTuple):
    """StateGradients, and those of n."""

    matDeltaC_states: Tensor
    matDeltaC_initial: Tensor | None
    scaM_initial: Tensor | None
    vecDeltaN_states: Tensor  # [B, NH, NC DHQK]
    vecDeltaN_initial: Tensor | None


def _is_array(value: Any) -> bool:
    return bool(getattr(value, "ndim", 0) > 0)


def check_number(op: str, name: str, value: Any) -> None:
    if not hasattr(value, "__float__") or _is_array(value):
        raise TypeError(f"{op}: {name} is {value!r}, expected a number")


def check_integer(op: str, name: str, value: Any) -> None:
    if not hasattr(value, "__index__") or isinstance(value, (bool, np.bool_)) or _is_array(value):
        raise TypeError(f"{op}: {name} is {value!r}, expected an integer")
    if not -(2**63) <= value < 2**63:
        raise InvalidArgument(f"{op}: {name} is {value}, expected an integer of 64 bits")


def check_grad_mode(op: str, grad_mode: Any) -> None:
    if not isinstance(grad_mode, str) or grad_mode not in ("exact", "approx"):
        shown = f'"{grad_mode}"' if isinstance(grad_mode, str) else repr(grad_mode)
        raise InvalidArgument(f'{op}: grad_mode is {shown}, expected "exact" or "approx"')


def options(
    op: str, qk_scale: Any, EPS: Any, CHUNK_SIZE: Any = 64, m_floor: Any = M_FLOOR, **flags: Any
) -> "_core.MlstmOptions":
    """The settings of a call, of the types they should have; their ranges are checked by the call."""
    check_integer(op, "CHUNK_SIZE", CHUNK_SIZE)
    for name, value in (("EPS", EPS), ("m_floor", m_floor)):
        check_number(op, name, value)
    if qk_scale is not None:
        check_number(op, "qk_scale", qk_scale)
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{op}: {name} is {value!r}, expected True or False")
    return _core.MlstmOptions(
        qk_scale=None if qk_scale is None else float(qk_scale),
        chunk_size=CHUNK_SIZE,
        eps=float(EPS),
        m_floor=float(m_floor),
        **flags,
    )


def _is_exact(op: str, grad_mode: str, needed: dict[str, Any]) -> bool:
    check_grad_mode(f"mlstm.{op}", grad_mode)
    for name, value in needed.items():
        if (value is None) == (grad_mode == "exact"):
            fault = "missing, which the exact gradient needs"
            if value is not None:
                fault = "given, but only the exact gradient needs it"
            raise InvalidArgument(f"mlstm.{op}: {name} is {fault}")
    return grad_mode == "exact"


def at_last(t: Tensor, index: int) -> Tensor:
    """t[..., index], on t's device."""
    return Tensor(np.ascontiguousarray(t.to("cpu").numpy()[..., index]), device=t.device)


def _part_options(
    op: str, first: Tensor, CHUNK_SIZE: int, NUM_CHUNKS: int | None, qk_scale: Any, EPS: Any, **rest: Any
) -> "_core.MlstmOptions":
    """`first` [B, NH, S, DH] says how many tokens there are."""
    made = options(f"mlstm.{op}", qk_scale, EPS, CHUNK_SIZE, **rest)
    if NUM_CHUNKS is None:
        return made
    check_integer(f"mlstm.{op}", "NUM_CHUNKS", NUM_CHUNKS)
    if len(first.shape) == 4 and CHUNK_SIZE > 0 and NUM_CHUNKS != -(-first.shape[2] // CHUNK_SIZE):
        raise InvalidArgument(
            f"mlstm.{op}: NUM_CHUNKS is {NUM_CHUNKS}, but {first.shape[2]} tokens in chunks of {CHUNK_SIZE} make "
            f"{-(-first.shape[2] // CHUNK_SIZE)}"
        )
    return made


def recurrent_fw_C(
    matK: Any,
    matV: Any,
    vecB: Any,
    vecI: Any,
    matC_states: Any = None,
    vecN_states: Any = None,
    scaMinter_states: Any = None,
    matC_initial: Any = None,
    vecN_initial: Any = None,
    scaMinter_initial: Any = None,
    qk_scale: float | None = None,
    CHUNK_SIZE: int = 64,
    NUM_CHUNKS: int | None = None,
) -> States:
    """States at all chunk boundaries. vecB [B, NH, NC, L]: sums of log forget gates from the start of each chunk; vecI
    [B, NH, NC, L]. matC_states, vecN_states and scaMinter_states are buffers that receive the results: contiguous
    float32 of the results' shapes, on the device of the arguments. qk_scale is not used, since states are not scaled."""
    k = _core.from_dlpack(matK)
    made = _part_options("recurrent_fw_C", k, CHUNK_SIZE, NUM_CHUNKS, qk_scale, 0.0)
    initial = (matC_initial, vecN_initial, scaMinter_initial)
    buffers = (matC_states, vecN_states, scaMinter_states)
    return States(*_core.mlstm_recurrent_fw_C(k, matV, vecB, vecI, *initial, *buffers, made))


def parallel_fw_H(
    matQ: Any,
    matK: Any,
    matV: Any,
    matC_states: Any,
    vecN_states: Any,
    scaMinter_states: Any,
    vecI: Any,
    vecB: Any,
    qk_scale: float | None = None,
    CHUNK_SIZE: int = 64,
    NUM_CHUNKS: int | None = None,
    EPS: float = 1e-6,
    *,
    m_floor: float = M_FLOOR,
    return_vecNt: bool = False,
) -> tuple[Tensor, ...]:
    """(matH, vecN_out, vecM_out) from the states before each chunk, as recurrent_fw_C returns them. return_vecNt adds
    the signed denominator [B, NH, S] float32, which exact gradients need."""
    q = _core.from_dlpack(matQ)
    made = _part_options("parallel_fw_H", q, CHUNK_SIZE, NUM_CHUNKS, qk_scale, EPS, m_floor=m_floor)
    states = (matC_states, vecN_states, scaMinter_states)
    out = _core.mlstm_parallel_fw_H(q, matK, matV, *states, vecI, vecB, made)
    return out if return_vecNt else out[:3]


def recurrent_bw_dC(
    matQ: Any,
    vecF: Any,
    scaM_states: Any,
    vecM_out: Any,
    matDeltaH: Any,
    vecN_out: Any,
    matDeltaC_last: Any = None,
    qk_scale: float | None = None,
    CHUNK_SIZE: int = 64,
    NUM_CHUNKS: int | None = None,
    EPS: float = 1e-6,
    *,
    store_initial_state: bool = False,
    grad_mode: str = "approx",
    matH: Any = None,
    vecNt: Any = None,
    vecDeltaN_last: Any = None,
) -> StateGradients | ExactStateGradients:
    """Gradients of the states at chunk boundaries. vecF [B, NH, S]: the log forget gate of each token.

    The published arguments give the approximate gradient only, so that is the default here. grad_mode "exact" also
    needs matH and vecNt [B, NH, S] of the forward pass (parallel_fw_H), takes the gradient of the last n, and returns
    ExactStateGradients; parallel_bw_dQKV makes of them what chunkwise_bw returns."""
    exact = _is_exact("recurrent_bw_dC", grad_mode, {"matH": matH, "vecNt": vecNt})
    if vecDeltaN_last is not None and not exact:
        raise InvalidArgument(
            "mlstm.recurrent_bw_dC: vecDeltaN_last is given, but only the exact gradient needs it"
        )
    q = _core.from_dlpack(matQ)
    made = _part_options("recurrent_bw_dC", q, CHUNK_SIZE, NUM_CHUNKS, qk_scale, EPS)
    path = (matH, vecNt, vecDeltaN_last)
    states, first, n_states, n_first = _core.mlstm_recurrent_bw_dC(
        q, vecF, scaM_states, vecM_out, matDeltaH, vecN_out, matDeltaC_last, *path, made
    )
    start: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if store_initial_state:
        start = (first, at_last(_core.from_dlpack(scaM_states), 0), n_first)
    if exact:
        return ExactStateGradients(states, start[0], start[1], n_states, start[2])
    return StateGradients(states, start[0], start[1])


def parallel_bw_dQKV(
    matQ: Any,
    matK: Any,
    matV: Any,
    vecF: Any,
    vecI: Any,
    matC_states: Any,
    scaM_states: Any,
    matDeltaH: Any,
    vecN_out: Any,
    vecM_out: Any,
    matDeltaC_states: Any,
    qk_scale: float | None = None,
    CHUNK_SIZE: int = 64,
    NUM_CHUNKS: int | None = None,
    EPS: float = 1e-6,
    *,
    grad_mode: str = "approx",
    vecN_states: Any = None,
    vecDeltaN_states: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dQ, dK, dV, dI, gradient of vecF) from the states before and the gradients of the states after each chunk.
    vecF [B, NH, S]: the log forget gate of each token; matC_states has NC or NC + 1 blocks, matDeltaC_states NC.

    grad_mode "approx" is the default, as in recurrent_bw_dC; "exact" also needs vecN_states, of as many blocks as
    matC_states, and vecDeltaN_states."""
    _is_exact(
        "parallel_bw_dQKV", grad_mode, {"vecN_states": vecN_states, "vecDeltaN_states": vecDeltaN_states}
    )
    q = _core.from_dlpack(matQ)
    made = _part_options("parallel_bw_dQKV", q, CHUNK_SIZE, NUM_CHUNKS, qk_scale, EPS)
    states = (matC_states, scaM_states)
    return _core.mlstm_parallel_bw_dQKV(
        q,
        matK,
        matV,
        vecF,
        vecI,
        *states,
        matDeltaH,
        vecN_out,
        vecM_out,
        matDeltaC_states,
        vecN_states,
        vecDeltaN_states,
        made,
    )
