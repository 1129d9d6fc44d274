"""tokenizer.json of other families than gpt-oss's: added tokens that are not special, Form C, templates.

The published xLSTM uses GPT-NeoX's file, whose runs of spaces are such tokens. The tokenizers package decides.
"""

import json
import random
import unicodedata

import pytest
import trivium
from checkpoints import config, oracle, write_hf
from getp_runner import batch, getp, jsonl_input, read_jsonl

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

TEXTS = ["def f(x):\n    return x\n", "cafe\u0301 na\u00efve", "the  the   the\n\n", "it's 42! <mask>"]
PARTS = [
    " ",
    "  ",
    "    ",
    "\n",
    "\t",
    "a",
    "the",
    "<",
    "<mask>",
    "<m",
    "e\u0301",
    "\u00e9",
    "e",
    "\u0301",
    "4",
    "'s",
]


def added(content, normalized):
    return tokenizers.AddedToken(content, normalized=normalized, special=False)


def neox_like(template=None) -> "tokenizers.Tokenizer":
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.normalizer = tokenizers.normalizers.NFC()
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = tokenizers.decoders.ByteLevel()
    reference.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    reference.train_from_iterator(TEXTS * 5, trainer)
    reference.add_tokens([added(" " * n, True) for n in range(24, 1, -1)])
    # The first of these is longer than a special token that begins alike; "\u00e9e" is made by Form C.
    reference.add_tokens([added("<mask>", False), added("\u00e9e", True), added("<|endoftext|>s", False)])
    if template:
        token = ("<|endoftext|>", reference.token_to_id("<|endoftext|>"))
        reference.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[token]
        )
    return reference


def both(tmp_path, reference) -> trivium.Tokenizer:
    reference.save(str(tmp_path / "tokenizer.json"))
    return trivium.Tokenizer(tmp_path)


def random_texts(count: int) -> list[str]:
    random_part = random.Random(3)
    return ["".join(random_part.choices(PARTS, k=random_part.randrange(1, 30))) for _ in range(count)]


def test_added_tokens_that_are_not_special(tmp_path):
    reference = neox_like()
    mine = both(tmp_path, reference)
    assert mine.vocab_size == reference.get_vocab_size()
    used = set()
    for text in [*TEXTS, *random_texts(5000), " " * 60, "<|endoftext|>s"]:
        ids = reference.encode(text).ids
        assert mine.encode(text) == ids, text
        # The package's decoder takes an added token for mapped bytes: its "\u00e9e" does not come back.
        assert mine.decode(ids) == unicodedata.normalize("NFC", text)
        used.update(ids)
    first = reference.token_to_id(" " * 24)
    assert {first, reference.token_to_id("<mask>"), reference.token_to_id("\u00e9e")} <= used
    # Special text is text unless asked for; the tokenizers package always asks.
    text = "a<|endoftext|>s  <|endoftext|>  <|padding|>"
    assert mine.encode(text, parse_special=True) == reference.encode(text).ids
    assert reference.token_to_id("<|padding|>") not in mine.encode(text)


@pytest.mark.parametrize(
    "template", ["<|endoftext|> $A", "$A <|endoftext|>", "<|endoftext|> $A <|endoftext|>"]
)
def test_what_a_template_puts_around_a_text(tmp_path, template):
    reference = neox_like(template)
    mine = both(tmp_path, reference)
    for text in [*TEXTS, ""]:
        assert mine.encode(text) == reference.encode(text).ids
        assert (
            mine.encode(text, add_special_tokens=False)
            == reference.encode(text, add_special_tokens=False).ids
        )


def test_a_sequence_of_post_processors(tmp_path):
    reference = neox_like("<|endoftext|> $A")
    reference.post_processor = tokenizers.processors.Sequence(
        [tokenizers.processors.ByteLevel(trim_offsets=True), reference.post_processor]
    )
    mine = both(tmp_path, reference)
    assert mine.encode("the") == reference.encode("the").ids


def test_a_prompt_begins_as_the_template_says(tmp_path):
    """In every way to run a model, and the ids of a prompt are taken as they are."""
    reference = neox_like("<|endoftext|> $A")
    cfg = config(reference.get_vocab_size(), 64, 32, 2, 4, 2, 16, 4, 2, 64)
    folder = write_hf(tmp_path / "model", oracle.random_weights(cfg, seed=1), cfg)
    reference.save(str(folder / "tokenizer.json"))
    ids = reference.encode("the  the").ids
    assert ids[0] == reference.token_to_id("<|endoftext|>")
    model = trivium.load(folder, precision="float32")
    want = model.generate(ids, max_tokens=8).tokens
    assert model.generate("the  the", max_tokens=8).tokens == want
    out = tmp_path / "out.jsonl"
    rows = [{"prompt": "the  the"}, {"prompt": ids}, {"prompt": ids[1:]}]
    batch(
        folder, jsonl_input(tmp_path / "in.jsonl", rows), out, "--max-tokens", "8", "--precision", "float32"
    )
    answers = read_jsonl(out)
    assert [a["tokens"] for a in answers[:2]] == [want, want] and answers[2]["tokens"] != want
    run = [folder, "-i", "the  the", "--max-tokens", "8", "--precision", "float32"]
    text = answers[0]["text"] + "\n"
    assert getp(*run).stdout.decode() == getp(*run, "--strict-utf8").stdout.decode() == text


def test_an_added_token_out_of_form_c_is_refused(tmp_path):
    neox_like().save(str(tmp_path / "tokenizer.json"))
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["added_tokens"][-2]["content"] = "e\u0301e"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(trivium.ModelFormatError, match="is not in Normalization Form C"):
        trivium.Tokenizer(tmp_path)
