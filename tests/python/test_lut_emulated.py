"""The tests of LUT layers that name a device, again on the emulated devices of the development build beside us."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
BACKENDS = HERE.parents[1] / "build/dev/backends"
FILES = ["lut_properties", "lut_training", "lut_batch_norm", "torch_lut", "hardware"]


@pytest.mark.parametrize("device", ["emu32", "emu64"])
def test_on(device):
    if not (BACKENDS / f"libtrivium_{device}.so").exists():
        pytest.skip(f"no {device} in {BACKENDS}")
    files = [str(HERE / f"test_{name}.py") for name in FILES]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--backend={device}", *files],
        cwd=HERE,
        env=os.environ | {"TRIVIUM_BACKEND_PATH": str(BACKENDS)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    if run.returncode == 77:
        pytest.skip((run.stdout + run.stderr).strip().splitlines()[-1])
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout and " failed" not in run.stdout
