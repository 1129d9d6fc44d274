"""Chat from the question to the screen, with a model whose answers are known: channels, colours, turns, stops."""

import os
import signal

import pytest
import trivium
from getp_runner import batch, demo_folder, getp, jsonl_input, read_jsonl, start
from scripted_model import DATE, scripted_model
from test_getp_crash import wait_for
from test_getp_terminal import Terminal

FIRST = (
    "Hello",
    "<|channel|>analysis<|message|>The user greets.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello there.<|return|>",
    "Hello there.",
)
SECOND = ("More", "<|channel|>final<|message|>That is all.<|return|>", "That is all.")
# It never ends its analysis: after these tokens come such as have no row in the unembedding.
ENDLESS = ("Think", "<|channel|>analysis<|message|>Thinking", "")
CUT = len(
    trivium.Tokenizer(demo_folder()).encode("<|channel|>analysis<|message|>The user", parse_special=True)
)
OPTIONS = ("--precision", "float32", "--date", DATE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return scripted_model(tmp_path_factory.mktemp("chat") / "model", demo_folder(), [FIRST, SECOND])


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    return scripted_model(tmp_path_factory.mktemp("chat") / "endless", demo_folder(), [ENDLESS])


def test_python_keeps_the_channels_apart_and_goes_on(model):
    loaded = trivium.load(model, device="cpu", precision="float32")
    messages = [{"role": "user", "content": "Hello"}]
    first = loaded.chat(messages, current_date=DATE, max_tokens=100)
    assert (first.text, first.analysis, first.finish_reason) == ("Hello there.", "The user greets.", "stop")
    assert [m["channel"] for m in first.messages] == ["analysis", "final"]
    # An earlier answer's analysis is left out of the next prompt, so these are the tokens scripted.
    messages += [*first.messages, {"role": "user", "content": "More"}]
    second = loaded.chat(messages, current_date=DATE, max_tokens=100)
    assert (second.text, second.analysis, second.finish_reason) == ("That is all.", "", "stop")


def test_chat_hides_the_analysis_unless_asked(model):
    done = getp("chat", model, *OPTIONS, stdin=b"Hello\nMore\n/reset\nHello\n")
    assert done.stdout == b"Hello there.\nThat is all.\nHello there.\n"
    shown = getp("chat", model, *OPTIONS, "--show-reasoning", stdin=b"Hello\nMore\n")
    assert shown.stdout == b"[analysis] The user greets.\nHello there.\nThat is all.\n"
    first = getp("chat", model, *OPTIONS, "-i", "Hello", stdin=b"More\n")
    assert first.stdout == b"Hello there.\nThat is all.\n"


def test_chat_says_that_an_answer_was_cut_off(model):
    done = getp("chat", model, *OPTIONS, "--show-reasoning", "--max-tokens", CUT, stdin=b"Hello\n")
    assert done.stdout == b"[analysis] The user\n"
    assert b"the answer was cut off" in done.stderr


HELLO = [{"role": "user", "content": "Hello"}]
MORE = [*HELLO, {"role": "assistant", "content": "Hello there."}, {"role": "user", "content": "More"}]


def test_a_batch_of_messages_is_taken_apart(model, tmp_path):
    rows = [{"messages": HELLO}, {"messages": MORE}, {"messages": HELLO, "max_tokens": CUT}]
    source, out = jsonl_input(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    batch(model, source, out, *OPTIONS)
    answers = read_jsonl(out)
    assert [a["finish_reason"] for a in answers] == ["stop", "stop", "length"]
    assert [a["text"] for a in answers] == ["Hello there.", "That is all.", ""]
    assert [a["analysis"] for a in answers] == ["The user greets.", "", "The user"]


# Words of the analysis and of the headers are not what the reader of the answer sees.
STOPS = [("there", "Hello "), ("user", "Hello there."), ("final", "Hello there."), (".", "Hello there")]


@pytest.mark.parametrize("stop, text", STOPS)
def test_a_stop_string_cuts_the_final_channel(model, tmp_path, stop, text):
    rows = [{"messages": HELLO, "stop": [stop]}]
    out = tmp_path / "out.jsonl"
    batch(model, jsonl_input(tmp_path / "in.jsonl", rows), out, *OPTIONS)
    row = read_jsonl(out)[0]
    assert (row["text"], row["analysis"], row["finish_reason"]) == (text, "The user greets.", "stop")
    loaded = trivium.load(model, device="cpu", precision="float32")
    reply = loaded.chat(HELLO, current_date=DATE, stop=stop)
    assert (reply.text, reply.analysis, reply.tokens) == (text, "The user greets.", row["tokens"])
    assert [m["content"] for m in reply.messages] == ["The user greets.", text]
    shown = getp("chat", model, *OPTIONS, "--stop", stop, "--show-reasoning", stdin=b"Hello\n").stdout
    assert shown.decode() == f"[analysis] The user greets.\n{text}\n"


def test_a_resumed_batch_of_messages_is_taken_apart_too(model, tmp_path):
    rows = [{"messages": HELLO, "stop": ["there"]}, {"messages": MORE}] * 200
    source, out = jsonl_input(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run = ["getp", model, "-i", source, "-o", out, *OPTIONS, "-b", "1", "--threads", "1", "-q"]
    getp(*run)
    whole = out.read_bytes()
    out.unlink()
    journal = tmp_path / "out.jsonl.journal"
    process = start(*run)
    wait_for(lambda: journal.exists() and journal.stat().st_size > 2000)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL, "it was done before it was killed"
    process.communicate()
    resumed = getp(*run[:-1])
    assert b"resuming: " in resumed.stderr and out.read_bytes() == whole


def test_generate_with_the_chat_template_prints_the_answer(model):
    run = [model, *OPTIONS, "--chat-template", "-i", "Hello"]
    assert getp(*run).stdout == b"Hello there.\n"
    assert getp(*run, "--show-reasoning").stdout == b"[analysis] The user greets.\nHello there.\n"


def test_analysis_is_dim_on_a_terminal_that_takes_colours(model):
    def run(**env):
        terminal = Terminal("chat", model, *OPTIONS, "--show-reasoning", "-i", "Hello", width=200, **env)
        terminal.wait_for(b"> ")
        os.write(terminal.fd, b"/exit\n")
        code, shown = terminal.finish()
        assert code == 0
        return shown

    assert b"\x1b[2m[analysis] The user greets.\x1b[0m\r\nHello there.\r\n" in run()
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = run(**plain)
        assert b"[analysis] The user greets.\r\nHello there.\r\n" in shown and b"\x1b[2m" not in shown


def test_an_interrupted_analysis_leaves_the_terminal_bright(endless):
    terminal = Terminal("chat", endless, *OPTIONS, "--show-reasoning", "-i", "Think", "--ignore-eos")
    terminal.wait_for(b"\x1b[2m[analysis] Thinking")
    terminal.process.send_signal(signal.SIGINT)
    code, shown = terminal.finish()
    assert code == 130
    assert shown.rfind(b"\x1b[0m") > shown.rfind(b"\x1b[2m")
