"""Brute-force NumPy oracle for the lookup-table (LUT) runtime.

Written from specs/lut.md; the section numbers below point there.  Clarity first: these functions are
the *definition* the C++/CUDA/HIP code is tested against, not something to be fast.

Conventions (spec section 1)
    anchors : int array [Nt, Nc, 2]; a pair containing a negative id is "unused" (bit 0, never flipped)
    W (FC)  : [Nt, C, O]         C = 2**Nc (non-sequential, product) or 2**(2*Nc+Npe) (sequential)
    PE      : [S-1, Nt, Npe]     row d-1 belongs to distance d = j - i
    index   : bit r of a detector index is 1 iff x[a_r] - x[b_r] > 0 (a tie gives 0)
    sequential cell = (Q << (Nc+Npe)) | (K << Npe) | P,  Q from the later position j, K from the earlier i
All arithmetic is done in the dtype of `x` (pass float64 for a high-precision oracle).

Run this file to execute its self-checks; `python lut_oracle.py --fixture out.npz` also writes a small
fixture for the C++ tests.
"""

import numpy as np

GRAD_EPS = 1e-17  # contributions not larger than this are dropped (spec 3.4)


# ----------------------------------------------------------------------------------------------- detectors
def detect(x, anchors, cmp_eps=0.0):
    """x [..., I] -> index [..., Nt] int64, u_min [..., Nt], r_min [..., Nt] int64 (-1: no usable pair).

    u_min is the signed difference of smallest magnitude; the lowest r wins ties."""
    x = np.asarray(x)
    Nt, Nc, _ = anchors.shape
    index = np.zeros(x.shape[:-1] + (Nt,), dtype=np.int64)
    u_min = np.zeros(x.shape[:-1] + (Nt,), dtype=x.dtype)
    r_min = np.full(x.shape[:-1] + (Nt,), -1, dtype=np.int64)
    for t in range(Nt):
        for r in range(Nc):
            a, b = anchors[t, r]
            if a < 0 or b < 0:
                continue
            u = x[..., a] - x[..., b]
            on = (u > 0) & (np.abs(u) >= cmp_eps)
            index[..., t] |= on.astype(np.int64) << r
            better = (r_min[..., t] < 0) | (np.abs(u) < np.abs(u_min[..., t]))
            u_min[..., t] = np.where(better, u, u_min[..., t])
            r_min[..., t] = np.where(better, r, r_min[..., t])
    return index, u_min, r_min


def detect_pe(PE, cmp_eps=0.0):
    """PE [S-1, Nt, Npe] -> the same triple with shape [S-1, Nt]; Npe == 0 gives index 0, r_min -1."""
    D, Nt, Npe = PE.shape
    index = np.zeros((D, Nt), dtype=np.int64)
    u_min = np.zeros((D, Nt), dtype=PE.dtype)
    r_min = np.full((D, Nt), -1, dtype=np.int64)
    for r in range(Npe):
        u = PE[:, :, r]
        index |= ((u > 0) & (np.abs(u) >= cmp_eps)).astype(np.int64) << r
        better = (r_min < 0) | (np.abs(u) < np.abs(u_min))
        u_min = np.where(better, u, u_min)
        r_min = np.where(better, r, r_min)
    return index, u_min, r_min


def blend(u):
    """Weight of the alternative cell in the smoothed layer (spec 3.1)."""
    return 0.5 / (1.0 + np.abs(u))


def slope(u, bit):
    """Surrogate slope s(u) = sgn * 0.5 / (1+|u|)^2, sgn = +1 iff the bit is set (u == 0 -> -1)."""
    return np.where(bit != 0, 0.5, -0.5) / (1.0 + np.abs(u)) ** 2


# --------------------------------------------------------------------------------- non-sequential, FC (2, 3)
def fc_forward(x, anchors, W, cmp_eps=0.0):
    """x [B, I] -> y [B, O] and the saved triple."""
    index, u_min, r_min = detect(x, anchors, cmp_eps)
    y = np.zeros((x.shape[0], W.shape[2]), dtype=x.dtype)
    for b in range(x.shape[0]):
        for t in range(W.shape[0]):
            y[b] += W[t, index[b, t]]
    return y, (index, u_min, r_min)


def fc_backward(gy, saved, anchors, W, n_inputs, lr=1.0):
    """-> gx [B, I], gW [Nt, C, O].  lr is the synapse-meta learning-rate factor (weights only)."""
    index, u_min, r_min = saved
    B, Nt = index.shape
    gx = np.zeros((B, n_inputs), dtype=gy.dtype)
    gW = np.zeros_like(W)
    for b in range(B):
        for t in range(Nt):
            c, r = index[b, t], r_min[b, t]
            gW[t, c] += lr * np.where(np.abs(gy[b]) > GRAD_EPS, gy[b], 0)
            if r < 0:
                continue
            g = gy[b] @ (W[t, c] - W[t, c ^ (1 << r)])
            _push(gx[b], anchors[t, r], g * slope(u_min[b, t], (c >> r) & 1))
    return gx, gW


def fc_backward_vectorised(gy, saved, anchors, W, n_inputs, lr=1.0):
    """Independent formulation: G[b,t,c] = sum_o W[t,c,o] gy[b,o] first (the seed's staging buffer)."""
    index, u_min, r_min = saved
    B, Nt = index.shape
    bi, ti = np.arange(B)[:, None], np.arange(Nt)[None, :]
    G = np.einsum("tco,bo->btc", W, gy)
    ok = r_min >= 0
    r = np.where(ok, r_min, 0)
    d = (G[bi, ti, index] - G[bi, ti, index ^ (1 << r)]) * slope(u_min, (index >> r) & 1) * ok
    gx = np.zeros((B, n_inputs), dtype=gy.dtype)
    pair = anchors[ti, r]
    bb = np.broadcast_to(bi, d.shape)
    np.add.at(gx, (bb[ok], pair[ok][:, 0]), d[ok])
    np.add.at(gx, (bb[ok], pair[ok][:, 1]), -d[ok])
    gW = np.zeros_like(W)
    np.add.at(
        gW, (np.broadcast_to(ti, d.shape), index), lr * np.broadcast_to(gy[:, None, :], (B, Nt, gy.shape[1]))
    )
    return gx, gW


def _push(row, pair, d):
    if np.abs(d) > GRAD_EPS:
        row[pair[0]] += d
        row[pair[1]] -= d


# ------------------------------------------------------------------------------ non-sequential, sparse (2.3)
# CSR over cells: row = t*C + c, targets col[ptr[row]:ptr[row+1]], weights val likewise.
def sparse_forward(x, anchors, ptr, col, val, C, O, cmp_eps=0.0):
    index, u_min, r_min = detect(x, anchors, cmp_eps)
    y = np.zeros((x.shape[0], O), dtype=x.dtype)
    for b in range(x.shape[0]):
        for t in range(anchors.shape[0]):
            row = t * C + index[b, t]
            for k in range(ptr[row], ptr[row + 1]):
                y[b, col[k]] += val[k]
    return y, (index, u_min, r_min)


def sparse_backward(gy, saved, anchors, ptr, col, val, C, n_inputs, lr=None):
    """lr: None (all ones) or a per-synapse factor [nnz].  -> gx [B, I], gval [nnz]."""
    index, u_min, r_min = saved
    B, Nt = index.shape
    gx = np.zeros((B, n_inputs), dtype=gy.dtype)
    gval = np.zeros_like(val)
    lr = np.ones_like(val) if lr is None else lr

    def dot(b, row):
        s = slice(ptr[row], ptr[row + 1])
        return np.sum(val[s] * gy[b, col[s]])

    for b in range(B):
        for t in range(Nt):
            c, r = index[b, t], r_min[b, t]
            row = t * C + c
            for k in range(ptr[row], ptr[row + 1]):
                if np.abs(gy[b, col[k]]) > GRAD_EPS:
                    gval[k] += lr[k] * gy[b, col[k]]
            if r < 0:
                continue
            g = dot(b, row) - dot(b, t * C + (c ^ (1 << r)))
            _push(gx[b], anchors[t, r], g * slope(u_min[b, t], (c >> r) & 1))
    return gx, gval


def dense_to_csr(W, keep=None):
    """Helper for tests: FC table -> CSR; keep [Nt, C, O] bool selects existing synapses (default all)."""
    Nt, C, O = W.shape
    keep = np.ones(W.shape, bool) if keep is None else keep
    rows = keep.reshape(Nt * C, O)
    ptr = np.concatenate([[0], np.cumsum(rows.sum(1))]).astype(np.int64)
    return ptr, np.nonzero(rows)[1].astype(np.int64), W.reshape(Nt * C, O)[rows]


# ------------------------------------------------------------------------------------- sequential, FC (4)
def pair_cells(sq, sp, Nc, Npe, i, j, b, t):
    """All that one (b, t, i<j) pair needs: (main cell, [alternatives]).

    An alternative is (kind, position or distance row, r, cell, u, bit); 0, 1 or 2 of them."""
    (qi, qu, qr), (pi, pu, pr) = sq, sp
    Q, K = qi[b, j, t], qi[b, i, t]
    uq, uk, rq, rk = qu[b, j, t], qu[b, i, t], qr[b, j, t], qr[b, i, t]
    P = pi[j - i - 1, t] if Npe else 0
    main = (Q << (Nc + Npe)) | (K << Npe) | P
    alts = []
    if rq >= 0:  # a detector usable at one position is usable at all
        if np.abs(uq) < np.abs(uk):  # strict: on a tie the earlier position (K) is flipped
            alts.append(("x", j, rq, main ^ (1 << (rq + Nc + Npe)), uq, (Q >> rq) & 1))
        else:
            alts.append(("x", i, rk, main ^ (1 << (rk + Npe)), uk, (K >> rk) & 1))
    if Npe:
        up, rp = pu[j - i - 1, t], pr[j - i - 1, t]
        if rq < 0 or (np.abs(up) < np.abs(uq) and np.abs(up) < np.abs(uk)):
            alts.append(("pe", j - i - 1, rp, main ^ (1 << rp), up, (P >> rp) & 1))
    return main, alts


def seq_forward(x, anchors, PE, W, cmp_eps=0.0):
    """x [B, S, I], PE [S-1, Nt, Npe], W [Nt, 2**(2Nc+Npe), O] -> y [B, S, O], saved."""
    B, S, _ = x.shape
    Nt, Nc, _ = anchors.shape
    Npe = PE.shape[2]
    sq, sp = detect(x, anchors, cmp_eps), detect_pe(PE, cmp_eps)
    y = np.zeros((B, S, W.shape[2]), dtype=x.dtype)
    for b in range(B):
        for j in range(1, S):  # position 0 has no predecessor: its output stays 0
            for i in range(j):
                for t in range(Nt):
                    main, _ = pair_cells(sq, sp, Nc, Npe, i, j, b, t)
                    y[b, j] += W[t, main]
    return y, (sq, sp)


def seq_backward(gy, saved, anchors, W, n_inputs, Npe, lr=1.0):
    """-> gx [B, S, I], gPE [S-1, Nt, Npe], gW like W."""
    sq, sp = saved
    B, S, _ = gy.shape
    Nt, Nc, _ = anchors.shape
    gx = np.zeros((B, S, n_inputs), dtype=gy.dtype)
    gPE = np.zeros((S - 1, Nt, Npe), dtype=gy.dtype)
    gW = np.zeros_like(W)
    for b in range(B):
        for j in range(1, S):
            g = gy[b, j]
            for i in range(j):
                for t in range(Nt):
                    main, alts = pair_cells(sq, sp, Nc, Npe, i, j, b, t)
                    gW[t, main] += lr * np.where(np.abs(g) > GRAD_EPS, g, 0)
                    for kind, where, r, cell, u, bit in alts:
                        d = (g @ (W[t, main] - W[t, cell])) * slope(u, bit)
                        if kind == "x":
                            _push(gx[b, where], anchors[t, r], d)
                        else:
                            gPE[where, t, r] += d
    return gx, gPE, gW


def seq_firing_stat(saved, anchors, Npe, C):
    """The seed's intermediate objects: main multiplicity n[b,j,t,c] and the set of cells whose dot
    product with gy[b,j] the input gradient needs (alternatives), as a boolean mask of the same shape."""
    sq, sp = saved
    B, S, Nt = sq[0].shape
    n = np.zeros((B, S, Nt, C), dtype=np.int64)
    alt = np.zeros((B, S, Nt, C), dtype=bool)
    for b in range(B):
        for j in range(1, S):
            for i in range(j):
                for t in range(Nt):
                    main, alts = pair_cells(sq, sp, anchors.shape[1], Npe, i, j, b, t)
                    n[b, j, t, main] += 1
                    for a in alts:
                        alt[b, j, t, a[3]] = True
    return n, alt


# --------------------------------------------------------------------------------------------- product (4.7)
def product_inputs(x1, x2, PE, t, i, j, b, sliced):
    """The vector a product-mode detector t looks at for the pair (i, j)."""
    pe = PE[j - i - 1, t]
    if sliced:
        return np.stack([x1[b, i], x2[b, j], pe], axis=1).reshape(-1)
    return np.concatenate([x1[b, i], x2[b, j], pe])


def product_forward_backward(x1, x2, anchors, PE, W, gy=None, sliced=False, cmp_eps=0.0, lr=1.0):
    """-> y, and with gy also (gx1, gx2, gPE, gW)."""
    B, S, I1 = x1.shape
    I2, (Nt, Nc, _) = x2.shape[2], anchors.shape
    y = np.zeros((B, S, W.shape[2]), dtype=x1.dtype)
    g1, g2, gPE, gW = np.zeros_like(x1), np.zeros_like(x2), np.zeros_like(PE), np.zeros_like(W)

    def split(vec):
        if sliced:
            return vec.reshape(-1, 3).T
        return vec[:I1], vec[I1 : I1 + I2], vec[I1 + I2 :]

    for b in range(B):
        for j in range(1, S):
            for i in range(j):
                for t in range(Nt):
                    v = product_inputs(x1, x2, PE, t, i, j, b, sliced)[None]
                    idx, u, r = detect(v, anchors[t : t + 1], cmp_eps)
                    c, u, r = idx[0, 0], u[0, 0], r[0, 0]
                    y[b, j] += W[t, c]
                    if gy is None:
                        continue
                    gW[t, c] += lr * gy[b, j]
                    if r < 0:
                        continue
                    d = (gy[b, j] @ (W[t, c] - W[t, c ^ (1 << r)])) * slope(u, (c >> r) & 1)
                    gv = np.zeros_like(v[0])
                    _push(gv, anchors[t, r], d)
                    p = split(gv)
                    g1[b, i] += p[0]
                    g2[b, j] += p[1]
                    gPE[j - i - 1, t] += p[2]
    return y if gy is None else (y, (g1, g2, gPE, gW))


# ------------------------------------------------------------------------- smoothed objectives (spec 11.1)
def fc_smooth(x, anchors, W, gy):
    """L(x) whose exact gradient (away from switching points) is the surrogate input gradient."""
    index, u, r = detect(x, anchors)
    L = 0.0
    for b in range(x.shape[0]):
        for t in range(W.shape[0]):
            m = W[t, index[b, t]]
            L += gy[b] @ m
            if r[b, t] >= 0:
                L += blend(u[b, t]) * (gy[b] @ (W[t, index[b, t] ^ (1 << r[b, t])] - m))
    return L


def seq_smooth(x, anchors, PE, W, gy):
    sq, sp = detect(x, anchors), detect_pe(PE)
    B, S, _ = x.shape
    L = 0.0
    for b in range(B):
        for j in range(1, S):
            for i in range(j):
                for t in range(anchors.shape[0]):
                    main, alts = pair_cells(sq, sp, anchors.shape[1], PE.shape[2], i, j, b, t)
                    L += gy[b, j] @ W[t, main]
                    for _, _, _, cell, u, _ in alts:
                        L += blend(u) * (gy[b, j] @ (W[t, cell] - W[t, main]))
    return L


# ------------------------------------------------------------------------------- integer accumulation (7.2)
INT_UNIT = (1 << 20) - 1


def to_fixed(v, rescale):
    """One contribution -> int32 quanta (truncation toward zero of a double product)."""
    return np.trunc(np.float64(v) * INT_UNIT * rescale).astype(np.int64)


def from_fixed(q, rescale):
    return np.float32(np.float64(q) / INT_UNIT / rescale)


def fc_forward_int(x, anchors, W, rescale, block):
    """Integer mode: detectors are grouped in blocks of `block`; each block's double sum is one contribution."""
    index, _, _ = detect(x, anchors)
    B, (Nt, _, O) = x.shape[0], W.shape
    acc = np.zeros((B, O), dtype=np.int64)
    for b in range(B):
        for t0 in range(0, Nt, block):
            s = np.zeros(O)
            for t in range(t0, min(t0 + block, Nt)):
                s += W[t, index[b, t]].astype(np.float64)
            acc[b] += to_fixed(s, rescale)
    assert np.abs(acc).max() < 2**31, "int32 accumulator would overflow"
    return from_fixed(acc, rescale)


# ------------------------------------------------------------------------------------------------ generators
def random_anchors(rng, Nt, Nc, I):
    """Ordered pairs of distinct inputs; duplicates and reversed pairs across r are allowed."""
    code = rng.integers(0, I * (I - 1), size=(Nt, Nc))
    a, b = code // (I - 1), code % (I - 1)
    return np.stack([a, b + (b >= a)], axis=-1).astype(np.int64)


def random_fc_case(rng, B=3, I=7, Nt=4, Nc=3, O=5, dtype=np.float64):
    return (
        rng.standard_normal((B, I)).astype(dtype),
        random_anchors(rng, Nt, Nc, I),
        rng.standard_normal((Nt, 1 << Nc, O)).astype(dtype),
        rng.standard_normal((B, O)).astype(dtype),
    )


def random_seq_case(rng, B=2, S=5, I=6, Nt=3, Nc=2, Npe=2, O=4, dtype=np.float64):
    return (
        rng.standard_normal((B, S, I)).astype(dtype),
        random_anchors(rng, Nt, Nc, I),
        rng.uniform(-1, 1, (S - 1, Nt, Npe)).astype(dtype),
        rng.standard_normal((Nt, 1 << (2 * Nc + Npe), O)).astype(dtype),
        rng.standard_normal((B, S, O)).astype(dtype),
    )


# ------------------------------------------------------------------------------------------------ self-check
def numeric_grad(f, z, h=1e-6):
    g = np.zeros_like(z)
    for k in np.ndindex(*z.shape):
        old = z[k]
        z[k] = old + h
        up_ = f()
        z[k] = old - h
        dn = f()
        z[k] = old
        g[k] = (up_ - dn) / (2 * h)
    return g


def close(a, b, what, tol=1e-9):
    err = np.max(np.abs(np.asarray(a) - np.asarray(b))) if np.size(a) else 0.0
    scale = max(1.0, np.max(np.abs(b)) if np.size(b) else 1.0)
    assert np.shape(a) == np.shape(b) and err <= tol * scale, f"{what}: err {err:g}"
    print(f"  ok {what:58s} max err {err:.2e}")


def self_check(seed=0):
    rng = np.random.default_rng(seed)

    # detector conventions on hand-made values
    anc = np.array([[[0, 1], [2, 1], [1, 0]]])
    idx, u, r = detect(np.array([[1.0, 1.0, 3.0]]), anc)
    assert (idx[0, 0], u[0, 0], r[0, 0]) == (0b010, 0.0, 0)  # ties: bit 0, first r wins
    assert slope(0.0, 0) == -0.5 and slope(1.0, 1) == 0.125
    idx, u, r = detect(np.array([[5.0, 1.0]]), np.array([[[-1, -1], [-1, -1]]]))
    assert (idx[0, 0], r[0, 0]) == (0, -1)  # no usable pair

    # FC
    x, anc, W, gy = random_fc_case(rng)
    y, saved = fc_forward(x, anc, W)
    gx, gW = fc_backward(gy, saved, anc, W, x.shape[1])
    gx2, gW2 = fc_backward_vectorised(gy, saved, anc, W, x.shape[1])
    close(gx2, gx, "FC gx: staged formulation == loop")
    close(gW2, gW, "FC gW: staged formulation == loop")
    close(
        numeric_grad(lambda: np.sum(gy * fc_forward(x, anc, W)[0]), W), gW, "FC gW: finite difference", 1e-7
    )
    close(
        gx,
        numeric_grad(lambda: fc_smooth(x, anc, W, gy), x),
        "FC gx: finite difference of smoothed objective",
        1e-6,
    )
    close(gx.sum(1), np.zeros(len(gx)), "FC gx: rows sum to zero")
    close(np.sum(gW * W), np.sum(gy * y), "FC: <gW, W> == <gy, y> (linear in W)")
    perm = rng.permutation(W.shape[0])
    close(fc_forward(x, anc[perm], W[perm])[0], y, "FC: invariant under detector permutation")
    close(fc_forward(np.exp(x), anc, W)[0], y, "FC y: invariant under a monotone map of x")
    flip = anc[:, :, ::-1]
    full = W.shape[1] - 1
    close(
        fc_forward(x, flip, W[:, full - np.arange(full + 1)])[0],
        y,
        "FC y: reversed pairs == complemented cells",
    )

    # sparse == FC when all synapses exist, == masked FC otherwise
    C, O = W.shape[1:]
    keep = rng.random(W.shape) < 0.4
    for name, k in (("full", None), ("masked", keep)):
        Wm = W if k is None else W * k
        ptr, col, val = dense_to_csr(W, k)
        ys, sv = sparse_forward(x, anc, ptr, col, val, C, O)
        yd, sd = fc_forward(x, anc, Wm)
        close(ys, yd, f"sparse {name}: forward == dense")
        gxs, gv = sparse_backward(gy, sv, anc, ptr, col, val, C, x.shape[1])
        gxd, gWd = fc_backward(gy, sd, anc, Wm, x.shape[1])
        close(gxs, gxd, f"sparse {name}: gx == dense")
        mask = np.ones(W.shape, bool) if k is None else k
        close(gv, gWd.reshape(-1, O)[mask.reshape(-1, O)], f"sparse {name}: gval == dense")

    # sequential
    for Npe in (2, 0):
        x, anc, PE, W, gy = random_seq_case(rng, Npe=Npe)
        y, saved = seq_forward(x, anc, PE, W)
        gx, gPE, gW = seq_backward(gy, saved, anc, W, x.shape[2], Npe)
        tag = f"seq Npe={Npe}"
        assert np.all(y[:, 0] == 0) and np.all(gW.shape == W.shape)
        close(
            numeric_grad(lambda: np.sum(gy * seq_forward(x, anc, PE, W)[0]), W) if W.size < 800 else gW,
            gW,
            f"{tag} gW: finite difference",
            1e-6,
        )
        close(
            gx,
            numeric_grad(lambda: seq_smooth(x, anc, PE, W, gy), x),
            f"{tag} gx: finite difference (smoothed)",
            1e-6,
        )
        close(
            gPE,
            numeric_grad(lambda: seq_smooth(x, anc, PE, W, gy), PE),
            f"{tag} gPE: finite difference (smoothed)",
            1e-6,
        )
        n, alt = seq_firing_stat(saved, anc, Npe, W.shape[1])
        B, S, _ = x.shape
        close(np.einsum("bjtc,tco->bjo", n, W), y, f"{tag}: output from firing statistics")
        close(np.einsum("bjtc,bjo->tco", n, gy), gW, f"{tag}: gW from firing statistics")
        assert n.sum() == B * anc.shape[0] * S * (S - 1) // 2  # exact main-event count
        assert (n > 0).sum() <= n.sum() and alt.sum() <= B * anc.shape[0] * S * (S - 1)
        close(np.einsum("bso->", gx), 0.0, f"{tag}: gx sums to zero")
        xa = x.copy()
        xa[:, 3:] += rng.standard_normal(xa[:, 3:].shape)
        close(seq_forward(xa, anc, PE, W)[0][:, :3], y[:, :3], f"{tag}: causal")

    # S = 2 reduces to one FC table of 2Nc+Npe bits
    x, anc, PE, W, gy = random_seq_case(rng, S=2, Nc=2, Npe=1)
    I = x.shape[2]
    wide = np.concatenate(
        [
            x[:, 1],
            x[:, 0],
            np.broadcast_to(PE[0].reshape(1, -1), (len(x), PE[0].size)),
            np.zeros((len(x), 1)),
        ],
        axis=1,
    )
    Nt, Npe = PE.shape[1], PE.shape[2]
    big = np.zeros((Nt, 2 * 2 + Npe, 2), dtype=np.int64)
    for t in range(Nt):
        for r in range(Npe):
            big[t, r] = (2 * I + t * Npe + r, wide.shape[1] - 1)
        for r in range(2):
            big[t, Npe + r] = anc[t, r] + I
            big[t, Npe + 2 + r] = anc[t, r]
    close(fc_forward(wide, big, W)[0], seq_forward(x, anc, PE, W)[0][:, 1], "seq S=2: equals a wide FC layer")

    # product mode against an explicit FC layer per pair
    for sliced in (False, True):
        B, S, I, Nt, Nc, O = 2, 4, 3, 3, 3, 4
        x = rng.standard_normal((B, S, I))
        Npe = I if sliced else 2
        PE = rng.uniform(-1, 1, (S - 1, Nt, Npe))
        anc = random_anchors(rng, Nt, Nc, 3 * I if sliced else 2 * I + Npe)
        W, gy = rng.standard_normal((Nt, 1 << Nc, O)), rng.standard_normal((B, S, O))
        y, (g1, g2, gPE, gW) = product_forward_backward(x, x, anc, PE, W, gy, sliced)
        f = lambda: np.sum(gy * product_forward_backward(x, x, anc, PE, W, None, sliced))
        close(numeric_grad(f, W), gW, f"product sliced={sliced} gW: finite difference", 1e-6)
        close(g1.sum() + g2.sum() + gPE.sum(), 0.0, f"product sliced={sliced}: gradients sum to zero")

    # integer accumulation: value close to float, independent of detector order inside the quantum budget
    x, anc, W, gy = random_fc_case(rng, B=4, Nt=10, dtype=np.float32)
    W *= np.float32(0.1)
    for rescale, block in ((1.0, 4), (10.0, 4), (1.0, 32)):
        yi = fc_forward_int(x, anc, W, rescale, block)
        nblk = -(-W.shape[0] // block)
        tol = nblk / (INT_UNIT * rescale) + 1e-6
        assert np.max(np.abs(yi - fc_forward(x, anc, W)[0])) <= tol, (rescale, block)
    print("  ok integer mode within (blocks / unit) of float")
    print("all self-checks passed (seed %d)" % seed)


def write_fixture(path, seed=7):
    rng = np.random.default_rng(seed)
    x, anc, W, gy = random_fc_case(rng, dtype=np.float32)
    y, s = fc_forward(x, anc, W)
    gx, gW = fc_backward(gy, s, anc, W, x.shape[1])
    xs, ancs, PE, Ws, gys = random_seq_case(rng, dtype=np.float32)
    ys, ss = seq_forward(xs, ancs, PE, Ws)
    gxs, gPE, gWs = seq_backward(gys, ss, ancs, Ws, xs.shape[2], PE.shape[2])
    np.savez(
        path,
        fc_x=x,
        fc_anchors=anc.astype(np.int32),
        fc_W=W,
        fc_gy=gy,
        fc_y=y,
        fc_index=s[0].astype(np.int32),
        fc_u=s[1],
        fc_r=s[2].astype(np.int32),
        fc_gx=gx,
        fc_gW=gW,
        seq_x=xs,
        seq_anchors=ancs.astype(np.int32),
        seq_PE=PE,
        seq_W=Ws,
        seq_gy=gys,
        seq_y=ys,
        seq_gx=gxs,
        seq_gPE=gPE,
        seq_gW=gWs,
    )


if __name__ == "__main__":
    import sys

    for sd in range(3):
        self_check(sd)
    if "--fixture" in sys.argv:
        write_fixture(sys.argv[sys.argv.index("--fixture") + 1])
