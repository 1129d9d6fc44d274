"""The getp command on the demo model: generate, chat, decode, doctor."""

import pytest
from getp_runner import batch, demo_folder, error_line, getp, jsonl_input, read_jsonl


@pytest.fixture(scope="module")
def model():
    return demo_folder()


def test_generate_streams_what_getp_computes(model, tmp_path):
    prompt = "Return a list of"
    out = tmp_path / "out.jsonl"
    batch(model, jsonl_input(tmp_path / "in.jsonl", [{"prompt": prompt}]), out, "--max-tokens", "25")
    text = read_jsonl(out)[0]["text"]
    done = getp(model, "-i", prompt, "--max-tokens", "25")
    assert done.stdout.decode() == text + "\n"
    assert b"tokens/s" in done.stderr
    assert getp(model, "-i", "-", "--max-tokens", "25", stdin=prompt.encode() + b"\n").stdout == done.stdout
    assert getp(model, "-i", prompt, "--max-tokens", "25", "-q").stderr.count(b"\n") == 1


def test_generate_is_reproducible_when_sampled_and_seeded(model):
    run = [model, "-i", "Return", "--max-tokens", "30", "-T", "1", "--ignore-eos"]
    first = getp(*run, "-s", "5").stdout
    assert first == getp(*run, "-s", "5", "--threads", "1").stdout
    assert first != getp(*run, "-s", "6").stdout
    assert getp(*run).stdout == getp(*run, "-s", "0").stdout


def test_generate_refuses_an_empty_prompt(model):
    assert "the prompt is empty" in error_line(getp(model, "-i", "", code=1))


def test_chat_answers_resets_and_exits(model):
    script = b"Hello\n/nonsense\n/reset\nHello\n/exit\nnot read\n"
    done = getp("chat", model, "--max-tokens", "12", "-y", "Be brief", "--show-reasoning", stdin=script)
    assert b'unknown command "/nonsense"' in done.stderr
    once = getp("chat", model, "--max-tokens", "12", "-y", "Be brief", "--show-reasoning", stdin=b"Hello\n")
    assert done.stdout == once.stdout * 2


def test_decode_prints_one_line_or_all(model, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("40 41 \n\n42\n")
    tokenizer = model / "tokenizer.json"
    everything = getp("decode", "-z", tokenizer, "-i", ids).stdout
    assert everything.count(b"Decoding #") == 3
    assert getp("decode", "-1", "-z", tokenizer, "-i", ids).stdout == everything
    one = getp("decode", model, "2", "-i", ids).stdout
    assert one.startswith(b"-" * 64 + b"\nDecoding #2:\n") and everything.endswith(one)
    assert "no line 9" in error_line(getp("decode", "9", "-z", tokenizer, "-i", ids, code=1))
    ids.write_text("40 99999 41 2147483647\n")
    unknown = getp("decode", "-z", tokenizer, "-i", ids)
    assert unknown.stdout.endswith(b"Decoding #0:\n()\n"), unknown.stdout
    assert f"2 ids have no token in {tokenizer}" in error_line(unknown)
    ids.write_text("40 x\n")
    assert "line 1" in error_line(getp("decode", "-z", tokenizer, "-i", ids, code=1))


def test_doctor_and_version():
    report = getp("--doctor").stdout.decode()
    for word in (
        "backend cpu",
        "backend cuda",
        "backend hip",
        "cpu level",
        "threads",
        "memory",
        "unicode: 16.",
    ):
        assert word in report
    assert getp("--version").stdout.startswith(b"trivium ")
    assert b"--batch-size" in getp("--help").stdout
