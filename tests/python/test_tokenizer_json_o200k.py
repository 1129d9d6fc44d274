"""The real vocabulary as a tokenizer.json, as gpt-oss ships it, against tiktoken."""

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trivium
from test_tokenizer import CONTEXT, random_text, rank_file

SHARED = Path(__file__).parents[3] / "shared"


def converter() -> Path:
    data = os.environ.get("TRIVIUM_TEST_O200K")
    for folder in (SHARED, Path(data).parent if data else SHARED):
        if (folder / "tools" / "make_tokenizer_json.py").exists():
            return folder / "tools" / "make_tokenizer_json.py"
    pytest.skip("make_tokenizer_json.py is neither in ../shared/tools nor beside $TRIVIUM_TEST_O200K")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our tokenizer of the converted file, and tiktoken's of the ranks it was made of."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks, folder = rank_file(), tmp_path_factory.mktemp("o200k")
    subprocess.run([sys.executable, converter(), ranks, folder], check=True, capture_output=True, timeout=600)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    reference = tiktoken.Encoding(
        "o200k_harmony",
        pat_str=document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
        mergeable_ranks={base64.b64decode(t): int(r) for t, r in map(str.split, ranks.open())},
        special_tokens={t["content"]: t["id"] for t in document["added_tokens"]},
    )
    return trivium.Tokenizer(folder), reference


def test_a_converted_tokenizer_json_gives_tiktokens_ids(both):
    ours, reference = both
    assert ours.vocab_size == 201088
    rng = random.Random(1)
    texts = [random_text(rng) for _ in range(8000)]
    texts += [CONTEXT.format(chr(c)) for c in rng.sample(range(0xD800), 2000)]
    texts += [Path(__file__).read_text(), "Hello world", "", " " * 100, "a" * 1000]
    for text, want in zip(texts, reference.encode_ordinary_batch(texts), strict=True):
        got = ours.encode(text)
        assert got == want, ascii(text)
        assert ours.decode(got, errors="strict") == text


def test_its_special_tokens_have_their_published_ids(both):
    ours, reference = both
    text = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|return|><|reserved_201087|>"
    assert ours.encode(text, parse_special=True) == reference.encode(text, allowed_special="all")
    assert ours.encode(text) == reference.encode_ordinary(text)
    assert ours.special_id("<|call|>") == 200012
