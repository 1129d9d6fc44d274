"""Writes tests/data/golden/mlstm.safetensors: inputs and results of tests/oracles/mlstm_oracle.py, computed in float64
and stored as float32.

    python tests/data/make_golden_mlstm.py

Needs numpy. q, k, v and dH hold values that bfloat16 has exactly, so that every type sees the same inputs.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracles"))
import mlstm_oracle as oracle  # noqa: E402
from make_golden import File  # noqa: E402
from moe_oracle import round_bf16  # noqa: E402

# name: sizes B, NH, S, DHQK, DHHV, chunk size, keywords of oracle.make_inputs
CASES = {
    "plain": (2, 2, 24, 16, 16, 16, {}),
    "no_state": (1, 3, 65, 24, 48, 32, {"state": False}),
    "odd": (1, 2, 130, 20, 37, 64, {}),
    "one_token": (2, 1, 1, 3, 5, 16, {}),
    "one_wide": (1, 1, 18, 1, 1, 16, {}),
    "extreme": (1, 2, 50, 16, 24, 16, {"gain": 30.0}),
    "floor": (1, 2, 33, 16, 24, 16, {"i_off": -60.0}),
    "large_i": (1, 2, 33, 16, 24, 16, {"i_off": 60.0, "gain": 5.0}),
    "start": (1, 2, 70, 16, 24, 32, {"i_off": -10.0, "f_off": 4.5, "gain": 0.1, "state": False}),
}
FLOOR = -10.0


def rounded(arrays):
    return {
        n: round_bf16(a) if n in ("q", "k", "v", "dH") else a.astype(np.float32) for n, a in arrays.items()
    }


def doubles(arrays):
    return {n: a.astype(np.float64) for n, a in arrays.items()}


def singles(arrays):
    return {n: np.asarray(a, np.float32) for n, a in arrays.items()}


def add_case(file, seed, name, sizes, chunk, options):
    b, nh, s, dqk, dhv = sizes
    x, state, g = oracle.make_inputs(B=b, NH=nh, S=s, DQ=dqk, DV=dhv, seed=seed, **options)
    x, state, g = rounded(x), rounded(state), rounded(g)
    # Where the denominator nearly cancels, gradients amplify every rounding: no gradient enters there.
    _, den, _, _, n, _ = oracle.recurrent_fw(**doubles(x), **doubles(state))
    scale = np.linalg.norm(x["q"], axis=-1) * np.linalg.norm(n[:, :, 1:], axis=-1) * dqk**-0.5
    g["dH"] = np.where((den < 0.1 * scale)[..., None], np.float32(0), g["dH"])
    kw = dict(L=chunk, allow_tail=True, m_floor=FLOOR)
    h, den, m, _, states = oracle.chunkwise_fw(**doubles(x), **doubles(state), **kw)
    file.add(
        name, chunk=np.array([chunk], np.int64), **x, **state, **{k: v for k, v in g.items() if k != "dm"}
    )
    results = dict(h=h, den=den, m=m, C_states=states[0], n_states=states[1], m_states=states[2])
    file.add(name, **singles(results))
    for mode in ("exact", "approx"):
        for last in ("", "_last"):
            given = {k: g[k].astype(np.float64) for k in ("dC", "dn")} if last else {}
            grads = oracle.chunkwise_bw(
                **doubles(x), **doubles(state), dH=g["dH"].astype(np.float64), **given, mode=mode, **kw
            )
            file.add(name, **singles({f"{mode}{last}.{k}": v for k, v in grads.items()}))


def add_sigmoid(file, seed, name, normalize):
    x, state, g = oracle.make_inputs(B=1, NH=2, S=37, DQ=16, DV=24, seed=seed, gain=2.0)
    x, state, g = rounded(x), rounded(state), rounded(g)
    del state["m0"]
    h, den, c, n = oracle.siging_fw(**doubles(x), **doubles(state), eps=0.0, normalize=normalize)
    file.add(name, **x, **state, dH=g["dH"], **singles(dict(h=h, C=c, n=n)))
    if not normalize:
        return
    # Without eps the exponential gate with i = log sigmoid(i) is the same function.
    y = doubles(x)
    y["i"] = oracle.log_sigmoid(y["i"])
    grads = oracle.chunkwise_bw(
        **y,
        C0=state["C0"],
        n0=state["n0"],
        m0=np.zeros((1, 2)),
        dH=g["dH"].astype(np.float64),
        L=37,
        eps=0.0,
        mode="exact",
    )
    grads["i"] = grads["i"] * oracle.sigmoid(-x["i"].astype(np.float64))
    file.add(name, **singles({"den": den, **{f"exact.{k}": v for k, v in grads.items()}}))


def main():
    file = File("mlstm")
    for seed, (name, case) in enumerate(CASES.items()):
        add_case(file, seed, name, case[:5], case[5], case[6])
    add_sigmoid(file, 100, "sigmoid", True)
    add_sigmoid(file, 101, "sigmoid_plain", False)
    file.save()


if __name__ == "__main__":
    main()
