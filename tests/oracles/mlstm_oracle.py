"""NumPy oracle for the mLSTM (matrix-memory xLSTM cell): forward and backward.

Everything is float64 and written for clarity, not speed.  Section numbers (§)
refer to specs/mlstm.md.

Layouts: q, k (B, NH, S, DHQK); v, H (B, NH, S, DHHV); i, f (B, NH, S);
C (B, NH, DHQK, DHHV); n (B, NH, DHQK); m (B, NH).
i, f are gate PRE-ACTIVATIONS.  m is always a natural logarithm.

Run this file to execute the self-check (a few seconds).  If the packages
`torch` and `mlstm_kernels` can be imported, the oracle is also compared with
that package's native implementations.
"""

import numpy as np

# --------------------------------------------------------------------------
# helpers
# --------------------------------------------------------------------------


def log_sigmoid(x):
    """min(x, 0) - log1p(exp(-|x|)): no overflow, no -inf for finite x."""
    x = np.asarray(x, dtype=np.float64)
    return np.minimum(x, 0.0) - np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    return np.exp(log_sigmoid(x))


def _prepare(q, k, v, i, f, C0, n0, m0, qk_scale):
    q, k, v, i, f = (np.asarray(x, dtype=np.float64) for x in (q, k, v, i, f))
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError("q, k must be (B,NH,S,DHQK) and v (B,NH,S,DHHV)")
    if i.shape != q.shape[:3] or f.shape != q.shape[:3]:
        raise ValueError("i and f must be (B,NH,S)")
    B, NH, S, DQ = q.shape
    if S == 0:
        raise ValueError("empty sequence")
    DV = v.shape[-1]
    given = [x is not None for x in (C0, n0, m0)]
    if any(given) and not all(given):
        raise ValueError("initial C, n and m must be given together")
    if not all(given):
        C0, n0, m0 = np.zeros((B, NH, DQ, DV)), np.zeros((B, NH, DQ)), np.zeros((B, NH))
    C0, n0 = np.asarray(C0, np.float64), np.asarray(n0, np.float64)
    m0 = np.asarray(m0, np.float64).reshape(B, NH)  # accepts (B,NH) and (B,NH,1)
    if C0.shape != (B, NH, DQ, DV) or n0.shape != (B, NH, DQ):
        raise ValueError("initial state has the wrong shape")
    scale = DQ**-0.5 if qk_scale is None else float(qk_scale)
    return q, k, v, i, f, C0, n0, m0, scale


def _exp(x):
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(x)


# --------------------------------------------------------------------------
# §2.1 recurrent form: the ground truth
# --------------------------------------------------------------------------


def recurrent_step(q, k, v, i, f, C, n, m, qk_scale=None, eps=1e-6):
    """One token.  q, k (B,NH,DHQK); v (B,NH,DHHV); i, f, m (B,NH)."""
    s = q.shape[-1] ** -0.5 if qk_scale is None else qk_scale
    lf = log_sigmoid(f)
    m_new = np.maximum(lf + m, i)
    fp, ip = _exp(lf + m - m_new), _exp(i - m_new)
    C = fp[..., None, None] * C + ip[..., None, None] * k[..., :, None] * v[..., None, :]
    n = fp[..., None] * n + ip[..., None] * k
    num = s * np.einsum("bhkv,bhk->bhv", C, q)
    den = np.maximum(np.abs(s * np.einsum("bhk,bhk->bh", n, q)), _exp(-m_new))
    return num / (den + eps)[..., None], den, C, n, m_new


def recurrent_fw(q, k, v, i, f, C0=None, n0=None, m0=None, qk_scale=None, eps=1e-6):
    """Returns H, den (B,NH,S), m (B,NH,S), all C (B,NH,S+1,..), n, m states."""
    q, k, v, i, f, C, n, m, s = _prepare(q, k, v, i, f, C0, n0, m0, qk_scale)
    Hs, dens, Cs, ns, ms = [], [], [C], [n], [m]
    for t in range(q.shape[2]):
        h, den, C, n, m = recurrent_step(
            q[:, :, t], k[:, :, t], v[:, :, t], i[:, :, t], f[:, :, t], C, n, m, s, eps
        )
        Hs.append(h), dens.append(den), Cs.append(C), ns.append(n), ms.append(m)
    st = lambda xs: np.stack(xs, axis=2)
    return st(Hs), st(dens), st(ms[1:]), st(Cs), st(ns), st(ms)


# --------------------------------------------------------------------------
# §2.2 parallel (quadratic) form, with an optional initial state
# --------------------------------------------------------------------------


def _parallel_core(q, k, v, i, f, C0, n0, m0, s, with_m0=True):
    F = np.cumsum(log_sigmoid(f), axis=-1)
    S = q.shape[2]
    tri = np.tril(np.ones((S, S), bool))
    logD = np.where(tri, F[..., :, None] - F[..., None, :] + i[..., None, :], -np.inf)
    m = logD.max(-1)
    logA = F + m0[..., None]  # decay of the initial state
    if with_m0:
        m = np.maximum(m, logA)
    D, A = _exp(logD - m[..., None]), _exp(logA - m)
    Smat = s * np.einsum("bhtk,bhjk->bhtj", q, k)
    P = Smat * D
    num = np.einsum("bhtj,bhjv->bhtv", P, v) + s * A[..., None] * np.einsum("bhtk,bhkv->bhtv", q, C0)
    nt = P.sum(-1) + s * A * np.einsum("bhtk,bhk->bht", q, n0)
    return F, logD, m, D, A, Smat, num, nt


def parallel_fw(q, k, v, i, f, C0=None, n0=None, m0=None, qk_scale=None, eps=1e-6, with_m0=True):
    """Returns H, den, m.  with_m0=False reproduces the textbook parallel form,
    whose m ignores the (zero) initial state; it needs C0 = n0 = 0."""
    q, k, v, i, f, C0, n0, m0, s = _prepare(q, k, v, i, f, C0, n0, m0, qk_scale)
    _, _, m, _, _, _, num, nt = _parallel_core(q, k, v, i, f, C0, n0, m0, s, with_m0)
    den = np.maximum(np.abs(nt), _exp(-m))
    return num / (den + eps)[..., None], den, m


# --------------------------------------------------------------------------
# §2.3 chunkwise form
# --------------------------------------------------------------------------


def chunk_bounds(S, L, allow_tail=False):
    if L < 1:
        raise ValueError("chunk size must be positive")
    if S % L and not allow_tail:
        raise ValueError(f"sequence length {S} is not divisible by chunk size {L}")
    return [(a, min(a + L, S)) for a in range(0, S, L)]


def chunk_gates(i_c, f_c):
    """vecB, vecA, scaG of one chunk.  vecA is a reverse cumulative sum, never a
    difference of forward cumulative sums (stable form, §3.2)."""
    lf = log_sigmoid(f_c)
    b = np.cumsum(lf, -1)
    tail = np.cumsum(lf[..., ::-1], -1)[..., ::-1] - lf  # sum of lf over j > position
    return b, tail + i_c, b[..., -1]


def recurrent_fw_C(k, v, i, f, C0, n0, m0, L, allow_tail=False, save_every=1):
    """States at chunk boundaries: C (B,NH,NCs+1,DHQK,DHHV), n, m.  Index 0 is the
    initial state.  Only every `save_every`-th state is kept."""
    C, n, m = C0, n0, m0
    Cs, ns, ms = [], [], []
    bounds = chunk_bounds(k.shape[2], L, allow_tail)
    for c, (a0, a1) in enumerate(bounds):
        if c % save_every == 0:
            Cs.append(C), ns.append(n), ms.append(m)
        _, a, g = chunk_gates(i[..., a0:a1], f[..., a0:a1])
        m_new = np.maximum(g + m, a.max(-1))
        gbar, abar = _exp(g + m - m_new), _exp(a - m_new[..., None])
        kb = k[:, :, a0:a1] * abar[..., None]
        C = gbar[..., None, None] * C + np.einsum("bhlk,bhlv->bhkv", kb, v[:, :, a0:a1])
        n = gbar[..., None] * n + kb.sum(2)
        m = m_new
    if len(bounds) % save_every == 0:
        Cs.append(C), ns.append(n), ms.append(m)
    st = lambda xs: np.stack(xs, axis=2)
    return st(Cs), st(ns), st(ms)


def _chunk_tensors(q_c, k_c, i_c, f_c, m_prev, s, m_floor):
    b, a, g = chunk_gates(i_c, f_c)
    l = b.shape[-1]
    tri = np.tril(np.ones((l, l), bool))
    logD = np.where(tri, b[..., :, None] - b[..., None, :] + i_c[..., None, :], -np.inf)
    m_intra = logD.max(-1)
    if m_floor is not None:
        m_intra = np.maximum(m_intra, m_floor)
    m_comb = np.maximum(b + m_prev[..., None], m_intra)
    D = _exp(logD - m_comb[..., None])
    bbar = _exp(b + m_prev[..., None] - m_comb)
    Smat = s * np.einsum("bhtk,bhjk->bhtj", q_c, k_c)
    return b, a, g, m_comb, D, bbar, Smat


def parallel_fw_H(q, k, v, i, f, Cs, ns, ms, s, L, eps, allow_tail=False, m_floor=None):
    """H (B,NH,S,DHHV), vecN_out = den without eps (B,NH,S), vecM_out (B,NH,S)."""
    Hs, dens, mouts = [], [], []
    for c, (a0, a1) in enumerate(chunk_bounds(q.shape[2], L, allow_tail)):
        qc, kc, vc = q[:, :, a0:a1], k[:, :, a0:a1], v[:, :, a0:a1]
        _, _, _, mc, D, bbar, Smat = _chunk_tensors(
            qc, kc, i[..., a0:a1], f[..., a0:a1], ms[:, :, c], s, m_floor
        )
        qb = s * bbar[..., None] * qc
        P = Smat * D
        num = np.einsum("bhtk,bhkv->bhtv", qb, Cs[:, :, c]) + np.einsum("bhtj,bhjv->bhtv", P, vc)
        nt = np.einsum("bhtk,bhk->bht", qb, ns[:, :, c]) + P.sum(-1)
        den = np.maximum(np.abs(nt), _exp(-mc))
        Hs.append(num / (den + eps)[..., None]), dens.append(den), mouts.append(mc)
    cat = lambda xs: np.concatenate(xs, axis=2)
    return cat(Hs), cat(dens), cat(mouts)


def chunkwise_fw(
    q, k, v, i, f, C0=None, n0=None, m0=None, qk_scale=None, L=64, eps=1e-6, allow_tail=False, m_floor=None
):
    """Returns H, vecN_out, vecM_out, last=(C,n,m), all=(C,n,m) with NC+1 states."""
    q, k, v, i, f, C0, n0, m0, s = _prepare(q, k, v, i, f, C0, n0, m0, qk_scale)
    Cs, ns, ms = recurrent_fw_C(k, v, i, f, C0, n0, m0, L, allow_tail)
    H, den, mo = parallel_fw_H(q, k, v, i, f, Cs, ns, ms, s, L, eps, allow_tail, m_floor)
    last = (Cs[:, :, -1], ns[:, :, -1], ms[:, :, -1])
    return H, den, mo, last, (Cs, ns, ms)


# --------------------------------------------------------------------------
# §4.1 exact backward, reverse-time recursion (full chain rule, maxima routed)
# --------------------------------------------------------------------------


def recurrent_bw(
    q, k, v, i, f, dH, dC=None, dn=None, dm=None, C0=None, n0=None, m0=None, qk_scale=None, eps=1e-6
):
    """Exactly what automatic differentiation of recurrent_fw gives (ties aside).
    dC, dn, dm: gradients of the last states.  Returns dict of gradients."""
    q, k, v, i, f, C0, n0, m0, s = _prepare(q, k, v, i, f, C0, n0, m0, qk_scale)
    H, den, mo, Cs, ns, ms = recurrent_fw(q, k, v, i, f, C0, n0, m0, s, eps)
    S, lf = q.shape[2], log_sigmoid(f)
    dC = np.zeros_like(C0) if dC is None else dC.copy()
    dn = np.zeros_like(n0) if dn is None else dn.copy()
    dm = np.zeros_like(m0) if dm is None else np.asarray(dm, float).reshape(m0.shape).copy()
    dq, dk, dv, di, dlf = (np.zeros_like(x) for x in (q, k, v, i, f))
    for t in range(S - 1, -1, -1):
        Ct, nt, mt, Cp, npv, mp = (
            Cs[:, :, t + 1],
            ns[:, :, t + 1],
            ms[:, :, t + 1],
            Cs[:, :, t],
            ns[:, :, t],
            ms[:, :, t],
        )
        qt, kt, vt, g = q[:, :, t], k[:, :, t], v[:, :, t], dH[:, :, t]
        dd = den[:, :, t] + eps
        G = g / dd[..., None]
        dden = -(g * H[:, :, t]).sum(-1) / dd
        dot = s * (nt * qt).sum(-1)
        use_dot = np.abs(dot) >= _exp(-mt)
        ddot = np.where(use_dot, np.sign(dot) * dden, 0.0)
        dm = dm + np.where(use_dot, 0.0, -_exp(-mt) * dden)
        dq[:, :, t] = s * (np.einsum("bhkv,bhv->bhk", Ct, G) + nt * ddot[..., None])
        dC = dC + s * qt[..., :, None] * G[..., None, :]
        dn = dn + s * qt * ddot[..., None]
        fp, ip = _exp(lf[:, :, t] + mp - mt), _exp(i[:, :, t] - mt)
        u = fp * ((dC * Cp).sum((-1, -2)) + (dn * npv).sum(-1))
        dCv = np.einsum("bhkv,bhv->bhk", dC, vt)
        w = ip * (((dCv + dn) * kt).sum(-1))
        dk[:, :, t] = ip[..., None] * (dCv + dn)
        dv[:, :, t] = ip[..., None] * np.einsum("bhkv,bhk->bhv", dC, kt)
        dm = dm - u - w
        from_f = lf[:, :, t] + mp >= i[:, :, t]
        dlf[:, :, t] = u + np.where(from_f, dm, 0.0)
        di[:, :, t] = w + np.where(from_f, 0.0, dm)
        dm = u + np.where(from_f, dm, 0.0)
        dC, dn = fp[..., None, None] * dC, fp[..., None] * dn
    return dict(q=dq, k=dk, v=dv, i=di, f=dlf * sigmoid(-f), C0=dC, n0=dn, m0=dm)


# --------------------------------------------------------------------------
# §4.2 backward in parallel form; mode "exact" or "approx"
# --------------------------------------------------------------------------


def parallel_bw(
    q,
    k,
    v,
    i,
    f,
    dH,
    dC=None,
    dn=None,
    dm=None,
    C0=None,
    n0=None,
    m0=None,
    qk_scale=None,
    eps=1e-6,
    mode="exact",
    eps_max_path=False,
):
    """mode "approx": gradient through the denominator, n and m is dropped.
    mode "exact": denominator included, m treated as a constant; this is the true
    gradient when eps = 0 and the downstream loss depends on the last states only
    through C*exp(m) and n*exp(m).  eps_max_path=True adds what is missing (and
    uses dm), giving the same result as recurrent_bw."""
    q, k, v, i, f, C0, n0, m0, s = _prepare(q, k, v, i, f, C0, n0, m0, qk_scale)
    F, logD, m, D, A, Smat, num, nt = _parallel_core(q, k, v, i, f, C0, n0, m0, s)
    exact = mode == "exact"
    B, NH, S = i.shape
    dC = np.zeros_like(C0) if dC is None else dC
    dn = np.zeros_like(n0) if dn is None or not exact else dn
    den = np.maximum(np.abs(nt), _exp(-m))
    H = num / (den + eps)[..., None]
    G = dH / (den + eps)[..., None]
    dden = -(dH * H).sum(-1) / (den + eps)
    ddot = np.where(np.abs(nt) >= _exp(-m), np.sign(nt) * dden, 0.0) if exact else 0 * dden
    w = D[:, :, -1, :]  # weight of token j in the last state
    gbar = A[:, :, -1]  # weight of the initial state in it
    dP = np.einsum("bhtv,bhjv->bhtj", G, v) + ddot[..., None]
    dS = dP * D
    CG = np.einsum("bhkv,bhtv->bhtk", C0, G) + n0[:, :, None] * ddot[..., None]
    dq = s * (np.einsum("bhtj,bhjk->bhtk", dS, k) + A[..., None] * CG)
    dCv = np.einsum("bhkv,bhjv->bhjk", dC, v) + dn[:, :, None]
    dk = s * np.einsum("bhtj,bhtk->bhjk", dS, q) + w[..., None] * dCv
    dv = np.einsum("bhtj,bhtv->bhjv", Smat * D, G) + w[..., None] * np.einsum("bhkv,bhjk->bhjv", dC, k)
    R = dS * Smat  # gradient of logD
    W = w * (k * dCv).sum(-1)
    a = s * A * (q * CG).sum(-1)  # gradient of logA_t
    gl = gbar * ((C0 * dC).sum((-1, -2)) + (n0 * dn).sum(-1))
    di = R.sum(-2) + W
    dlf = np.cumsum(a[..., ::-1], -1)[..., ::-1] + gl[..., None]
    dlf = dlf + np.concatenate([np.zeros((B, NH, 1)), np.cumsum(W, -1)[..., :-1]], -1)
    for t in range(S):  # pairs (row i >= t, column j < t)
        dlf[..., t] += R[..., t:, :t].sum((-1, -2))
    dC0 = s * np.einsum("bht,bhtk,bhtv->bhkv", A, q, G) + gbar[..., None, None] * dC
    dn0 = s * np.einsum("bht,bhtk,bht->bhk", A, q, ddot) + gbar[..., None] * dn
    dm0 = a.sum(-1) + gl
    if eps_max_path:
        rho = -(dH * H).sum(-1) * eps / (den + eps)
        CS = np.einsum("bhj,bhjk,bhjv->bhkv", w, k, v) + gbar[..., None, None] * C0
        nS = (w[..., None] * k).sum(2) + gbar[..., None] * n0
        dmS = 0.0 if dm is None else np.asarray(dm, float).reshape(B, NH)
        rho[..., -1] += dmS - (CS * dC).sum((-1, -2)) - (nS * dn).sum(-1)
        for b in range(B):
            for h in range(NH):
                for t in range(S):
                    j = int(np.argmax(logD[b, h, t]))
                    if F[b, h, t] + m0[b, h] >= logD[b, h, t, j]:
                        j = -1
                        dm0[b, h] += rho[b, h, t]
                    else:
                        di[b, h, j] += rho[b, h, t]
                    dlf[b, h, j + 1 : t + 1] += rho[b, h, t]
    return dict(q=dq, k=dk, v=dv, i=di, f=dlf * sigmoid(-f), C0=dC0, n0=dn0, m0=dm0)


# --------------------------------------------------------------------------
# §4.3 chunkwise backward; mode "approx" (seed documents) or "exact"
# --------------------------------------------------------------------------


def recurrent_bw_dC(q, f, i, ms, m_out, den, dH, ddot, dC_last, dn_last, s, L, eps, allow_tail=False):
    """dC (B,NH,NC+1,DHQK,DHHV) and dn (B,NH,NC+1,DHQK); index k is the gradient
    of the state at boundary k; index 0 the gradient of the initial state."""
    bounds = chunk_bounds(q.shape[2], L, allow_tail)
    dC, dn = dC_last, dn_last
    dCs, dns = [dC], [dn]
    for c in range(len(bounds) - 1, -1, -1):
        a0, a1 = bounds[c]
        b, _, g = chunk_gates(i[..., a0:a1], f[..., a0:a1])
        gbar = _exp(g + ms[:, :, c] - ms[:, :, c + 1])
        bbar = _exp(b + ms[:, :, c, None] - m_out[..., a0:a1])
        qb = s * bbar[..., None] * q[:, :, a0:a1]
        G = dH[:, :, a0:a1] / (den[..., a0:a1] + eps)[..., None]
        dC = gbar[..., None, None] * dC + np.einsum("bhlk,bhlv->bhkv", qb, G)
        dn = gbar[..., None] * dn + np.einsum("bhlk,bhl->bhk", qb, ddot[..., a0:a1])
        dCs.append(dC), dns.append(dn)
    return np.stack(dCs[::-1], 2), np.stack(dns[::-1], 2)


def chunkwise_bw(
    q,
    k,
    v,
    i,
    f,
    dH,
    dC=None,
    dn=None,
    C0=None,
    n0=None,
    m0=None,
    qk_scale=None,
    L=64,
    eps=1e-6,
    mode="approx",
    gate_grad="local",
    allow_tail=False,
    m_floor=None,
):
    """gate_grad:
    "seed_global"  reverse cumulative sum of q.dq - k.dk over the whole sequence
                   (v3noslice, limit_chunk, xl_chunk); omits the last-state term
    "global"       the same plus the last-state term (correct for dC != 0)
    "local"        sums inside each chunk only (stablef); same value, stable
    """
    q, k, v, i, f, C0, n0, m0, s = _prepare(q, k, v, i, f, C0, n0, m0, qk_scale)
    H, den, mo, _, (Cs, ns, ms) = chunkwise_fw(q, k, v, i, f, C0, n0, m0, s, L, eps, allow_tail, m_floor)
    exact = mode == "exact"
    dC = np.zeros_like(C0) if dC is None else dC
    dn = np.zeros_like(n0) if dn is None or not exact else dn
    ddot = np.zeros_like(den)
    if exact:  # signed denominator gradient, needs the signed n^T q (recomputed)
        for c, (a0, a1) in enumerate(chunk_bounds(q.shape[2], L, allow_tail)):
            _, _, _, mc, D, bbar, Smat = _chunk_tensors(
                q[:, :, a0:a1], k[:, :, a0:a1], i[..., a0:a1], f[..., a0:a1], ms[:, :, c], s, m_floor
            )
            nt = (Smat * D).sum(-1) + s * bbar * np.einsum("bhtk,bhk->bht", q[:, :, a0:a1], ns[:, :, c])
            dden = -(dH[:, :, a0:a1] * H[:, :, a0:a1]).sum(-1) / (den[..., a0:a1] + eps)
            ddot[..., a0:a1] = np.where(np.abs(nt) >= _exp(-mc), np.sign(nt) * dden, 0.0)
    dCs, dns = recurrent_bw_dC(q, f, i, ms, mo, den, dH, ddot, dC, dn, s, L, eps, allow_tail)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    di, dlf = np.zeros_like(i), np.zeros_like(i)
    for c, (a0, a1) in enumerate(chunk_bounds(q.shape[2], L, allow_tail)):
        sl = np.s_[:, :, a0:a1]
        qc, kc, vc = q[sl], k[sl], v[sl]
        _, a, g, mc, D, bbar, Smat = _chunk_tensors(qc, kc, i[sl], f[sl], ms[:, :, c], s, m_floor)
        G = dH[sl] / (den[sl] + eps)[..., None]
        dd = ddot[sl]
        abar = _exp(a - ms[:, :, c + 1, None])
        gbar = _exp(g + ms[:, :, c] - ms[:, :, c + 1])
        dS = (np.einsum("bhtv,bhjv->bhtj", G, vc) + dd[..., None]) * D
        dq_inter = (
            s
            * bbar[..., None]
            * (np.einsum("bhtv,bhkv->bhtk", G, Cs[:, :, c]) + dd[..., None] * ns[:, :, c, None])
        )
        dk_inter = abar[..., None] * (
            np.einsum("bhtv,bhkv->bhtk", vc, dCs[:, :, c + 1]) + dns[:, :, c + 1, None]
        )
        dq[sl] = s * np.einsum("bhtj,bhjk->bhtk", dS, kc) + dq_inter
        dk[sl] = s * np.einsum("bhtj,bhtk->bhjk", dS, qc) + dk_inter
        dv[sl] = np.einsum("bhtj,bhtv->bhjv", Smat * D, G) + abar[..., None] * np.einsum(
            "bhtk,bhkv->bhtv", kc, dCs[:, :, c + 1]
        )
        di[sl] = (kc * dk[sl]).sum(-1)
        # local (chunk-only) forget-gate gradient
        R, l = dS * Smat, a1 - a0
        x, y = (qc * dq_inter).sum(-1), (kc * dk_inter).sum(-1)
        part = np.cumsum(x[..., ::-1], -1)[..., ::-1] + np.cumsum(y, -1) - y
        part = (
            part
            + (
                gbar
                * ((Cs[:, :, c] * dCs[:, :, c + 1]).sum((-1, -2)) + (ns[:, :, c] * dns[:, :, c + 1]).sum(-1))
            )[..., None]
        )
        for t in range(l):
            part[..., t] += R[..., t:, :t].sum((-1, -2))
        dlf[sl] = part
    if gate_grad != "local":
        z = (q * dq - k * dk).sum(-1)
        dlf = np.cumsum(z[..., ::-1], -1)[..., ::-1]
        if gate_grad == "global":
            dlf = dlf + ((Cs[:, :, -1] * dC).sum((-1, -2)) + (ns[:, :, -1] * dn).sum(-1))[..., None]
    dC0, dn0 = dCs[:, :, 0], dns[:, :, 0]
    dm0 = (C0 * dC0).sum((-1, -2)) + (n0 * dn0).sum(-1) if exact else np.zeros_like(m0)
    return dict(q=dq, k=dk, v=dv, i=di, f=dlf * sigmoid(-f), C0=dC0, n0=dn0, m0=dm0)


# --------------------------------------------------------------------------
# §3.5 sigmoid-input-gate variant (forward only)
# --------------------------------------------------------------------------


def siging_fw(q, k, v, i, f, C0=None, n0=None, qk_scale=None, eps=1e-6, normalize=True):
    """Input gate sigmoid(i), no max state.  Returns H, den (or None), C, n."""
    q, k, v, i, f = (np.asarray(x, np.float64) for x in (q, k, v, i, f))
    B, NH, S, DQ = q.shape
    C = np.zeros((B, NH, DQ, v.shape[-1])) if C0 is None else np.asarray(C0, float)
    n = np.zeros((B, NH, DQ)) if n0 is None else np.asarray(n0, float)
    s = DQ**-0.5 if qk_scale is None else qk_scale
    F, I = sigmoid(f), sigmoid(i)
    Hs, dens = [], []
    for t in range(S):
        C = F[..., t, None, None] * C + I[..., t, None, None] * k[:, :, t, :, None] * v[:, :, t, None, :]
        n = F[..., t, None] * n + I[..., t, None] * k[:, :, t]
        num = s * np.einsum("bhkv,bhk->bhv", C, q[:, :, t])
        den = np.maximum(np.abs(s * (n * q[:, :, t]).sum(-1)), 1.0)
        Hs.append(num / (den + eps)[..., None] if normalize else num)
        dens.append(den)
    return np.stack(Hs, 2), (np.stack(dens, 2) if normalize else None), C, n


# --------------------------------------------------------------------------
# §6 xLSTM-large language model (inference forward)
# --------------------------------------------------------------------------


def soft_cap(x, c):
    return x if c is None else c * np.tanh(x / c)


def lm_forward(
    w, ids, num_blocks, num_heads, state=None, norm_eps=1e-6, eps=1e-6, gate_cap=15.0, logit_cap=30.0, L=64
):
    """w: dict of checkpoint tensors (names of §6.3, weight_mode "single", no biases
    except the gates).  ids (B,S).  Returns logits (B,S,vocab) and the new state,
    a list of (C, n, m) per block."""
    rms = lambda x, g: x / np.sqrt((x * x).mean(-1, keepdims=True) + norm_eps) * g
    x = w["backbone.embeddings.weight"][ids].astype(np.float64)
    B, S, _ = x.shape
    heads = lambda t: t.reshape(B, S, num_heads, -1).transpose(0, 2, 1, 3)
    new = []
    for l in range(num_blocks):
        p = f"backbone.blocks.{l}."
        y = rms(x, w[p + "norm_mlstm.weight"])
        lin = lambda name: y @ w[p + "mlstm_layer." + name + ".weight"].T
        gate = lambda name: soft_cap(lin(name) + w[p + f"mlstm_layer.{name}.bias"], gate_cap).transpose(
            0, 2, 1
        )
        st = {} if state is None else dict(zip(("C0", "n0", "m0"), state[l]))
        H, _, _, last, _ = chunkwise_fw(
            heads(lin("q")),
            heads(lin("k")),
            heads(lin("v")),
            gate("igate_preact"),
            gate("fgate_preact"),
            **st,
            L=L,
            eps=eps,
            allow_tail=True,
        )
        new.append(last)
        h = H.transpose(0, 2, 1, 3)  # (B,S,NH,DHHV): LayerNorm over DHHV
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + norm_eps)
        h = h.reshape(B, S, -1) * w[p + "mlstm_layer.multihead_norm.weight"]
        x = x + (sigmoid(lin("ogate_preact")) * h) @ w[p + "mlstm_layer.out_proj.weight"].T
        y = rms(x, w[p + "norm_ffn.weight"])
        a, u = y @ w[p + "ffn.proj_up_gate.weight"].T, y @ w[p + "ffn.proj_up.weight"].T
        x = x + (a * sigmoid(a) * u) @ w[p + "ffn.proj_down.weight"].T
    x = rms(x, w["backbone.out_norm.weight"])
    return soft_cap(x @ w["lm_head.weight"].T, logit_cap), new


# --------------------------------------------------------------------------
# self-check
# --------------------------------------------------------------------------


def make_inputs(B=2, NH=2, S=24, DQ=5, DV=7, seed=0, i_off=0.0, f_off=1.0, gain=1.0, state=True):
    r = np.random.default_rng(seed)
    x = dict(
        q=r.standard_normal((B, NH, S, DQ)),
        k=r.standard_normal((B, NH, S, DQ)),
        v=r.standard_normal((B, NH, S, DV)),
        i=i_off + gain * r.standard_normal((B, NH, S)),
        f=f_off + gain * r.standard_normal((B, NH, S)),
    )
    st = (
        dict(
            C0=r.standard_normal((B, NH, DQ, DV)),
            n0=r.standard_normal((B, NH, DQ)),
            m0=r.standard_normal((B, NH)),
        )
        if state
        else {}
    )
    g = dict(
        dH=r.standard_normal((B, NH, S, DV)),
        dC=r.standard_normal((B, NH, DQ, DV)),
        dn=r.standard_normal((B, NH, DQ)),
        dm=r.standard_normal((B, NH)),
    )
    return x, st, g


def rel(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / (1e-300 + max(np.max(np.abs(a)), np.max(np.abs(b)))))


def _check(name, err, tol):
    print(f"  {name:<66s} {err:9.2e} {'ok' if err <= tol else 'FAIL (tol %g)' % tol}")
    assert err <= tol, name


def self_check():
    print("forward: recurrent = parallel = chunkwise")
    for tag, kw in [
        ("moderate", {}),
        ("i, f in +-60", dict(gain=30.0)),
        ("i offset -60", dict(i_off=-60.0)),
        ("f offset -60", dict(f_off=-60.0)),
        ("i offset +60", dict(i_off=60.0)),
        ("no initial state", dict(state=False)),
    ]:
        x, st, _ = make_inputs(**kw)
        H, den, m, Cs, ns, ms = recurrent_fw(**x, **st)
        assert np.isfinite(H).all()
        Hp, denp, mp = parallel_fw(**x, **st)
        _check(f"{tag}: parallel vs recurrent H, m", max(rel(Hp, H), rel(mp, m)), 1e-10)
        for L in (1, 4, 8, 24):
            Hc, dc, mc, last, alls = chunkwise_fw(**x, **st, L=L)
            _check(
                f"{tag}: chunkwise L={L} H, den, m, C, n",
                max(
                    rel(Hc, H),
                    rel(dc, den),
                    rel(mc, m),
                    rel(last[0], Cs[:, :, -1]),
                    rel(last[1], ns[:, :, -1]),
                    rel(alls[2], ms[:, :, ::L]),
                ),
                1e-10,
            )
        Ht = chunkwise_fw(**x, **st, L=7, allow_tail=True)[0]
        _check(f"{tag}: chunkwise L=7 with a short last chunk", rel(Ht, H), 1e-10)
        Hf = chunkwise_fw(**x, **st, L=8, m_floor=-10.0, eps=0.0)[0]
        H0 = recurrent_fw(**x, **st, eps=0.0)[0]
        _check(f"{tag}: m floor -10 leaves H unchanged (eps=0)", rel(Hf, H0), 1e-10)

    print("prefill then decode")
    x, st, _ = make_inputs(seed=3)
    H = recurrent_fw(**x, **st)[0]
    cut = {n: t[:, :, :16] for n, t in x.items()}
    Hc, _, _, (C, n, m), _ = chunkwise_fw(**cut, **st, L=8)
    out = [Hc]
    for t in range(16, 24):
        h, _, C, n, m = recurrent_step(*(x[a][:, :, t] for a in "qkvif"), C, n, m)
        out.append(h[:, :, None])
    _check("chunkwise prefill + steps vs full recurrent", rel(np.concatenate(out, 2), H), 1e-12)

    print("m invariance: (C, n, m) ~ (C e^d, n e^d, m - d)")
    d = 3.7
    st2 = dict(C0=st["C0"] * np.exp(d), n0=st["n0"] * np.exp(d), m0=st["m0"] - d)
    _check(
        "H unchanged at eps=0",
        rel(recurrent_fw(**x, **st2, eps=0.0)[0], recurrent_fw(**x, **st, eps=0.0)[0]),
        1e-12,
    )

    print("exact backward: reverse recursion vs finite differences")
    for eps in (0.0, 1e-2):
        x, st, g = make_inputs(B=1, NH=2, S=6, DQ=3, DV=4, seed=5)

        def loss(z):
            Hh, _, _, Cs, ns, ms = recurrent_fw(**z, eps=eps)
            return (
                (Hh * g["dH"][:, :, :6]).sum()
                + (Cs[:, :, -1] * g["dC"]).sum()
                + (ns[:, :, -1] * g["dn"]).sum()
                + (ms[:, :, -1] * g["dm"]).sum()
            )

        z = {**x, **st}
        gr = recurrent_bw(**z, **g, eps=eps)
        for name in z:
            fd = np.zeros_like(z[name])
            for idx in np.ndindex(*z[name].shape):
                zp = {a: b.copy() for a, b in z.items()}
                zm = {a: b.copy() for a, b in z.items()}
                zp[name][idx] += 1e-6
                zm[name][idx] -= 1e-6
                fd[idx] = (loss(zp) - loss(zm)) / 2e-6
            _check(f"eps={eps:g}: d{name}", rel(gr[name], fd), 5e-7)

    print("exact backward: parallel = recurrent; chunkwise exact = parallel exact")
    for tag, kw in [("moderate", {}), ("gates +-60", dict(gain=30.0)), ("i offset -60", dict(i_off=-60.0))]:
        x, st, g = make_inputs(seed=7, **kw)
        ref = recurrent_bw(**x, **st, **g, eps=1e-6)
        par = parallel_bw(**x, **st, **g, eps=1e-6, eps_max_path=True)
        _check(f"{tag}: parallel (all paths) vs recursion", max(rel(par[n], ref[n]) for n in ref), 1e-9)
        gi = {n: t for n, t in g.items() if n != "dm"}
        pe = parallel_bw(**x, **st, **gi, eps=1e-6)
        for gg in ("local", "global"):
            ch = chunkwise_bw(**x, **st, **gi, eps=1e-6, L=8, mode="exact", gate_grad=gg)
            _check(
                f"{tag}: chunkwise exact ({gg}) vs parallel exact",
                max(rel(ch[n], pe[n]) for n in pe),
                1e-8 if gg == "local" else 1e-5,
            )
        ch = chunkwise_bw(**x, **st, **gi, eps=1e-6, L=7, mode="exact", allow_tail=True)
        _check(f"{tag}: chunkwise exact, short last chunk", max(rel(ch[n], pe[n]) for n in pe), 1e-8)

    print("m-constant gradient is the true one (eps=0, invariant last-state loss)")
    x, st, g = make_inputs(seed=8)
    _, _, _, Cs, ns, _ = recurrent_fw(**x, **st, eps=0.0)
    dm = (Cs[:, :, -1] * g["dC"]).sum((-1, -2)) + (ns[:, :, -1] * g["dn"]).sum(-1)
    ref = recurrent_bw(**x, **st, dH=g["dH"], dC=g["dC"], dn=g["dn"], dm=dm, eps=0.0)
    pe = parallel_bw(**x, **st, dH=g["dH"], dC=g["dC"], dn=g["dn"], eps=0.0)
    _check("dm = <C,dC> + <n,dn>", max(rel(pe[n], ref[n]) for n in ref), 1e-9)

    print("approximate (seed) backward")
    x, st, g = make_inputs(seed=9)
    pa = parallel_bw(**x, **st, dH=g["dH"], dC=g["dC"], mode="approx")
    ca = chunkwise_bw(**x, **st, dH=g["dH"], dC=g["dC"], L=8)
    _check(
        "chunkwise approx vs parallel approx",
        max(rel(ca[n], pa[n]) for n in ("q", "k", "v", "i", "f", "C0")),
        1e-9,
    )
    _check("dI: k.dk = v.dv in approx mode", rel((x["v"] * ca["v"]).sum(-1), ca["i"]), 1e-9)
    sg = chunkwise_bw(**x, **st, dH=g["dH"], dC=g["dC"], L=8, gate_grad="seed_global")
    print(f"  (seed_global dF error when dC_last != 0: {rel(sg['f'], ca['f']):.2e})")
    H = recurrent_fw(**x, **st)[0]
    gp = g["dH"] - H * ((g["dH"] * H).sum(-1) / (H * H).sum(-1))[..., None]
    ex = recurrent_bw(**x, **st, dH=gp)
    ca = chunkwise_bw(**x, **st, dH=gp, L=8)
    _check(
        "approx = exact when dH is orthogonal to H",
        max(rel(ca[n], ex[n]) for n in ("q", "k", "v", "i", "f", "C0")),
        1e-9,
    )
    ex = recurrent_bw(**x, **st, dH=g["dH"])
    ca = chunkwise_bw(**x, **st, dH=g["dH"], L=8)
    print(
        "  (approx vs exact for a generic dH: "
        + ", ".join(f"d{n} {rel(ca[n], ex[n]):.2f}" for n in ("q", "k", "v", "i", "f"))
        + ")"
    )


def reference_check():
    """Optional comparison with the native implementations of `mlstm_kernels`."""
    try:
        import torch
        from mlstm_kernels.torch.chunkwise.native.fwbw import (
            mlstm_chunkwise__native_autograd as cw_auto,
        )
        from mlstm_kernels.torch.chunkwise.native.fwbw import (
            mlstm_chunkwise__native_custbw as cw_cust,
        )
        from mlstm_kernels.torch.parallel.native_stablef.fwbw import (
            mlstm_parallel__native_stablef_autograd as p_auto,
        )
        from mlstm_kernels.torch.parallel.native_stablef.fwbw import (
            mlstm_parallel__native_stablef_custbw as p_cust,
        )
        from mlstm_kernels.torch.recurrent.native_step import mlstm_recurrent_step__native as step
    except Exception as e:
        print("reference check skipped:", repr(e)[:200])
        return
    print("comparison with mlstm_kernels native implementations (float64)")
    T = lambda a: torch.tensor(a, dtype=torch.float64, requires_grad=True)
    N = lambda t: t.detach().numpy()
    for tag, kw in [("moderate", {}), ("gates +-20", dict(gain=10.0))]:
        x, st, g = make_inputs(S=32, DQ=4, DV=6, seed=11, **kw)
        tx = {n: T(a) for n, a in x.items()}
        ts = dict(c_initial=T(st["C0"]), n_initial=T(st["n0"]), m_initial=T(st["m0"][..., None]))
        H, (C, n, m) = cw_auto(**tx, **ts, return_last_states=True, chunk_size=8)
        Ho, _, _, last, _ = chunkwise_fw(**x, **st, L=8)
        _check(
            f"{tag}: chunkwise forward + last states",
            max(rel(Ho, N(H)), rel(last[0], N(C)), rel(last[1], N(n)), rel(last[2], N(m)[..., 0])),
            1e-11,
        )
        (
            (H * torch.tensor(g["dH"])).sum()
            + (C * torch.tensor(g["dC"])).sum()
            + (n * torch.tensor(g["dn"])).sum()
            + (m[..., 0] * torch.tensor(g["dm"])).sum()
        ).backward()
        ref = recurrent_bw(**x, **st, **g)
        auto = {
            **{a: N(t.grad) for a, t in tx.items()},
            "C0": N(ts["c_initial"].grad),
            "n0": N(ts["n_initial"].grad),
            "m0": N(ts["m_initial"].grad)[..., 0],
        }
        _check(
            f"{tag}: recurrent_bw vs automatic differentiation (all grads)",
            max(rel(ref[a], auto[a]) for a in ref),
            1e-9,
        )
        for with_dC in (False, True):
            tx = {a: T(b) for a, b in x.items()}
            ts = dict(c_initial=T(st["C0"]), n_initial=T(st["n0"]), m_initial=T(st["m0"][..., None]))
            H, (C, n, m) = cw_cust(
                **tx, **ts, return_last_states=True, chunk_size=8, autocast_kernel_dtype=torch.float32
            )
            loss = (H * torch.tensor(g["dH"])).sum()
            if with_dC:
                loss = loss + (C * torch.tensor(g["dC"])).sum()
            loss.backward()
            ca = chunkwise_bw(
                **x, **st, dH=g["dH"], dC=g["dC"] if with_dC else None, L=8, gate_grad="seed_global"
            )
            cust = {
                **{a: N(t.grad) for a, t in tx.items()},
                "C0": N(ts["c_initial"].grad),
                "n0": N(ts["n_initial"].grad),
                "m0": N(ts["m_initial"].grad)[..., 0],
            }
            ca["n0"], ca["m0"] = 0 * ca["n0"], 0 * ca["m0"]
            _check(
                f"{tag}: approx backward vs custom backward, dC_last={with_dC}",
                max(
                    float(np.max(np.abs(ca[a] - cust[a]))) / (1 + float(np.max(np.abs(cust[a]))))
                    for a in cust
                ),
                1e-9,
            )
        x, _, g = make_inputs(S=20, seed=12, state=False, **kw)
        tx = {a: T(b) for a, b in x.items()}
        H = p_auto(**tx)
        _check(f"{tag}: parallel (textbook m) forward", rel(parallel_fw(**x, with_m0=False)[0], N(H)), 1e-11)
        H = p_cust(**tx, autocast_kernel_dtype=torch.float32)
        (H * torch.tensor(g["dH"])).sum().backward()
        pa = parallel_bw(**x, dH=g["dH"], mode="approx")
        _check(
            f"{tag}: parallel approx backward vs custom backward (eps differs)",
            max(rel(pa[a], N(t.grad)) for a, t in tx.items()),
            1e-4,
        )
        st = make_inputs(S=20, seed=12, **kw)[1]
        h, (C, n, m) = step(
            *(torch.tensor(x[a][:, :, 0]) for a in "qkv"),
            *(torch.tensor(x[a][:, :, 0, None]) for a in "if"),
            *(torch.tensor(a) for a in (st["C0"], st["n0"], st["m0"][..., None])),
            dtype_state=torch.float64,
        )
        x0 = recurrent_step(*(x[a][:, :, 0] for a in "qkvif"), st["C0"], st["n0"], st["m0"])
        _check(f"{tag}: single step", max(rel(x0[0], h.numpy()), rel(x0[2], C.numpy())), 1e-12)
        try:
            from mlstm_kernels.torch.parallel.native_siging.fw import mlstm_siging_parallel_fw

            for nm in (True, False):
                Hs, _ = mlstm_siging_parallel_fw(*(torch.tensor(x[a]) for a in "qkvif"), normalize=nm)
                _check(
                    f"{tag}: sigmoid input gate forward, normalize={nm}",
                    rel(siging_fw(**x, normalize=nm)[0], Hs.numpy()),
                    1e-11,
                )
        except ImportError as e:
            print("  siging skipped:", e)


def reference_lm_check():
    """Optional comparison of lm_forward with transformers' xLSTMForCausalLM."""
    try:
        import torch
        from transformers import xLSTMConfig, xLSTMForCausalLM
    except Exception as e:
        print("language-model check skipped:", repr(e)[:200])
        return
    print("comparison with transformers xLSTMForCausalLM (tiny random model)")
    torch.manual_seed(0)
    cfg = xLSTMConfig(
        vocab_size=97,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=2,
        chunk_size=8,
        autocast_kernel_dtype="float32",
    )
    net = xLSTMForCausalLM(cfg).eval().double()
    for name, p in net.named_parameters():
        if "gate_preact.bias" in name:
            p.data = 3 * torch.randn_like(p)
        else:
            p.data = 0.2 * torch.randn_like(p) if p.ndim > 1 else 1 + 0.2 * torch.randn_like(p)
    w = {name: p.detach().numpy() for name, p in net.state_dict().items()}
    ids = torch.randint(0, 97, (2, 22))
    with torch.no_grad():
        full = net(ids, use_cache=True).logits.numpy()
        cache = net(ids[:, :21], use_cache=True).cache_params
        last = net(ids[:, 21:], use_cache=True, cache_params=cache).logits.numpy()
    mine, _ = lm_forward(w, ids.numpy(), 2, 2, L=8)
    _, st = lm_forward(w, ids.numpy()[:, :21], 2, 2, L=8)
    step, _ = lm_forward(w, ids.numpy()[:, 21:], 2, 2, state=st, L=8)
    _check("logits, 22 tokens (its norms and logits are float32)", rel(mine, full), 2e-5)
    _check("logits of one decode step after 21-token prefill", rel(step, last), 2e-5)
    _check("own prefill + step vs own full pass", rel(step, mine[:, -1:]), 1e-12)


if __name__ == "__main__":
    self_check()
    reference_check()
    reference_lm_check()
    print("all checks passed")
