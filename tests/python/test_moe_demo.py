"""The mixture-of-experts model that ships is what its card says: see `examples/train_demo_moe.py --check`."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trivium

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def folder():
    folder = trivium.demo_model()
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the demo model is not in {folder}")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return trivium.load(folder, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def example():
    for name in ("torch", "transformers", "tokenizers", "safetensors"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("train_demo_moe", EXAMPLES / "train_demo_moe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bits_per_byte(model, texts, window=256):
    """Each text alone between two <|endoftext|>; the closing one counts. Longer texts in pieces."""
    end, nats = model.tokenizer.special_id("<|endoftext|>"), 0.0
    for text in texts:
        ids = [end, *model.tokenizer.encode(text), end]
        for start in range(0, len(ids) - 1, window):
            piece = ids[start : start + window + 1]
            logits = np.asarray(model.logits(piece[:-1]), dtype=np.float64)
            logits -= logits.max(1, keepdims=True)
            chosen = logits[np.arange(len(piece) - 1), piece[1:]]
            nats += (np.log(np.exp(logits).sum(1)) - chosen).sum()
    return nats / np.log(2) / sum(len(text.encode()) for text in texts)


def test_the_numbers_of_the_card_are_measured_again(example, folder, model):
    """On the card's texts its numbers come out to the last digit; another Python has other docstrings."""
    train, held = example.library_docstrings()
    card = (folder / "README.md").read_text()
    stated = [float(x) for x in re.findall(r"held-out bits per byte[^|]*\| ([\d.]+)", card)]
    texts = re.search(r"(\d+) texts, ([\d,]+) bytes, against", card)
    same = [int(texts[1]), int(texts[2].replace(",", ""))] == [len(held), sum(len(t.encode()) for t in held)]
    ours = bits_per_byte(model, held if same else held[::8])
    trigram = example.trigram_bits_per_byte(train, held)
    assert ours < trigram - 1
    if same:
        assert [round(ours, 4), round(trigram, 4)] == stated


def test_the_model_has_every_part_of_the_architecture_and_6_megabytes(folder):
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 6 << 20
    config = json.loads((folder / "config.json").read_text())
    assert {*config["layer_types"]} == {"sliding_attention", "full_attention"}
    assert config["num_local_experts"] >= 8 and config["num_experts_per_tok"] >= 2
    assert config["sliding_window"] < 128 and config["quantization_config"]["quant_method"] == "mxfp4"


def test_completions_do_not_go_in_circles(model):
    """No token 4-gram comes more than three times, greedily, whatever the prompt."""
    count, *prompts = (EXAMPLES / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert int(count) == len(prompts) > 5
    for prompt, result in zip(prompts, model.generate(prompts, max_tokens=200), strict=True):
        t = result.tokens
        most = max(Counter(zip(t, t[1:], t[2:], t[3:])).values(), default=0)
        assert most <= 3, prompt
        assert len(t) > 3, prompt
