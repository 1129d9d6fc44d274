"""Tokenizer: the small vocabulary in three formats, and the real o200k vocabulary against tiktoken."""

import base64
import json
import os
import random
from pathlib import Path

import pytest
import trivium
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = Path(__file__).parent.parent / "data" / "tokenizer_small"
FILES = ["tokenizer.json", "small.tiktoken", "tokenizer.bin"]
CONTEXT = "x{0}'S {0}y \n{0}A1{0}/  {0} "  # each alternative of the pattern sees the character


@pytest.fixture(scope="module")
def small():
    return trivium.Tokenizer(SMALL)


@pytest.mark.parametrize("file", FILES)
def test_small_vocabulary_gives_the_ids_of_the_tokenizers_package(file):
    tokenizer = trivium.Tokenizer(SMALL / file)
    assert tokenizer.vocab_size == 304
    for case in json.loads((SMALL / "expected.json").read_text(encoding="utf-8")):
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_every_byte_sequence_round_trips(small, data):
    ids = small.encode(data)
    assert small.decode_bytes(ids) == data
    assert small.decode(ids) == data.decode("utf-8", "replace")


@given(st.text(max_size=100))
@settings(deadline=None)
def test_text_and_its_bytes_have_the_same_ids(small, text):
    assert small.encode(text) == small.encode(text.encode())
    assert small.decode(small.encode(text), errors="strict") == text


def test_special_tokens_come_from_text_only_when_asked(small):
    end = small.special_id("<|end|>")
    assert end == 301 and small.special_id("the") is None
    assert end not in small.encode("<|end|>")
    assert small.encode("<|end|>", parse_special=True) == [end]
    assert small.decode([257, end]) == "the"
    assert small.decode([257, end], with_specials=True) == "the<|end|>"


def test_errors_are_one_sentence(small, tmp_path):
    with pytest.raises(trivium.InvalidArgument, match=r"invalid UTF-8 at byte 3$"):
        small.encode(b"the\xff", strict=True)
    with pytest.raises(UnicodeDecodeError):
        small.decode([0xFF], errors="strict")
    with pytest.raises(TypeError):
        small.encode(3)
    with pytest.raises(trivium.ModelFormatError, match=r"no tokenizer\.json"):
        trivium.Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(trivium.ModelFormatError, match='no "model" object'):
        trivium.Tokenizer(tmp_path)


def rank_file() -> Path:
    folders = [os.environ.get("TRIVIUM_TEST_O200K"), Path(__file__).parents[3] / "shared" / "data"]
    for folder in folders:
        if folder and (Path(folder) / "o200k_base.tiktoken").exists():
            return Path(folder) / "o200k_base.tiktoken"
    pytest.skip("o200k_base.tiktoken is neither in $TRIVIUM_TEST_O200K nor in ../shared/data")


@pytest.fixture(scope="module")
def o200k():
    """Our tokenizer and tiktoken's, with the same ranks and pattern."""
    tiktoken = pytest.importorskip("tiktoken")
    path = rank_file()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, path.open())}
    document = json.loads((SMALL / "tokenizer.json").read_text(encoding="utf-8"))
    pattern = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    reference = tiktoken.Encoding("o200k", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return trivium.Tokenizer(path), reference


def assert_equal_ids(o200k, texts):
    ours, reference = o200k
    for text, expected in zip(texts, reference.encode_ordinary_batch(texts), strict=True):
        if ours.encode(text) != expected:
            raise AssertionError(f"{text!a}: {ours.encode(text)}, tiktoken gives {expected}")


def test_o200k_equals_tiktoken_on_every_code_point(o200k):
    code_points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    blocks = [code_points[i : i + 128] for i in range(0, len(code_points), 128)]
    assert_equal_ids(o200k, ["".join(map(CONTEXT.format, block)) for block in blocks])
    assert_equal_ids(o200k, code_points[:0x3400] + random.Random(0).sample(code_points, 20_000))


POOLS = [
    range(0x80),
    range(0x600),
    [*range(0x2000, 0x2070), *range(0x1F300, 0x1F650), *range(0x4E00, 0x4E80), *range(0xE00, 0xE60)],
    [0x17F, 0x212A, 0x180E, 0xCF3, 0x11F04, 0x1C89, 0x85, 0xA0, 0x2028, 0x3000, 0x301, 0x1C5, 0x2B0],
    [*range(0xD800), *range(0xE000, 0x110000)],
]
WORDS = [" ", "  ", "\n", "\r\n", "'s", "'S", "'\u017f", "'ll", "a", "B", "Word", "WORD", "1", "/", "<|end|>"]


def random_text(rng: random.Random) -> str:
    out = []
    for _ in range(rng.randrange(1, 40)):
        out.append(rng.choice(WORDS) if rng.random() < 0.4 else chr(rng.choice(rng.choice(POOLS))))
    return "".join(out)


def test_o200k_equals_tiktoken_on_random_strings(o200k):
    rng = random.Random(0)
    assert_equal_ids(o200k, [random_text(rng) for _ in range(100_000)])
