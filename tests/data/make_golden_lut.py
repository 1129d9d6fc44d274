# ruff: noqa: E741
"""Writes tests/data/golden/lut_*.safetensors: inputs and the float64 results of tests/oracles/lut_oracle.py.

    python tests/data/make_golden_lut.py

Needs numpy. Inputs are float32 values, so float32 kernels see exactly what the oracle saw.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "oracles"))
import lut_oracle as oracle  # noqa: E402
from make_golden import File  # noqa: E402


def f32(array):
    return np.asarray(array, np.float32)


def inputs(rng, shape, ties):
    """Normal values, or ones on a half-integer grid where ties are everywhere."""
    if ties:
        return f32(rng.integers(-3, 4, shape) / 2)
    return f32(rng.standard_normal(shape))


def with_unused(rng, anchors):
    """Some pairs unused, and the first table without any."""
    anchors = anchors.copy()
    anchors[rng.random(anchors.shape[:2]) < 0.3] = -1
    anchors[0] = -1
    return anchors


def saved_arrays(prefix, saved):
    index, u, r = saved
    return {
        f"{prefix}index": index.astype(np.int32),
        f"{prefix}min_delta": f32(u),
        f"{prefix}min_index": r.astype(np.int32),
    }


def rows(rng):
    """B, I, Nt, Nc, O, ties, unused pairs, cmp_eps, learning rate."""
    file = File("lut_rows")
    cases = [
        (3, 7, 4, 3, 5, False, False, 0.0, 1.0),
        (1, 2, 1, 1, 1, False, False, 0.0, 1.0),
        (17, 9, 33, 2, 33, True, False, 0.0, 0.5),
        (5, 6, 2, 12, 3, False, True, 0.0, 1.0),
        (4, 8, 5, 4, 257, False, False, 0.5, 1.0),
        (9, 5, 6, 3, 31, True, True, 0.5, 1.0),
        (2, 4, 31, 2, 32, False, False, 0.0, 1.0),
        (20, 11, 3, 5, 10, False, False, 0.0, 1.0),
    ]
    for i, (B, I, Nt, Nc, O, ties, unused, eps, lr) in enumerate(cases):
        x, gy = inputs(rng, (B, I), ties), f32(rng.standard_normal((B, O)))
        anchors = oracle.random_anchors(rng, Nt, Nc, I)
        if unused:
            anchors = with_unused(rng, anchors)
        W = f32(rng.standard_normal((Nt, 1 << Nc, O)))
        index, u, r = oracle.detect(x, anchors, np.float32(eps))
        y = np.zeros((B, O))
        for t in range(Nt):
            y += W[t, index[:, t]].astype(np.float64)
        gx, gW = oracle.fc_backward(
            gy.astype(np.float64), (index, u.astype(np.float64), r), anchors, W.astype(np.float64), I, lr
        )
        case = dict(
            x=x, anchors=anchors.astype(np.int32), w=W, gy=gy, y=y, gx=gx, eps=f32([eps]), lr=f32([lr])
        )
        case |= saved_arrays("", (index, u, r))
        # gW row by row: most rows of the larger tables are zero.
        touched = np.flatnonzero(np.abs(gW).reshape(Nt << Nc, O).sum(1))
        case |= dict(gw_rows=touched.astype(np.int64), gw=gW.reshape(Nt << Nc, O)[touched])
        file.add(i, **case)
    file.save()


def fixed(rng):
    """Fixed-point y, bit for bit."""
    file = File("lut_fixed")
    for i, (rescale, block) in enumerate([(0.001, 32), (1.0, 4), (10.0, 5)]):
        x, anchors = f32(rng.standard_normal((4, 6))), oracle.random_anchors(rng, 37, 3, 6)
        W = f32(rng.standard_normal((37, 8, 9)))
        y = oracle.fc_forward_int(x, anchors, W, rescale, block)
        numbers = np.array([rescale, block], np.float64)
        file.add(i, x=x, anchors=anchors.astype(np.int32), w=W, y=f32(y), numbers=numbers)
    file.save()


def sparse(rng):
    """General CSR rows (some empty) with a learning rate a synapse, and the detector-shared form."""
    file = File("lut_sparse")
    for i, (B, I, Nt, Nc, O, keep) in enumerate(
        [(3, 7, 4, 3, 5, 0.4), (6, 5, 3, 2, 40, 0.2), (5, 4, 5, 2, 3, 1.0)]
    ):
        x, gy = inputs(rng, (B, I), i == 1), f32(rng.standard_normal((B, O)))
        anchors = oracle.random_anchors(rng, Nt, Nc, I)
        W = f32(rng.standard_normal((Nt, 1 << Nc, O)))
        ptr, col, val = oracle.dense_to_csr(W, rng.random(W.shape) < keep)
        # A target that repeats in its row counts twice.
        at = int(np.argmax(np.diff(ptr) > 0))
        col, val = np.insert(col, ptr[at], col[ptr[at]]), np.insert(val, ptr[at], f32(0.5))
        ptr = ptr + (np.arange(len(ptr)) > at)
        lr = f32(rng.random(len(val)))
        wide = [a.astype(np.float64) for a in (x, val, gy, lr)]
        y, saved = oracle.sparse_forward(wide[0], anchors, ptr, col, wide[1], 1 << Nc, O)
        gx, gval = oracle.sparse_backward(wide[2], saved, anchors, ptr, col, wide[1], 1 << Nc, I, wide[3])
        case = dict(x=x, anchors=anchors.astype(np.int32), pointers=ptr.astype(np.int64), w=val, gy=gy, lr=lr)
        file.add(i, **case, targets=col.astype(np.int32), outputs=np.array([O]), y=y, gx=gx, gw=gval)
    file.save()


def sequence(rng):
    """B, S, I, Nt, Nc, Npe, O, ties, unused pairs, cmp_eps."""
    file = File("lut_sequence")
    cases = [
        (2, 5, 6, 3, 2, 2, 4, False, False, 0.0),
        (1, 2, 3, 1, 1, 0, 1, False, False, 0.0),
        (2, 7, 4, 3, 2, 1, 33, True, False, 0.0),
        (1, 33, 5, 2, 1, 5, 3, False, False, 0.0),
        (3, 3, 5, 4, 2, 0, 32, True, True, 0.25),
        (2, 6, 4, 3, 3, 3, 10, True, True, 0.0),
    ]
    for i, (B, S, I, Nt, Nc, Npe, O, ties, unused, eps) in enumerate(cases):
        x, gy = inputs(rng, (B, S, I), ties), f32(rng.standard_normal((B, S, O)))
        anchors = oracle.random_anchors(rng, Nt, Nc, I)
        if unused:
            anchors = with_unused(rng, anchors)
        pe = inputs(rng, (S - 1, Nt, Npe), ties)
        W = f32(rng.standard_normal((Nt, 1 << (2 * Nc + Npe), O)))
        sq, sp = oracle.detect(x, anchors, np.float32(eps)), oracle.detect_pe(pe, np.float32(eps))
        wide = tuple((a, u.astype(np.float64), r) for a, u, r in (sq, sp))
        y, _ = oracle.seq_forward(
            x.astype(np.float64), anchors, pe.astype(np.float64), W.astype(np.float64), eps
        )
        gx, gpe, gW = oracle.seq_backward(gy.astype(np.float64), wide, anchors, W.astype(np.float64), I, Npe)
        case = dict(x=x, anchors=anchors.astype(np.int32), w=W, gy=gy, y=y, gx=gx, gw=gW, eps=f32([eps]))
        case |= saved_arrays("", sq)
        if Npe:
            case |= dict(pe=pe, gpe=gpe) | saved_arrays("pe_", sp)
        file.add(i, **case)
    file.save()


def product(rng):
    """S, I, Nt, Nc, Npe, O, sliced."""
    file = File("lut_product")
    for i, (S, I, Nt, Nc, Npe, O, sliced) in enumerate(
        [(4, 3, 3, 3, 2, 4, False), (5, 3, 2, 4, 3, 33, True), (3, 4, 2, 2, 0, 1, False)]
    ):
        x, gy = f32(rng.standard_normal((2, S, I))), f32(rng.standard_normal((2, S, O)))
        pe = f32(rng.uniform(-1, 1, (S - 1, Nt, Npe)))
        anchors = oracle.random_anchors(rng, Nt, Nc, 3 * I if sliced else 2 * I + Npe)
        W = f32(rng.standard_normal((Nt, 1 << Nc, O)))
        wide = [a.astype(np.float64) for a in (x, pe, W, gy)]
        y, (g1, g2, gpe, gW) = oracle.product_forward_backward(
            wide[0], wide[0], anchors, wide[1], wide[2], wide[3], sliced
        )
        case = dict(x=x, anchors=anchors.astype(np.int32), w=W, gy=gy, y=y, gx=g1 + g2, gw=gW)
        if Npe:
            case |= dict(pe=pe, gpe=gpe)
        file.add(i, **case, sliced=np.array([int(sliced)]))
    file.save()


if __name__ == "__main__":
    for make in (rows, fixed, sparse, sequence, product):
        make(np.random.default_rng(len(make.__name__)))
