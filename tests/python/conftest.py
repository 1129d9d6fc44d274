"""Fixtures: the demo model, loaded once. --backend names the device of the tests that ask for one: those of the ops
(marked `backend`), of tensors on devices and of models. With another than the CPU only they run."""

import os

import numpy as np
import op_oracles
import pytest
import trivium

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the oracles must not reach for the network
SKIPPED = 77  # the exit status for a backend that cannot be had, as of the C++ tests


def pytest_addoption(parser):
    parser.addoption("--backend", default="cpu", help="device: cpu, emu32, emu64, cuda or hip")


def pytest_configure(config):
    config.addinivalue_line("markers", "backend: runs on the device that --backend names")
    config.addinivalue_line("markers", "slow: large sizes; leave out with -m 'not slow'")
    backend = config.getoption("--backend")
    if backend == "cpu":
        return
    try:
        trivium.Tensor(np.zeros(1, np.float32), device=backend)
    except trivium.DeviceError as error:
        pytest.exit(f"Skipped: {error}", SKIPPED)
    op_oracles.ops.device = backend


def pytest_collection_modifyitems(config, items):
    if config.getoption("--backend") == "cpu":
        return
    chosen = [i for i in items if i.get_closest_marker("backend") or "backend" in i.fixturenames]
    config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session")
def backend(request):
    return request.config.getoption("--backend")


@pytest.fixture(scope="session")
def demo_folder():
    folder = trivium.demo_model()
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the demo model is not in {folder}")
    return folder


@pytest.fixture(scope="session")
def model(demo_folder, backend):
    """The demo model in float32: the same tokens on every device."""
    return trivium.load(demo_folder, device=backend, precision="float32")
