"""The LUT examples: the accuracy of the digits, resuming of the language model, and the model that ships."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trivium
from trivium import _core

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_digits_are_learned(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    run = subprocess.run(
        [sys.executable, EXAMPLES / "train_lut_digits.py", "--picture", tmp_path / "digits.png"],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    accuracy = float(re.findall(r"test accuracy ([\d.]+)% of 450", run.stdout)[0])
    assert accuracy >= 97, run.stdout
    assert "said " in run.stdout and (tmp_path / "digits.png").stat().st_size > 1000


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, monkeypatch):
    example = load_example("train_lut_lm")
    data = example.symbols([b"a text that repeats itself, " * 40, b"and another one. " * 30])
    monkeypatch.setitem(example.SHAPE, "n_detectors", 4)

    def train(folder, steps):
        trainer = example.Trainer(folder, seed=3, rate=1.0)
        while trainer.steps < steps:
            trainer.step(data)
        trainer.save()
        return trainer

    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "parts", 4)
    resumed = train(tmp_path / "parts", 8)
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(resumed.model.state_dict()[name], value, err_msg=name)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) == 1


def test_training_lowers_the_loss(tmp_path, monkeypatch):
    example = load_example("train_lut_lm")
    data = example.symbols([b"the quick brown fox jumps over the lazy dog. " * 40])
    monkeypatch.setitem(example.SHAPE, "n_detectors", 4)
    trainer = example.Trainer(tmp_path, seed=1, rate=1.0)
    losses = [trainer.step(data) for _ in range(80)]
    assert losses[0] == pytest.approx(np.log(257), rel=1e-3)
    assert np.mean(losses[-5:]) < 2


@pytest.fixture(scope="module")
def demo():
    folder = trivium.demo_model("lut")
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the LUT demo model is not in {folder}")
    return folder


def test_the_demo_beats_a_bigram_as_its_card_says(demo):
    example = load_example("train_lut_lm")
    train, held = example.library_docstrings()
    held = held[::8]
    ours, bigram = example.held_out_bits_per_byte(demo, held), example.bigram_bits_per_byte(train, held)
    assert ours < bigram - 0.5
    card = (demo / "README.md").read_text()
    stated = float(re.search(r"held-out bits per byte[^|]*\| ([\d.]+)", card)[1])
    assert ours == pytest.approx(stated, abs=0.15)
    assert sum(f.stat().st_size for f in demo.iterdir()) <= 6 << 20


def test_the_demo_continues_text(demo):
    model = trivium.load(demo, device="cpu")
    result = model.generate("Return the ", max_tokens=40, temperature=0)
    assert re.search(r"[a-z]{3,} [a-z]{2,}", result.text)
    weights = _core.load_safetensors(demo / "model.safetensors")
    assert model.vocab_size == weights["embedding"].shape[0] == 257
