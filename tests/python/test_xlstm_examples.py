"""examples/train_xlstm_lm.py: interrupted training, and the bits per byte of the model that ships."""

import argparse
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import trivium

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example():
    for name in ("torch", "tokenizers", "safetensors"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("train_xlstm_lm", EXAMPLES / "train_xlstm_lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(example, monkeypatch):
    for name, value in dict(VOCAB=270, ROWS=2, WINDOW=24, SAVE_SECONDS=-1).items():
        monkeypatch.setattr(example, name, value)
    for name, value in dict(hidden_size=32, num_hidden_layers=1, num_heads=2).items():
        monkeypatch.setitem(example.CONFIG, name, value)
    monkeypatch.setattr(example, "curve", lambda history, path: None)
    return example


def test_a_resumed_training_is_the_uninterrupted_one(tiny, tmp_path, monkeypatch):
    import torch

    texts = ["a text that repeats itself, " * 20, "and another one. " * 15]
    tokenizer = tiny.make_tokenizer(texts)

    def train(folder):
        folder.mkdir(exist_ok=True)
        options = argparse.Namespace(work=folder, minutes=1e6, steps=21)
        tiny.train(options, texts, tokenizer)
        return torch.load(folder / "checkpoint.pt", weights_only=True)

    whole = train(tmp_path / "whole")
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 5
    resumed = train(tmp_path / "parts")
    assert len(calls) == 6 + 16 and resumed["step"] == whole["step"] == 21
    assert resumed["history"] == whole["history"] and len(whole["history"]) == 1
    fresh = tiny.LanguageModel().state_dict()
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    assert any(not torch.equal(fresh[name], value) for name, value in whole["model"].items())


def test_the_demo_beats_a_bigram(example):
    """On every 16th of the held-out texts; the numbers of the card are those of train_xlstm_lm.py --check."""
    import torch

    folder = trivium.demo_model("xlstm")
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the xLSTM demo model is not in {folder}")
    train, held = example.library_docstrings()
    held = held[::16]
    model = trivium.load(folder, precision="float32")
    tokenizer = example.Tokenizer.from_file(str(folder / "tokenizer.json"))
    score = lambda ids: torch.from_numpy(np.array(model.logits(ids))[:-1]).double()
    ours, bigram = example.held_out_bits(score, tokenizer, held), example.bigram_bits_per_byte(train, held)
    assert ours < bigram - 1
    card = (folder / "README.md").read_text()
    stated = [float(x) for x in re.findall(r"held-out bits per byte[^|]*\| ([\d.]+)", card)]
    assert len(stated) == 2 and stated[0] < stated[1] - 1
