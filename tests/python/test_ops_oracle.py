"""Functions of trivium.ops against float64 numpy: odd sizes, size 1, empty, tails, all weight types. Routing,
experts and sampling are in test_ops_oracle_moe.py.

The formulas come from tests/oracles/moe_oracle.py where it has them. Integer-valued matmul inputs make float32
sums exact, so that a wrong layout cannot hide in a tolerance.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import checkpoints as cp
import numpy as np
import pytest
import trivium
from checkpoints import oracle
from op_oracles import BF16, BOUND, DTYPES, check, f64, guarded, normal, ops

pytestmark = pytest.mark.backend
SCALES = (1, 100, 127, 200)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# --- dense ops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "dim"), [(1, 1), (7, 33), (300, 64), (5, 0)])
def test_embedding_copies_rows(rng, dtype, vocab, dim):
    table = normal(rng, vocab, dim, dtype=DTYPES[dtype])
    for ids in ([], [0], rng.integers(0, vocab, 50).tolist()):
        got = ops.embedding(np.array(ids, np.int32), table)
        assert got.dtype == "float32"
        np.testing.assert_array_equal(got, table.astype(np.float32)[ids].reshape(len(ids), dim))


@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 2880), (0, 8), (5, 1), (2, 3, 31), (1, 16), (4, 0)])
def test_rms_norm(rng, x_dtype, w_dtype, shape):
    x = guarded(normal(rng, *shape, dtype=DTYPES[x_dtype], scale=3))
    w = guarded(normal(rng, shape[-1], dtype=DTYPES[w_dtype]))
    got = ops.rms_norm(x, w, eps=1e-5)
    assert got.dtype == x_dtype and got.shape == shape
    if np.prod(shape):
        check(got, oracle.rms_norm(f64(x), f64(w), 1e-5), BOUND[x_dtype])


def test_rms_norm_of_zeros_and_of_extremes():
    np.testing.assert_array_equal(
        ops.rms_norm(np.zeros((2, 9), np.float32), np.ones(9, np.float32)), np.zeros((2, 9))
    )
    x = np.full((1, 64), 1e15, np.float32)
    check(ops.rms_norm(x, np.ones(64, np.float32)), np.ones((1, 64)))


MATRICES = [
    (1, 1, 1),
    (1, 1, 33),
    (1, 33, 64),
    (5, 7, 31),
    (2, 65, 97),
    (13, 40, 128),
    (33, 3, 2880),
    (64, 130, 160),
]


@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "n", "k"), MATRICES)
def test_linear_with_integers_is_exact(rng, x_dtype, w_dtype, m, n, k):
    x = guarded(rng.integers(-4, 5, (m, k)).astype(DTYPES[x_dtype]))
    w = guarded(rng.integers(-4, 5, (n, k)).astype(DTYPES[w_dtype]))
    bias = guarded(rng.integers(-9, 10, n).astype(np.float32))
    np.testing.assert_array_equal(ops.linear(x, w, bias), f64(x) @ f64(w).T + bias)
    np.testing.assert_array_equal(ops.linear(x, w), f64(x) @ f64(w).T)


@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
def test_linear_with_random_numbers(rng, x_dtype, w_dtype):
    """bfloat16 x: weights enter as bfloat16, sums stay float32, so the result is as exact as with float32."""
    x = normal(rng, 9, 301, dtype=DTYPES[x_dtype])
    w = normal(rng, 37, 301, dtype=DTYPES[w_dtype])
    seen = w.astype(BF16) if x_dtype == "bfloat16" else w
    for bias in (None, *(normal(rng, 37, dtype=d) for d in DTYPES.values())):
        got = ops.linear(x, w, bias)
        assert got.dtype == "float32"
        check(got, f64(x) @ f64(seen).T + (0 if bias is None else f64(bias)))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_linear_of_nothing(rng, m, n, k):
    bias = normal(rng, n)
    got = ops.linear(normal(rng, m, k), normal(rng, n, k), bias).numpy()
    np.testing.assert_array_equal(got, np.zeros((m, n)) + bias)


@pytest.mark.parametrize("shape", [(1, 2), (3, 34), (2, 5, 62), (0, 4), (2, 0), (1, 5760)])
@pytest.mark.parametrize(("alpha", "limit"), [(1.702, 7.0), (1.0, 0.5)])
def test_swiglu(rng, shape, alpha, limit):
    x = normal(rng, *shape, scale=6)
    check(ops.swiglu(x, alpha, limit), oracle.clamped_swiglu(f64(x), alpha, limit))


def test_swiglu_clamps_the_gate_above_only_and_the_linear_part_on_both_sides():
    x = np.array([[100, 100], [-100, 100], [100, -100], [7, -8], [-3, -1]], np.float32)
    with np.errstate(over="ignore"):
        want = oracle.clamped_swiglu(f64(x), 1.702, 7.0)
    check(ops.swiglu(x), want)
    assert ops.swiglu(x).numpy()[2, 0] == pytest.approx(7 * (-7 + 1), rel=1e-4)


# --- MXFP4 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", (0, *SCALES, 252))
def test_mxfp4_decode_of_every_byte(scale):
    blocks = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    scales = np.full((2, 8), scale, np.uint8)
    got = ops.mxfp4_decode(blocks, scales).numpy()
    np.testing.assert_array_equal(f64(got), oracle.mxfp4_decode(blocks, scales))
    assert (np.signbit(got) == np.signbit(oracle.mxfp4_decode(blocks, scales))).all()


def test_mxfp4_decode_of_all_scales_and_shapes(rng):
    blocks = rng.integers(0, 256, (3, 5, 7, 16), dtype=np.uint8)
    scales = rng.integers(0, 253, (3, 5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(f64(ops.mxfp4_decode(blocks, scales)), oracle.mxfp4_decode(blocks, scales))
    assert ops.mxfp4_decode(blocks[:0], scales[:0]).shape == (0, 5, 224)
    assert np.isnan(ops.mxfp4_decode(blocks[0], np.full((5, 7), 255, np.uint8)).numpy()).all()


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", SCALES)
def test_linear_with_every_mxfp4_byte(rng, x_dtype, scale):
    """Row r holds each of 256 bytes in turn; unit vectors and small integers read it out exactly."""
    blocks = np.stack([np.roll(np.arange(256, dtype=np.uint8), r) for r in range(5)]).reshape(5, 16, 16)
    scales = np.full((5, 16), scale, np.uint8)
    w = oracle.mxfp4_decode(blocks, scales)
    x = np.concatenate([np.eye(512)[::7], rng.integers(-2, 3, (11, 512))]).astype(DTYPES[x_dtype])
    got, want = f64(ops.linear(x, blocks, scales=scales)), f64((f64(x) @ w.T).astype(np.float32))
    if x_dtype == "bfloat16" and scale < 2:
        # The bfloat16 dot product flushes numbers below 2^-126, so scales below 2 are not held exactly.
        np.testing.assert_allclose(got, want, atol=2.0**-126 * 6 * 32 * 16)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 32), (2, 9, 96), (7, 33, 160), (40, 130, 2880)])
def test_linear_with_random_mxfp4(rng, x_dtype, m, n, k):
    blocks = rng.integers(0, 256, (n, k // 32, 16), dtype=np.uint8)
    scales = rng.integers(110, 140, (n, k // 32), dtype=np.uint8)
    x, bias = normal(rng, m, k, dtype=DTYPES[x_dtype]), normal(rng, n)
    want = f64(x) @ oracle.mxfp4_decode(blocks, scales).T + bias
    check(ops.linear(x, blocks, bias, scales=scales), want)


# --- rope and attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [2, 6, 10, 16, 64, 128])
@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
@pytest.mark.parametrize("context", [4096, 64])
def test_rope_frequencies(head_dim, factor, context):
    cfg = oracle.MoeConfig(head_dim=head_dim, rope_factor=factor, initial_context=context)
    want, concentration = oracle.yarn_inv_freq(cfg)
    got, got_concentration = ops.rope_frequencies(head_dim, factor=factor, original_context=context)
    np.testing.assert_allclose(got, want, rtol=1e-14)
    assert got_concentration == pytest.approx(concentration, rel=1e-15)


def test_rope_frequencies_of_the_published_models():
    """Check values of moe.md 1.5."""
    f, m = ops.rope_frequencies(64, theta=150000, factor=32)
    assert m == pytest.approx(1.3465735902799727, rel=1e-15)
    known = {0: 1, 8: 0.0508132748, 9: 0.0317056962, 12: 0.00679495949, 17: 1.29318701e-4, 18: 3.83088124e-5}
    known[31] = 3.02351143e-7
    for i, value in known.items():
        assert f[i] == pytest.approx(value, rel=1e-8)
    truncated, _ = ops.rope_frequencies(64, factor=32, truncate=True)
    i = np.arange(32)
    ramp = np.clip((i - 8) / (18 - 8), 0, 1)
    base = 150000.0 ** (-i / 32)
    np.testing.assert_allclose(truncated, base * (1 - ramp) + base / 32 * ramp, rtol=1e-14)
    assert ops.rope_frequencies(64, factor=32, attention_factor=0.5)[1] == 0.5


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (5, 3, 6), (9, 8, 64), (0, 2, 4)])
def test_rope(rng, tokens, heads, dim):
    x = normal(rng, tokens, heads, dim)
    positions = np.resize([0, 1, 4095, 4096, 131071], tokens).astype(np.int32)
    inv_freq, m = ops.rope_frequencies(dim, factor=32)
    got = ops.rope(x, positions, inv_freq, m)
    if tokens:
        check(got, oracle.apply_rope(f64(x), positions, np.array(inv_freq), m))
    assert got.shape == x.shape


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 13, 40])
@pytest.mark.parametrize("window", [0, 1, 5])
def test_attention_around_the_window(rng, kv_dtype, length, window):
    largest = 34 if ops.device else 33  # GPUs take even head sizes only
    for (heads, kv_heads, dim), with_sinks in itertools.product(
        [(1, 1, 2), (6, 3, 10), (7, 1, largest)], (True, False)
    ):
        k = normal(rng, length, kv_heads, dim, dtype=DTYPES[kv_dtype])
        v = normal(rng, length, kv_heads, dim, dtype=DTYPES[kv_dtype])
        sinks = normal(rng, heads) if with_sinks else np.full(heads, -np.inf)
        for tokens in {1, (length + 1) // 2, length}:
            q = normal(rng, tokens, heads, dim, scale=2)
            positions = np.arange(length)
            want = oracle.attention(f64(q), positions[-tokens:], f64(k), f64(v), positions, sinks, window)
            got = ops.attention(q, k, v, sinks.astype(np.float32) if with_sinks else None, window=window)
            check(got, want, 3e-6)


def test_attention_of_an_odd_head_size_is_refused_on_a_gpu(rng):
    if not ops.device:
        pytest.skip("the CPU takes any head size")
    q = normal(rng, 2, 1, 33)
    with pytest.raises(trivium.InvalidArgument, match="head_dim is 33, expected an even number"):
        ops.attention(q, q, q)


def test_attention_with_large_scores_and_sinks_stays_finite(rng):
    """The maximum is subtracted: scores of +-1e4 give one-hot weights, a huge sink takes all mass."""
    q, k, v = normal(rng, 6, 2, 8, scale=100), normal(rng, 6, 1, 8, scale=100), normal(rng, 6, 1, 8)
    positions = np.arange(6)
    for sink in (-1e4, 0.0, 3e4):
        sinks = np.full(2, sink, np.float32)
        want = oracle.attention(f64(q), positions, f64(k), f64(v), positions, f64(sinks), 0)
        got = f64(ops.attention(q, k, v, sinks))
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_attention_scale_is_used_and_sinks_are_not_scaled(rng):
    q, k, v, sinks = normal(rng, 4, 2, 8), normal(rng, 4, 2, 8), normal(rng, 4, 2, 8), normal(rng, 2)
    positions = np.arange(4)
    want = oracle.attention(f64(q) * 0.25 * np.sqrt(8), positions, f64(k), f64(v), positions, f64(sinks), 0)
    check(ops.attention(q, k, v, sinks, scale=0.25), want)


# --- refusals, and the other CPU levels -----------------------------------------------------------------


def z(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.embedding([3], z(3, 2)), "ids[0] is 3, the table has 3 rows"),
        (lambda: ops.embedding([-1], z(3, 2)), "ids[0] is -1"),
        (lambda: ops.embedding([0], z(3)), "expected [vocab, dim]"),
        (lambda: ops.rms_norm(z(2, 4), z(3)), "w is [3], expected 4 elements"),
        (lambda: ops.rms_norm(z(2, 4, dtype=np.float64), z(4)), "float64"),
        (lambda: ops.rms_norm(z(2, 4), z(4), eps=-1), "eps is -1"),
        (lambda: ops.linear(z(2, 4), z(3, 5)), "x is [2, 4] and w [3, 5]"),
        (lambda: ops.linear(z(2, 4), z(3, 4), z(4)), "bias is [4], expected 3 elements"),
        (lambda: ops.linear(z(2, 4, dtype=np.float16), z(3, 4)), "float16"),
        (lambda: ops.linear(z(2, 32), z(3, 1, 15, dtype=np.uint8), scales=z(3, 1, dtype=np.uint8)), "blocks"),
        (lambda: ops.linear(z(2, 32), z(3, 1, 16, dtype=np.uint8), scales=z(3, 2, dtype=np.uint8)), "scales"),
        (lambda: ops.swiglu(z(2, 3)), "expected float32 [..., 2 dim]"),
        (lambda: ops.mxfp4_decode(z(2, 16, dtype=np.uint8), z(2, dtype=np.uint8)), "blocks"),
        (lambda: ops.rope_frequencies(7), "head_dim is 7"),
        (lambda: ops.rope(z(2, 1, 4), [0, 1, 2], [1.0, 1.0]), "positions"),
        (lambda: ops.rope(z(2, 1, 4), [0, 1], [1.0]), "needs 2 frequencies, got 1"),
        (lambda: ops.attention(z(2, 3, 4), z(2, 2, 4), z(2, 2, 4)), "3 heads are not a multiple of 2"),
        (lambda: ops.attention(z(3, 2, 4), z(2, 2, 4), z(2, 2, 4)), "3 queries, but only 2 positions"),
        (lambda: ops.attention(z(1, 2, 4), z(2, 2, 4), z(3, 2, 4)), "k is"),
        (lambda: ops.attention(z(1, 2, 4), z(2, 2, 4), z(2, 2, 4), z(3)), "sinks"),
        (lambda: ops.attention(z(1, 2, 4), z(2, 2, 4), z(2, 2, 4), window=-1), "window is -1"),
        (lambda: ops.moe_route(z(2, 4), 5), "top_k is 5, expected 1 to 4"),
        (lambda: ops.moe_route(z(2, 4), 0), "top_k is 0"),
        (lambda: ops.moe_experts(z(1, 4), [[3]], z(1, 1), z(3, 6, 4), z(3, 4, 3)), "expert 3 of 3"),
        (lambda: ops.moe_experts(z(1, 4), [[-1]], z(1, 1), z(3, 6, 4), z(3, 4, 3)), "expert -1"),
        (lambda: ops.moe_experts(z(1, 4), [[0]], z(1, 1), z(3, 5, 4), z(3, 4, 3)), "gate_up is [3, 5, 4]"),
        (lambda: ops.moe_experts(z(1, 4), [[0]], z(1, 2), z(3, 6, 4), z(3, 4, 3)), "weights [1, 2]"),
        (lambda: ops.sample(z(4)), "expected [rows, vocab]"),
        (lambda: ops.sample(z(2, 4), seed=[1]), "1 values of seed for 2 rows"),
        (lambda: ops.sample(z(2, 0)), "logits"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(trivium.InvalidArgument) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_strided_and_foreign_arrays_give_the_same_values(rng):
    """Arguments need not be contiguous."""
    x, w = normal(rng, 6, 64), normal(rng, 9, 64)
    want = ops.linear(x, w).numpy()
    np.testing.assert_array_equal(ops.linear(np.asfortranarray(x), np.asfortranarray(w)), want)
    wide = np.zeros((6, 128), np.float32)
    wide[:, ::2] = x
    np.testing.assert_array_equal(ops.linear(wide[:, ::2], w), want)
    chosen, weights = np.array([[0, 1], [2, 0], [1, 1]], np.int32), normal(rng, 3, 2)
    gate_up, down = normal(rng, 3, 6, 4), normal(rng, 3, 4, 3)
    arguments = normal(rng, 3, 4), chosen, weights, gate_up, down
    np.testing.assert_array_equal(
        ops.moe_experts(*map(np.asfortranarray, arguments)), ops.moe_experts(*arguments).numpy()
    )


@pytest.mark.parametrize("level", cp.LEVELS)
def test_every_op_on_every_cpu_level(level, request):
    """The same tests in a process that runs the other level."""
    if os.environ.get("TRIVIUM_OPS_LEVEL_RUN"):
        pytest.skip("already inside the run of one level")
    if ops.device:
        pytest.skip("levels are the CPU's")
    if not cp.level_available(level):
        pytest.skip(f"this CPU does not run the level {level}")
    if level == trivium.cpu_level():
        return  # that is this run
    env = {**os.environ, "TRIVIUM_CPU_LEVEL": level, "TRIVIUM_OPS_LEVEL_RUN": "1"}
    files = [__file__, str(Path(__file__).with_name("test_ops_oracle_moe.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *files]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
