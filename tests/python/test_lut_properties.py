"""Properties of LUT layers for sizes, weights and inputs that hypothesis chooses (lut.md 11.3), on the device that
--backend names. Inputs lie on a coarse grid, so that ties are common; integer weights make sums exact in any order."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trivium
from hypothesis import given, settings
from hypothesis import strategies as st
from trivium import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import lut_oracle as oracle  # noqa: E402

pytestmark = pytest.mark.backend
FEW = settings(max_examples=15, deadline=None, derandomize=True)
QUANTUM = 1 / (2**20 - 1)  # of fixed point with int_rescaler 1


@dataclass
class Case:
    mode: str
    anchors: np.ndarray
    x: np.ndarray
    pe: np.ndarray
    w: np.ndarray
    gy: np.ndarray
    options: dict

    @property
    def cells(self):
        return self.w.shape[1]


@dataclass
class Result:
    y: np.ndarray
    gx: np.ndarray
    gw: np.ndarray
    gpe: np.ndarray
    index: np.ndarray
    min_index: np.ndarray


def on(device, array):
    return array if device == "cpu" or array is None else trivium.Tensor(array, device=device)


def host(t):
    return t.to("cpu").numpy()


def layer_of(case, device, **more):
    options = case.options | more
    return _core.LutLayer(
        case.x.shape[-1], case.gy.shape[-1], case.anchors, mode=case.mode, device=device, **options
    )


def run(case, device, layer=None, w=None, **more):
    layer = layer or layer_of(case, device, **more)
    weights = on(device, case.w if w is None else w)
    y, saved = layer.forward(weights, on(device, case.x), on(device, case.pe if case.pe.size else None))
    g = layer.backward(weights, on(device, case.gy), saved)
    return Result(*(host(t) for t in (y, g.gx, g.gw, g.gpe, saved.index, saved.min_index)))


def same(a, b, *fields):
    for field in fields:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max(initial=0)))


@st.composite
def cases(draw, modes=("rows", "sequence", "product"), integers=True, pairs=4):
    mode = draw(st.sampled_from(modes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    inputs, tables, outputs = (draw(st.sampled_from(s)) for s in ((2, 3, 7), (1, 2, 5), (1, 3, 10, 33)))
    nc = draw(st.integers(1, pairs if mode == "rows" else 3))
    batch, length = draw(st.integers(0 if mode == "rows" else 1, 3)), draw(st.integers(2, 6))
    npe = 0 if mode == "rows" else draw(st.integers(0, 3))
    seen = 2 * inputs + npe if mode == "product" else inputs
    a = rng.integers(0, seen, (tables, nc))
    anchors = np.stack([a, (a + rng.integers(1, seen, a.shape)) % seen], -1).astype(np.int32)
    anchors[rng.random(anchors.shape) < 0.05] = -1  # unused pairs
    lead = (batch,) if mode == "rows" else (batch, length)
    cells = 2 ** (2 * nc + npe if mode == "sequence" else nc)

    def values(*shape):
        v = rng.standard_normal(shape)
        return (np.rint(2 * v) if integers else v).astype(np.float32)

    def grid(*shape):
        return (rng.integers(-4, 5, shape) / 2).astype(np.float32)

    options = {} if mode == "rows" else dict(sequence_length=length, positional_dim=npe)
    distances = 0 if mode == "rows" else length - 1
    return Case(
        mode,
        anchors,
        grid(*lead, inputs),
        grid(distances, tables, npe),
        values(tables, cells, outputs),
        values(*lead, outputs),
        options,
    )


def oracle_of(case):
    wide = [np.asarray(a, np.float64) for a in (case.x, case.pe, case.w, case.gy)]
    x, pe, w, gy = wide
    if case.mode == "rows":
        y, saved = oracle.fc_forward(x, case.anchors, w)
        gx, gw = oracle.fc_backward(gy, saved, case.anchors, w, x.shape[-1])
        return y, gx, gw, np.zeros(0)
    if case.mode == "sequence":
        y, saved = oracle.seq_forward(x, case.anchors, pe, w)
        gx, gpe, gw = oracle.seq_backward(gy, saved, case.anchors, w, x.shape[-1], pe.shape[-1])
        return y, gx, gw, gpe
    y, (g1, g2, gpe, gw) = oracle.product_forward_backward(x, x, case.anchors, pe, w, gy, False)
    return y, g1 + g2, gw, gpe


@FEW
@given(case=cases(integers=False, pairs=12))
def test_results_are_the_oracles_ties_and_unused_pairs_included(backend, case):
    got, (y, gx, gw, gpe) = run(case, backend), oracle_of(case)
    close(got.y, y)
    close(got.gx, gx)
    close(got.gw, gw)
    if case.pe.size:
        close(got.gpe, gpe)


@FEW
@given(case=cases(), a=st.integers(-3, 3), b=st.integers(-3, 3))
def test_the_output_is_linear_in_the_weights(backend, case, a, b):
    layer = layer_of(case, backend)
    other = np.rint(3 * np.random.default_rng(1).standard_normal(case.w.shape)).astype(np.float32)
    one, two = run(case, backend, layer), run(case, backend, layer, other)
    mixed = run(case, backend, layer, a * case.w + b * other)
    np.testing.assert_array_equal(mixed.y, a * one.y + b * two.y)
    np.testing.assert_array_equal(mixed.gw, one.gw)
    assert np.vdot(one.gw, case.w) == np.vdot(case.gy, one.y)


@FEW
@given(case=cases(modes=("rows", "sequence")), constant=st.integers(-8, 8))
def test_a_constant_added_to_the_inputs_changes_nothing(backend, case, constant):
    moved = replace(case, x=case.x + np.float32(constant))
    same(run(case, backend), run(moved, backend), "y", "gx", "gw", "gpe", "index", "min_index")


@FEW
@given(case=cases())
def test_permuted_outputs_come_out_permuted(backend, case):
    order = np.random.default_rng(2).permutation(case.gy.shape[-1])
    other = replace(
        case, w=np.ascontiguousarray(case.w[..., order]), gy=np.ascontiguousarray(case.gy[..., order])
    )
    a, b = run(case, backend), run(other, backend)
    np.testing.assert_array_equal(b.y, a.y[..., order])
    np.testing.assert_array_equal(b.gw, a.gw[..., order])
    close(b.gx, a.gx)


@FEW
@given(case=cases(modes=("rows",)))
def test_few_inputs_and_rows_get_a_gradient(backend, case):
    r = run(case, backend)
    tables = len(case.anchors)
    assert (np.count_nonzero(r.gx, axis=1) <= 2 * tables).all()
    assert np.count_nonzero(r.gw.any(-1)) <= len(case.x) * tables
    unaddressed = np.ones(case.w.shape[:2], bool)
    unaddressed[np.arange(tables), r.index] = False
    assert not r.gw[unaddressed].any()


@FEW
@given(case=cases(modes=("sequence",)))
def test_every_position_adds_one_row_for_each_earlier_one_and_table(backend, case):
    """The sum of the firing statistics: with weights of one, y counts rows."""
    y = run(case, backend, w=np.ones_like(case.w)).y
    want = len(case.anchors) * np.arange(case.x.shape[1])
    np.testing.assert_array_equal(y, np.broadcast_to(want[None, :, None], y.shape))


@FEW
@given(case=cases(modes=("sequence",)))
def test_two_positions_are_a_layer_of_joint_addresses(backend, case):
    """S = 2: bits of the embedding, of position 0, of position 1, from the lowest up, in one detector."""
    case = replace(case, x=case.x[:, :2].copy(), gy=case.gy[:, :2].copy(), pe=case.pe[:1].copy())
    case = replace(case, options=case.options | dict(sequence_length=2))
    batch, _, inputs = case.x.shape
    tables, npe = case.pe.shape[1:]
    zero = 2 * inputs + tables * npe  # the input that is always 0
    parts = [np.zeros((tables, npe, 2), np.int32)]
    parts[0][..., 0] = 2 * inputs + np.arange(tables * npe).reshape(tables, npe)
    parts[0][..., 1] = zero
    for offset in (0, inputs):  # unused pairs stay unused
        parts.append(np.where(case.anchors < 0, -1, case.anchors + offset).astype(np.int32))
    pe = np.broadcast_to(case.pe.reshape(1, -1), (batch, tables * npe))
    x = np.concatenate([case.x.reshape(batch, -1), pe, np.zeros((batch, 1))], 1).astype(np.float32)
    joint = Case(
        "rows", np.concatenate(parts, 1), x, np.zeros((0, 0, 0), np.float32), case.w, case.gy[:, 1].copy(), {}
    )
    a, b = run(case, backend), run(joint, backend)
    np.testing.assert_array_equal(a.y[:, 1], b.y)
    np.testing.assert_array_equal(a.gw, b.gw)


@FEW
@given(case=cases(integers=False))
def test_fixed_point_is_within_a_quantum_a_contribution_of_float(backend, case):
    exact, quanta = run(case, backend), run(case, backend, int_rescaler=1.0)
    same(exact, quanta, "index", "min_index")
    tables, rows = len(case.anchors), case.x[..., 0].size
    terms = tables * (case.x.shape[1] if case.mode != "rows" else 1) ** 2 * max(rows, 1)
    for field in ("y", "gx", "gw", "gpe"):
        got, want = getattr(quanta, field), getattr(exact, field)
        assert np.abs(got - want).max(initial=0) <= terms * QUANTUM + 1e-5 * (1 + np.abs(want).max(initial=0))


@FEW
@given(case=cases(integers=False))
def test_fixed_point_has_the_same_bits_in_any_order_of_samples(backend, case):
    order = np.random.default_rng(3).permutation(len(case.x))
    other = replace(case, x=case.x[order].copy(), gy=case.gy[order].copy())
    a, b = (run(c, backend, int_rescaler=10.0) for c in (case, other))
    np.testing.assert_array_equal(b.y, a.y[order])
    np.testing.assert_array_equal(b.gx, a.gx[order])
    same(a, b, "gw", "gpe")


@FEW
@given(case=cases(integers=False))
def test_a_used_workspace_gives_the_same_bits(backend, case):
    layer = layer_of(case, backend)
    first = run(case, backend, layer)
    run(replace(case, x=-case.x, gy=case.gy * 3), backend, layer)
    same(first, run(case, backend, layer), "y", "gx", "gw", "gpe")


@FEW
@given(case=cases(integers=False), eta=st.sampled_from([0.0, 0.25, 3.0]))
def test_policies_differ_in_the_form_of_the_gradient_alone(backend, case, eta):
    layer = layer_of(case, backend)
    want = run(case, backend, layer)
    pe = on(backend, case.pe if case.pe.size else None)

    def backward(w, **options):
        weights = trivium.Tensor(w, device=backend, copy=True)
        _, saved = layer.forward(weights, on(backend, case.x), pe)
        return weights, layer.backward(weights, on(backend, case.gy), saved, **options)

    _, rows = backward(case.w, policy="rows")
    dense = np.zeros_like(want.gw).reshape(-1, want.gw.shape[-1])
    dense[host(rows.rows)] = host(rows.gw).reshape(-1, want.gw.shape[-1])
    np.testing.assert_array_equal(dense.reshape(want.gw.shape), want.gw)
    updated, internal = backward(case.w, policy="internal", eta=eta)
    close(host(updated), case.w - np.float32(eta) * want.gw)
    for g in (rows, internal):
        np.testing.assert_array_equal(host(g.gx), want.gx)
        np.testing.assert_array_equal(host(g.gpe), want.gpe)


@FEW
@given(case=cases(modes=("rows", "sequence")), seed=st.integers(0, 99), group=st.sampled_from([1, 3, 32]))
def test_sparse_forms_agree_and_equal_zeroed_weights(backend, case, seed, group):
    tables, cells, outputs = case.w.shape
    keep = np.random.default_rng(seed).random((tables, outputs)) < 0.5
    lists = [np.flatnonzero(row).astype(np.int32) for row in keep]
    w = np.concatenate(
        [np.zeros(0, np.float32), *(case.w[t][:, lists[t]].reshape(-1) for t in range(tables))]
    )
    shared = dict(pointers=np.cumsum([0, *(len(one) for one in lists)]), targets=np.concatenate(lists))
    each = [one for one in lists for _ in range(cells)]
    general = dict(pointers=np.cumsum([0, *(len(one) for one in each)]), targets=np.concatenate(each))
    a, b = (run(case, backend, w=w, group_size=group, **form) for form in (shared, general))
    same(a, b, "y", "gx", "gw", "gpe")
    full = run(case, backend, w=case.w * keep[:, None, :])
    same(a, full, "y", "gx", "gpe")
    kept = [full.gw[t][:, lists[t]].reshape(-1) for t in range(tables)]
    np.testing.assert_array_equal(a.gw, np.concatenate([np.zeros(0, np.float32), *kept]))
