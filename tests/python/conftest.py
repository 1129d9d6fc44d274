"""Fixtures: the demo model, loaded once, and one conversion of an array per library."""

import os

import pytest
import trivium

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the oracles must not reach for the network


@pytest.fixture(scope="session")
def demo_folder():
    folder = trivium.demo_model()
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the demo model is not in {folder}")
    return folder


@pytest.fixture(scope="session")
def model(demo_folder):
    """The demo model in float32: the same tokens on every CPU."""
    return trivium.load(demo_folder, device="cpu", precision="float32")
