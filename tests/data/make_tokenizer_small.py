#!/usr/bin/env python3
"""Write tests/data/tokenizer_small/: one small byte-level vocabulary in all three file formats, and the ids that
the `tokenizers` package gives for a list of texts (tiktoken must agree).

    pip install tokenizers tiktoken
    python tests/data/make_tokenizer_small.py

Ids 0..255 are the single bytes, then come the merges in order, then nine harmony special tokens.
"""

import base64
import json
import random
import struct
from pathlib import Path

import tiktoken
import tokenizers

OUT = Path(__file__).parent / "tokenizer_small"

LETTER = r"[^\r\n\p{L}\p{N}]?"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        f"{LETTER}{UPPER}*{LOWER}+{SUFFIX}",
        f"{LETTER}{UPPER}+{LOWER}*{SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Each merge joins two tokens that exist already.
MERGES = [
    *[("t", "h"), ("th", "e"), (" ", "the"), ("i", "n"), ("in", "g"), (" ", " "), ("  ", "  "), ("\n", "\n")],
    *[("e", "r"), ("a", "n"), ("o", "n"), ("r", "e"), (" ", "a"), ("an", "d"), (" ", "and"), ("s", "t")],
    *[("e", "s"), ("o", "r"), ("H", "e"), ("l", "l"), ("He", "ll"), ("Hell", "o"), ("w", "or"), (" ", "wor")],
    *[("l", "d"), (" wor", "ld"), ("1", "2"), ("12", "3"), ("'", "s"), ("/", "/"), ("\r", "\n"), ("a", "a")],
    *[("aa", "aa"), (b"\xc3", b"\xa9"), (b"\xe4", b"\xbd"), (b"\xe4\xbd", b"\xa0")],
    *[(b"\xf0", b"\x9f"), (b"\xf0\x9f", b"\x8d"), (b"\xf0\x9f\x8d", b"\xa3")],
]
SPECIALS = "startoftext endoftext return constrain channel start end message call".split()

TEXTS = [
    *["Hello world", "the theme and the others", "  a   b  ", "x\n\n  y\r\n", "path//to/\nfile", "1234567"],
    *[
        "don't DON'T we'LL",
        "HTTPServer IsOk",
        "你好\uff0c世界",
        "\t\tif (x) {\n",
        "price: $1,234.50!",
        "Ünïcode_ǅ word",
    ],
    *[
        "a\u00a0b",
        "naïve façade — déjà vu",
        "🍣 sushi and 🍜 ramen",
        "aaaaaaaaaaa",
        "the\x00NUL",
        "x'S 's ",
        "é",
    ],
    *[
        "<|end|> is text",
        "<|start|>system<|message|>",
        "e\u0301tude",
        "a\u200db",
        "standing\n\n\n\nin",
        " ",
        "\n",
    ],
]
POOL = [
    *"abdeghilnorstw ",
    *" \n\r\t'/12399.,",
    "th",
    "the",
    " the",
    "ing",
    "He",
    "你",
    "é",
    "🍣",
    "ß",
    "Ω",
    "'s",
    "'LL",
]


def byte_to_char() -> list[str]:
    """GPT-2's map: printable bytes keep their code point, the others move to U+0100 and up."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(moved)) for b in range(256)]


def as_bytes(token: str | bytes) -> bytes:
    return token if isinstance(token, bytes) else token.encode()


def main() -> None:
    merges = [(as_bytes(left), as_bytes(right)) for left, right in MERGES]
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in merges]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    assert len(ranks) == len(tokens) and all(left in ranks and right in ranks for left, right in merges)
    specials = {f"<|{name}|>": len(tokens) + i for i, name in enumerate(SPECIALS)}

    table = byte_to_char()
    text = lambda token: "".join(table[b] for b in token)  # noqa: E731
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True},
        "vocab": {text(token): rank for token, rank in ranks.items()},
        "merges": [[text(left), text(right)] for left, right in merges],
    }
    document = {
        **{"version": "1.0", "truncation": None, "padding": None},
        "added_tokens": [{"id": i, "content": s, **flags} for s, i in specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }

    OUT.mkdir(exist_ok=True)
    json_path = OUT / "tokenizer.json"
    json_path.write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (OUT / "small.tiktoken").write_text("".join(lines), encoding="ascii")
    records = [(float(rank), b"<0x00>" if token == b"\0" else token) for token, rank in ranks.items()]
    records += [(-1e30, name.encode()) for name in specials]
    binary = struct.pack("<i", max(len(token) for _, token in records))
    binary += b"".join(struct.pack("<fi", score, len(token)) + token for score, token in records)
    (OUT / "tokenizer.bin").write_bytes(binary)

    rng = random.Random(0)
    texts = TEXTS + ["".join(rng.choices(POOL, k=rng.randrange(1, 25))) for _ in range(150)]
    oracle = tokenizers.Tokenizer.from_file(str(json_path))
    oracle.encode_special_tokens = True  # the text of a special token is ordinary text
    second = tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    cases = []
    for sample in texts:
        ids = oracle.encode(sample, add_special_tokens=False).ids
        assert ids == second.encode_ordinary(sample), sample
        cases.append({"text": sample, "ids": ids})
    body = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (OUT / "expected.json").write_text(f"[\n{body}\n]\n", encoding="utf-8")
    print(f"{len(tokens)} tokens, {len(specials)} specials, {len(cases)} texts")


if __name__ == "__main__":
    main()
