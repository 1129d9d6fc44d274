"""Wrong use of the getp command: one sentence, the documented exit code, nothing half-written."""

import os
import subprocess

import pytest
from getp_runner import (
    PROMPTS,
    batch,
    demo_folder,
    environment,
    error_line,
    getp,
    getp_binary,
    jsonl_input,
    lines_of,
    read_jsonl,
    start,
    text_input,
)


@pytest.fixture(scope="module")
def model():
    return demo_folder()


@pytest.fixture
def prompts(tmp_path):
    return text_input(tmp_path / "in.txt", PROMPTS)


def run(*args):
    """The same with arguments that need not be text."""
    command = [getp_binary(), *(a if isinstance(a, bytes) else str(a) for a in args)]
    return subprocess.run(command, capture_output=True, timeout=60, env=environment())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-n", "-5"], '--steps is "-5"'),
        (["-n", "12abc"], '--steps is "12abc"'),
        (["-T", "nan"], '--temperature is "nan"'),
        (["-T", "-1"], '--temperature is "-1"'),
        (["-p", "1.5"], '--top-p is "1.5", expected a number from 0 to 1'),
        (["-b", "0"], '--batch-size is "0"'),
        (["-s", "x"], '--seed is "x"'),
        (["--threads", "1025"], '--threads is "1025", expected an integer from 1 to 1024'),
        (["-s", "-1"], '--seed is "-1", expected an integer from 0 to 18446744073709551615'),
        (["-s", str(2**64)], f"expected an integer from 0 to {2**64 - 1}"),
        (["--stop", ""], '--stop is "", expected a text of at least one character'),
        (["--stop", b"a\xff"], '--stop is "a\\xff", expected a text in valid UTF-8'),
        (["--shard", "2/2"], '"2", expected an integer from 0 to 1'),
        (["--shard", "half"], '--shard is "half"'),
        (["--precision", "int3"], "int3"),
        (["--device", "tpu"], "tpu"),
        (["--kv16", "--kv32"], "exclude each other"),
        (["--temperatur", "1"], "did you mean --temperature?"),
        (["--max-token=3"], "did you mean --max-tokens?"),
        (["--frobnicate"], "unknown option --frobnicate"),
        (["-m", "fly"], 'unknown mode "fly"'),
        (["another"], 'unexpected argument "another"'),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(model, args, message):
    done = run(model, "-i", "x", *args)
    assert done.returncode == 2
    assert message in error_line(done)
    assert not done.stdout


def test_seeds_have_64_bits_in_options_and_in_lines(model, tmp_path):
    """The same seed, given either way, gives the same tokens; one more is refused."""
    sampled = ["--temperature", "1", "--ignore-eos", "--max-tokens", "20"]
    rows = [{"prompt": "Return", "seed": seed} for seed in (2**64 - 1, 2**63, 2**64, -1)]
    out = tmp_path / "out.jsonl"
    batch(model, jsonl_input(tmp_path / "in.jsonl", rows), out, *sampled)
    got = read_jsonl(out)
    for row, seed in zip(got[:2], (2**64 - 1, 2**63), strict=True):
        alone = getp(model, "-i", "Return", *sampled, "-s", seed).stdout.decode()
        assert row["text"] + "\n" == alone
    assert got[0]["tokens"] != got[1]["tokens"]
    for row in got[2:]:
        assert f"expected an integer from 0 to {2**64 - 1}" in row["error"]


@pytest.mark.parametrize("output", ["-", "/dev/stdout", "/dev/null"])
def test_a_shard_needs_a_file_to_put_its_note_beside(model, prompts, output):
    """Else its ids would be computed for nothing: merge refuses them."""
    done = getp("getp", model, "-i", prompts, "-o", output, "--shard", "0/2", code=2)
    assert f"--shard with -o {output}, which is no file" in error_line(done)
    assert not done.stdout and b"device:" not in done.stderr


def test_a_path_with_control_characters_leaves_a_message_on_one_line(tmp_path):
    done = getp(tmp_path / "no\nmodel \x1b[31mé", "-i", "x", code=1)
    assert done.stderr.count(b"\n") == 1 and b"\x1b" not in done.stderr
    assert "no\\x0amodel \\x1b[31mé" in error_line(done)
    assert "\\x0a" in error_line(getp("getp", "m", "-i", tmp_path / "a\nb", "-o", "o", code=74))
    assert "\\x0a" in error_line(getp("--wrong\noption", code=2))


def test_a_path_after_m_gets_a_hint(model):
    assert "-m is the mode" in error_line(getp("-m", model, "-i", "x", code=2))


def test_the_model_may_follow_the_options(model, prompts, tmp_path):
    getp("-m", "getp", "-i", prompts, model, "-o", tmp_path / "out.txt", "--max-tokens", "1")
    assert len(lines_of(tmp_path / "out.txt")) == len(PROMPTS)
    first = getp("--stop", "zq", "-i", "Return", "--max-tokens", "3", model)
    assert first.stdout == getp(model, "-i", "Return", "--max-tokens", "3").stdout


def test_missing_model_prompt_or_output_are_usage_errors(model):
    assert "no model given" in error_line(getp("-i", "x", code=2))
    assert "needs a prompt" in error_line(getp(model, code=2))
    assert "-o FILE is missing" in error_line(getp("getp", model, "-i", "x", code=2))


def test_options_come_from_the_environment_too(model):
    env = {**os.environ, "TRIVIUM_MAX_TOKENS": "3"}
    done = start(model, "-i", "Return", "--ignore-eos", env=env)
    _, stderr = done.communicate(timeout=60)
    assert b"generated 3 tokens" in stderr


def test_a_model_that_is_not_there(tmp_path):
    done = getp(tmp_path / "none", "-i", "x", code=1)
    assert "none" in error_line(done)
    (tmp_path / "empty").mkdir()
    assert "empty" in error_line(getp(tmp_path / "empty", "-i", "x", code=1))


def test_unwritable_output_is_refused_before_anything_is_loaded(model, prompts, tmp_path):
    for output in (tmp_path, tmp_path / "no" / "such" / "out.txt"):
        done = batch(model, prompts, output, code=74)
        assert b"device:" not in done.stderr
        assert str(output) in error_line(done)


def test_missing_input_file(model, tmp_path):
    assert "cannot read" in error_line(batch(model, tmp_path / "none.txt", tmp_path / "o.txt", code=74))


def test_a_full_device_is_an_io_error(model, prompts):
    done = batch(model, prompts, "/dev/full", "--max-tokens", "2", code=74)
    assert "No space left on device" in error_line(done)


def test_a_closed_pipe_is_an_io_error(model):
    process = start(model, "-i", "Return", "-n", "1000", "--ignore-eos", stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=60) == 74
    assert b"Broken pipe" in process.stderr.read()
    process.stderr.close()
