"""Gradients of sequential layers at the sizes where kernels change their way, against the oracle: rows of 32
weights, which need no loop, rows beside them, and blocks of 16 pairs that are just full, or just not."""

import os
import subprocess
import sys
from pathlib import Path

import checkpoints as cp
import numpy as np
import pytest
import trivium
from trivium import lut

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import lut_oracle as oracle  # noqa: E402

CASES = [  # length, outputs, positional_dim, anchors, tables
    (32, 32, 4, 2, 2),
    (33, 32, 0, 2, 2),
    (65, 32, 5, 1, 2),
    (65, 33, 1, 2, 2),
    (33, 31, 2, 2, 1),
    (17, 64, 2, 2, 2),
]


@pytest.mark.parametrize("length, outputs, npe, anchors, tables", CASES)
def test_gradients_are_those_of_the_oracle(length, outputs, npe, anchors, tables):
    rng = np.random.default_rng(length + outputs)
    layer = lut.LUTLayer(
        6, anchors, tables, outputs, sequence_length=length, positional_dim=npe, random_seed=1
    )
    w = rng.standard_normal(layer.native.weight_shape).astype(np.float32)
    layer.load_state_dict(layer.state_dict() | {"weight": w})
    x = rng.standard_normal((2, length, 6)).astype(np.float32)
    gy = rng.standard_normal((2, length, outputs)).astype(np.float32)
    pe = layer.positional_embeddings if npe else np.zeros((length - 1, tables, 0), np.float32)
    # What is detected in float32, the sums in float64.
    saved = tuple(
        (index, u.astype(np.float64), r)
        for index, u, r in (oracle.detect(x, layer.anchors), oracle.detect_pe(pe))
    )
    want = oracle.seq_backward(gy.astype(np.float64), saved, layer.anchors, w.astype(np.float64), 6, npe)
    layer.forward(x)
    got = (layer.backward(gy), layer.positional_gradient, layer.weight_gradient)
    for name, g, expected in zip(("gx", "gpe", "gw"), got, want, strict=True):
        if expected.size:
            scale = np.abs(expected).max()
            assert scale > 0
            np.testing.assert_allclose(g, expected, rtol=0, atol=1e-5 * max(1, scale), err_msg=name)


@pytest.mark.parametrize("level", cp.LEVELS)
def test_on_every_cpu_level(level):
    if os.environ.get("TRIVIUM_LUT_LEVEL_RUN"):
        pytest.skip("already inside the run of one level")
    if not cp.level_available(level):
        pytest.skip(f"this CPU does not run the level {level}")
    if level == trivium.cpu_level():
        return  # that is this run
    env = os.environ | {"TRIVIUM_CPU_LEVEL": level, "TRIVIUM_LUT_LEVEL_RUN": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout
    assert f"{len(CASES)} passed" in run.stdout
