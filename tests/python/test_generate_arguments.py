"""Prompts, token ids, options and chat messages of the wrong kind: one sentence that names them, no other prompt."""

import numpy as np
import pytest
import trivium

PROMPT = "Return the"


@pytest.fixture(scope="module")
def model():
    return trivium.load(trivium.demo_model(), device="cpu")


def refused(call, *parts, error=TypeError):
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert all(part in message for part in parts) and "\n" not in message, message


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("length", [1, 3])
def test_a_list_of_arrays_is_a_list_of_prompts(model, kind, length):
    """Arrays of one element have __index__ too, and so look like a token id each."""
    prompts = [[5, 6, 7][:length], [9, 8, 7][:length]]
    if kind == "torch":
        arrays = [pytest.importorskip("torch").tensor(p) for p in prompts]
    else:
        arrays = [np.array(p) for p in prompts]
    results = model.generate(arrays, max_tokens=3)
    assert [r.prompt_tokens for r in results] == [length, length]
    assert [r.tokens for r in results] == [r.tokens for r in model.generate(prompts, max_tokens=3)]
    one = model.generate(list(np.array(prompts[0])), max_tokens=3)
    assert one.tokens == results[0].tokens


def test_stop_strings_may_come_from_any_iterable(model):
    want = model.generate(PROMPT, max_tokens=8, stop=["e"])
    for stop in ("e", ("e",), {"e"}, iter(["e"])):
        got = model.generate(PROMPT, max_tokens=8, stop=stop)
        assert (got.text, got.tokens) == (want.text, want.tokens)


BAD_PROMPTS = {
    "none": (None, "prompt is a NoneType"),
    "number": (5, "prompt is a int"),
    "generator": ((i for i in (1, 2)), "prompt is a generator"),
    "set": ({1, 2}, "prompt is a set"),
    "mapping": ({"a": 1}, "prompt is a dict"),
    "scalar array": (np.array(5), "no dimensions"),
    "fractions": ([1, 2.5], "token id 1 is 2.5"),
    "text among ids": ([1, "a"], "token id 1 is 'a'"),
    "too deep": ([[1, [2]]], "token id 1 is [2]"),
    "fractions in an array": (np.array([[1.5]]), "token id 0 is 1.5"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts_are_named(model, name):
    prompt, part = BAD_PROMPTS[name]
    refused(lambda: model.generate(prompt, max_tokens=1), part)


def test_a_stream_takes_one_prompt(model):
    refused(lambda: model.stream([PROMPT, PROMPT]), "expected one text or a list of token ids")
    with pytest.raises(trivium.InvalidArgument, match="prompt is empty"):
        model.stream([])


def test_bad_token_ids_are_named(model):
    for ids, part in (
        (None, "token ids are None"),
        ("ab", "token ids are 'ab'"),
        ([[1]], "token id 0 is [1]"),
    ):
        refused(lambda ids=ids: model.logits(ids), part)
    for ids in ([1, 2**31], [-(2**40)]):
        refused(lambda ids=ids: model.logits(ids), str(ids[-1]), error=trivium.InvalidArgument)
    with pytest.raises(TypeError, match="expected a list of integers"):
        model.logits(np.array(5))


BAD_OPTIONS = {
    "max_tokens": [1.5, "3", float("nan")],
    "temperature": ["1", None],
    "top_p": ["1", [0.5]],
    "top_k": [1.5, None],
    "seed": [1.5, None],
    "stop": [5, b"a", [None], ["a", b"b"]],
    "ignore_eos": ["x", 2],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD_OPTIONS.items() for v in values])
def test_bad_options_are_named(model, name, value):
    refused(lambda: model.generate(PROMPT, **{name: value}), name, "expected")


def test_stop_strings_without_an_encoding_are_refused(model):
    refused(lambda: model.generate(PROMPT, stop="\ud800"), "stop has", error=trivium.InvalidArgument)


USER = {"role": "user", "content": "hi"}
BAD_MESSAGES = {
    "a text": ("hello", "messages are 'hello'"),
    "one message": (USER, "expected a list of messages"),
    "texts": (["hello"], "a message is 'hello'"),
    "no content": ([{"role": "user", "content": None}], "a content is None"),
    "bytes": ([{"role": "user", "content": b"a"}], "a content is b'a'"),
    "an image": ([{"role": "user", "content": [{"type": "image"}]}], "{'type': 'image'}"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_are_named(model, name):
    messages, part = BAD_MESSAGES[name]
    refused(lambda: model.chat(messages, max_tokens=1), part)
