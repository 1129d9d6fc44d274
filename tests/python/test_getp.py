"""The getp command on the demo model: batch mode, file formats, reproducibility, errors and exit codes."""

import json

import pytest
from getp_runner import (
    PROMPTS,
    batch,
    demo_folder,
    error_line,
    getp,
    jsonl_input,
    lines_of,
    read_jsonl,
    text_input,
)


@pytest.fixture(scope="module")
def model():
    return demo_folder()


@pytest.fixture
def prompts(tmp_path):
    return text_input(tmp_path / "in.txt", PROMPTS)


# --- reproducibility ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [[], ["-T", "0.9", "-s", "7"]], ids=["greedy", "sampled"])
def test_output_is_byte_equal_for_any_batch_threads_order_chunks_and_shards(
    model, prompts, tmp_path, precision, sampling
):
    options = [*sampling, "--precision", precision, "--max-tokens", "40", "--ignore-eos", "-q"]
    want = tmp_path / "want.txt"
    batch(model, prompts, want, *options, "-b", "1", "--threads", "1")
    assert [len(line) for line in lines_of(want)] == [40] * len(PROMPTS)
    out = tmp_path / "out.txt"
    for size in (1, 2, 7, 32):
        for threads in (1, 2):
            batch(model, prompts, out, *options, "-b", size, "--threads", threads)
            assert out.read_bytes() == want.read_bytes(), (size, threads)
    batch(model, prompts, out, *options, "-b", "3", "--step-tokens", "5")
    assert out.read_bytes() == want.read_bytes()

    turned = text_input(tmp_path / "turned.txt", PROMPTS[::-1])
    batch(model, turned, out, *options)
    assert lines_of(out) == lines_of(want)[::-1]

    for shards in (1, 2, 5):
        parts = []
        for i in range(shards):
            parts.append(tmp_path / f"part{i}.txt")
            batch(model, prompts, parts[-1], *options, "--shard", f"{i}/{shards}")
        getp("merge", "-i", *reversed(parts), "-o", out)
        assert out.read_bytes() == want.read_bytes(), shards


def test_sampling_depends_on_the_seed_and_not_on_the_place_in_the_file(model, tmp_path):
    rows = [{"prompt": "Return the", "temperature": 1.0, "seed": s, "max_tokens": 30} for s in (1, 2, 1)]
    source = jsonl_input(tmp_path / "in.jsonl", rows)
    batch(model, source, tmp_path / "out.jsonl", "--ignore-eos")
    first, second, third = (row["tokens"] for row in read_jsonl(tmp_path / "out.jsonl"))
    assert first == third != second


def test_more_prompts_than_slots_and_steps_that_cut(model, tmp_path):
    prompts = [f"Return the number {i}" for i in range(50)]
    source = text_input(tmp_path / "in.txt", prompts)
    batch(model, source, tmp_path / "b3.txt", "-b", "3", "-n", "30")
    batch(model, source, tmp_path / "b32.txt", "-b", "32", "-n", "30")
    assert (tmp_path / "b3.txt").read_bytes() == (tmp_path / "b32.txt").read_bytes()
    assert len(lines_of(tmp_path / "b3.txt")) == 50


# --- text files ---------------------------------------------------------------------------------------


def test_steps_and_max_tokens_both_limit(model, tmp_path):
    source = text_input(tmp_path / "in.txt", ["Return"])
    out = tmp_path / "out.txt"
    report = tmp_path / "report.json"

    def count(*args):
        batch(model, source, out, "--ignore-eos", f"--json={report}", *args)
        stats = json.loads(report.read_text())
        assert stats["generated_tokens"] == len(lines_of(out)[0])
        return stats["prompt_tokens"], len(lines_of(out)[0])

    prompt, generated = count("-n", "20")
    assert generated == 20 - prompt
    assert count("-n", "20", "--max-tokens", "3")[1] == 3
    assert count("-n", "20", "--max-tokens", "500")[1] == 20 - prompt
    assert count("-n", "20", "--max-tokens", "0")[1] == 0


def test_crlf_and_missing_last_line_feed_change_nothing(model, tmp_path):
    want = tmp_path / "want.txt"
    batch(model, text_input(tmp_path / "a.txt", PROMPTS[:3]), want, "--max-tokens", "8")
    for name, data in {
        "crlf": b"3\r\n" + b"".join(p.encode() + b"\r\n" for p in PROMPTS[:3]),
        "bare": b"3\n" + b"\n".join(p.encode() for p in PROMPTS[:3]),
    }.items():
        source = tmp_path / f"{name}.txt"
        source.write_bytes(data)
        batch(model, source, tmp_path / "out.txt", "--max-tokens", "8")
        assert (tmp_path / "out.txt").read_bytes() == want.read_bytes(), name


def test_empty_prompts_and_prompts_as_long_as_steps_give_empty_lines_and_one_warning(model, tmp_path):
    source = text_input(
        tmp_path / "in.txt", ["Return", "", "Return a list of all the values in it", "", "Set"]
    )
    done = batch(model, source, tmp_path / "out.txt", "-n", "6", "--ignore-eos")
    assert [bool(line) for line in lines_of(tmp_path / "out.txt")] == [True, False, False, False, True]
    stderr = done.stderr.decode()
    assert stderr.count("2 empty prompts") == 1
    assert stderr.count("1 prompt has 6 tokens or more") == 1


def test_number_of_prompts_must_match(model, tmp_path):
    source = tmp_path / "in.txt"
    out = tmp_path / "out.txt"
    for data, message in [
        (b"10\n" + b"x\n" * 7, "input declares 10 prompts, found 7"),
        (b"", "empty input file"),
        (b"hello\nx\n", "line 1 must be the number of prompts"),
        (b"-1\nx\n", "declares -1 prompts"),
        (b"1000000000000\nx\n", "declares 1000000000000 prompts"),
    ]:
        source.write_bytes(data)
        assert message in error_line(batch(model, source, out, code=1))
        assert not out.exists()
    source.write_bytes(b"2\nSet\nGet\nWrite\n")
    done = batch(model, source, out, "--max-tokens", "2")
    assert b"1 more line is ignored" in done.stderr
    assert len(lines_of(out)) == 2


def test_zero_prompts_give_an_empty_file(model, tmp_path):
    source = tmp_path / "in.txt"
    source.write_bytes(b"0\n")
    batch(model, source, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == b""


def test_limit_takes_the_first_prompts(model, prompts, tmp_path):
    batch(model, prompts, tmp_path / "all.txt", "--max-tokens", "6")
    batch(model, prompts, tmp_path / "some.txt", "--max-tokens", "6", "-t", "4")
    assert lines_of(tmp_path / "some.txt") == lines_of(tmp_path / "all.txt")[:4]


def test_a_prompt_of_one_megabyte(model, tmp_path):
    source = text_input(tmp_path / "in.txt", ["Return", "word " * 200_000, "a" * 1_000_000, "Set"])
    done = batch(model, source, tmp_path / "out.txt", "--max-tokens", "4", "--ignore-eos")
    assert [len(line) for line in lines_of(tmp_path / "out.txt")] == [4, 0, 0, 4]
    assert b"2 prompts have 1024 tokens or more" in done.stderr


def test_a_line_over_ten_megabytes_fails_alone(model, tmp_path):
    source = text_input(tmp_path / "in.txt", ["Return", "a" * (10 * 2**20 + 1), "Set"])
    done = batch(model, source, tmp_path / "out.txt", "--max-tokens", "2", "--ignore-eos", code=1)
    assert [len(line) for line in lines_of(tmp_path / "out.txt")] == [2, 0, 2]
    assert b"line 3 is longer than 10485760 bytes" in done.stderr


def test_bytes_that_are_not_utf8_pass_unless_strict(model, tmp_path):
    source = tmp_path / "in.txt"
    source.write_bytes(b"2\nok\nab\xff\xfe\n")
    batch(model, source, tmp_path / "out.txt", "--max-tokens", "3")
    assert len(lines_of(tmp_path / "out.txt")) == 2
    done = batch(model, source, tmp_path / "strict.txt", "--strict-utf8", code=1)
    assert "line 3" in error_line(done) and "2" in error_line(done)
    assert not (tmp_path / "strict.txt").exists()


def test_verify_says_match_or_first_difference(model, prompts, tmp_path):
    out, other = tmp_path / "out.txt", tmp_path / "other.txt"
    batch(model, prompts, out, "--max-tokens", "6", "--ignore-eos")
    lines = out.read_text().splitlines()
    other.write_text("".join(line + " \n" for line in lines))  # the seed leaves a space at the end
    done = batch(model, prompts, out, "--max-tokens", "6", "--ignore-eos", "-v", other)
    assert b"verify: 12 of 12 lines match" in done.stderr
    words = lines[2].split()
    words[3] = "1" if words[3] != "1" else "2"
    lines[2] = " ".join(words)
    other.write_text("\n".join(lines) + "\n")
    done = batch(model, prompts, out, "--max-tokens", "6", "--ignore-eos", "-v", other, code=1)
    assert b"verify line 3: first difference at token 3: got" in done.stderr
    assert b"verify: 11 of 12 lines match" in done.stderr


def test_report_counts_the_tokens_of_the_output(model, prompts, tmp_path):
    done = batch(model, prompts, tmp_path / "out.txt", "--json", "-q")
    report = json.loads(done.stdout)
    written = sum(len(line) for line in lines_of(tmp_path / "out.txt"))
    assert report["generated_tokens"] == report["output_tokens"] == written > 0
    assert report["requests"] == len(PROMPTS)
    assert report["tokens_per_second"] == pytest.approx(written / report["inference_seconds"], rel=1e-6)
    assert report["warm_up_seconds"] >= report["load_seconds"] > 0


def test_first_line_of_stderr_is_the_device(model, prompts, tmp_path):
    done = batch(model, prompts, tmp_path / "o.txt", "--precision", "float32", "--kv16", "--threads", "1")
    first = done.stderr.decode().splitlines()[0]
    assert first.startswith("device: cpu (") and first.endswith("1 thread), precision float32, kv bfloat16")


@pytest.mark.parametrize("family", ["", "_xlstm", "_lut"])
def test_the_device_line_says_what_auto_became(model, prompts, tmp_path, family):
    done = batch(f"{model}{family}", prompts, tmp_path / "o.txt", "--max-tokens", "1", "--json")
    first, report = done.stderr.decode().splitlines()[0], json.loads(done.stdout)
    assert report["precision"] in ("float32", "bfloat16")
    name = "state" if family else "kv"
    assert first.endswith(f"precision {report['precision']}, {name} {report['kv']}")


def test_output_to_stdout(model, prompts, tmp_path):
    batch(model, prompts, tmp_path / "out.txt", "--max-tokens", "5")
    done = batch(model, prompts, "-", "--max-tokens", "5")
    assert done.stdout == (tmp_path / "out.txt").read_bytes()


# --- JSONL --------------------------------------------------------------------------------------------


def test_jsonl_carries_ids_settings_and_errors(model, prompts, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"custom_id": "first", "prompt": "Return a list of", "max_tokens": 5}\n'
        '{"custom_id": "broken", "prompt": \n'
        '{"custom_id": "ids", "prompt": [40, 41, 42], "max_tokens": 3}\n'
        '{"custom_id": "range", "prompt": [99999999]}\n'
        '{"custom_id": "cold", "prompt": "x", "temperature": -1}\n'
        '{"custom_id": "empty", "prompt": ""}\n'
        "\n"
        '{"prompt": "Set the", "max_tokens": 2}'
    )
    done = batch(model, source, tmp_path / "out.jsonl", "--ignore-eos")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["custom_id"] for row in rows] == [
        "first",
        "line-2",
        "ids",
        "range",
        "cold",
        "empty",
        "line-8",
    ]
    assert [len(row["tokens"]) for row in rows] == [5, 0, 3, 0, 0, 0, 2]
    assert [row["finish_reason"] for row in rows] == ["length", "error", "length", *["error"] * 3, "length"]
    for row in rows:
        assert list(row) == [
            "custom_id", "text", "tokens", "finish_reason", "prompt_tokens", "completion_tokens", "error",
        ]  # fmt: skip
        assert row["completion_tokens"] == len(row["tokens"])
        assert (row["error"] is None) == (row["finish_reason"] != "error")
    assert "line 2: invalid JSON" in rows[1]["error"]
    assert "line 4: prompt token 0 is 99999999" in rows[3]["error"]
    assert "line 5: temperature is -1" in rows[4]["error"]
    assert rows[5]["error"] == "line 6: the prompt is empty"
    assert b"4 of 7 requests failed" in done.stderr


def test_jsonl_equals_text(model, prompts, tmp_path):
    source = jsonl_input(tmp_path / "in.jsonl", [{"prompt": p} for p in PROMPTS])
    batch(model, prompts, tmp_path / "out.txt", "--max-tokens", "12")
    batch(model, source, tmp_path / "out.jsonl", "--max-tokens", "12")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["tokens"] for row in rows] == lines_of(tmp_path / "out.txt")
    decoded = getp("decode", model, "-i", tmp_path / "out.txt").stdout.decode()
    assert decoded == "".join(f"{'-' * 64}\nDecoding #{k}:\n{row['text']}\n" for k, row in enumerate(rows))


def test_stop_strings_cut_the_text(model, tmp_path):
    row = {"prompt": "Return a list of", "max_tokens": 60}
    out = tmp_path / "out.jsonl"
    batch(model, jsonl_input(tmp_path / "a.jsonl", [row]), out, "--ignore-eos")
    text = read_jsonl(out)[0]["text"]
    stop = text[11:16]  # spans tokens: the demo model's tokens are shorter
    batch(model, jsonl_input(tmp_path / "b.jsonl", [row | {"stop": ["\0never", stop]}]), out, "--ignore-eos")
    cut = read_jsonl(out)[0]
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert cut["completion_tokens"] < 60


def test_messages_are_rendered_as_a_chat(model, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}]
    out = tmp_path / "out.jsonl"
    done = batch(model, jsonl_input(tmp_path / "in.jsonl", rows), out, "--date", "2025-06-28", code=None)
    row = read_jsonl(out)[0]
    if row["error"] and "harmony" in row["error"]:
        pytest.skip("the demo tokenizer has no harmony tokens")
    assert done.returncode == 0
    assert row["prompt_tokens"] > 30


def test_contents_may_be_lists_of_parts_as_in_python(model, tmp_path):
    whole, text = "Hi there", lambda t: {"type": "text", "text": t}
    contents = [
        whole,
        [text("Hi "), text("there")],
        [{"text": whole}],
        [],
        [text("x"), 3],
        [{"type": "text"}],
        7,
        None,
    ]
    rows = [{"messages": [{"role": "user", "content": c}], "max_tokens": 3} for c in contents]
    out = tmp_path / "out.jsonl"
    batch(model, jsonl_input(tmp_path / "in.jsonl", rows), out, "--date", "2025-06-28", "--ignore-eos")
    got = read_jsonl(out)
    assert not got[0]["error"] and got[0]["prompt_tokens"] > 10 and len(got[0]["tokens"]) == 3
    for row in got[1:3]:
        assert row["tokens"] == got[0]["tokens"] and row["prompt_tokens"] == got[0]["prompt_tokens"]
    assert not got[3]["error"] and got[3]["prompt_tokens"] < got[0]["prompt_tokens"]
    for row, message in zip(
        got[4:],
        [
            "a part of a content is 3, expected one with a text",
            "a part of a content is an object, expected one with a text",
            "a content is 7, expected a string or a list of text parts",
            'a message needs "role" and "content"',
        ],
        strict=True,
    ):
        assert message in row["error"]


# --- shards and merge -----------------------------------------------------------------------------------


def test_merge_checks_that_the_parts_are_complete_and_of_one_job(model, prompts, tmp_path):
    a, b, other = (tmp_path / name for name in ("a.txt", "b.txt", "other.txt"))
    batch(model, prompts, a, "--shard", "0/2", "--max-tokens", "3")
    batch(model, prompts, b, "--shard", "1/2", "--max-tokens", "3")
    batch(model, prompts, other, "--shard", "1/2", "--max-tokens", "4")
    out = tmp_path / "out.txt"
    assert "shard 1 of 2 is missing" in error_line(getp("merge", "-i", a, "-o", out, code=1))
    assert "other options" in error_line(getp("merge", a, other, "-o", out, code=1))
    assert not out.exists()
    getp("-m", "merge", "-i", b, a, "-o", out)
    whole = tmp_path / "whole.txt"
    batch(model, prompts, whole, "--max-tokens", "3")
    assert out.read_bytes() == whole.read_bytes()
    b.write_text(b.read_text().replace("1", "2", 1))
    assert "b.txt has changed" in error_line(getp("merge", a, b, "-o", out, code=1))


def test_jsonl_shards_merge(model, tmp_path):
    source = jsonl_input(
        tmp_path / "in.jsonl", [{"custom_id": f"r{i}", "prompt": p} for i, p in enumerate(PROMPTS)]
    )
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    batch(model, source, whole, "--max-tokens", "4")
    parts = [tmp_path / f"p{i}.jsonl" for i in range(3)]
    for i, part in enumerate(parts):
        batch(model, source, part, "--max-tokens", "4", "--shard", f"{i}/3")
    getp("merge", *parts, "-o", out)
    assert out.read_bytes() == whole.read_bytes()


# --- odd window ---------------------------------------------------------------------------------------


def test_odd_win_equals_a_model_whose_layers_all_slide(model, prompts, tmp_path):
    sliding = tmp_path / "sliding"
    sliding.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (sliding / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    window = config["sliding_window"]
    config["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
    (sliding / "config.json").write_text(json.dumps(config))
    options = ["--max-tokens", 2 * window, "--ignore-eos", "-q"]
    want, plain, out = tmp_path / "want.txt", tmp_path / "plain.txt", tmp_path / "out.txt"
    batch(sliding, prompts, want, *options)
    batch(model, prompts, plain, *options)
    batch(model, prompts, out, *options, "--odd_win", window)
    assert out.read_bytes() == want.read_bytes() != plain.read_bytes()
    batch(model, prompts, out, *options, "--window", 10**6)
    assert out.read_bytes() == plain.read_bytes()
