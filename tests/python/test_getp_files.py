"""Which files getp reads and writes: none is destroyed by accident, and what is printed never lands in one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

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
    read_jsonl,
    start,
    text_input,
)

FEW = ["--max-tokens", "3", "-q"]


@pytest.fixture(scope="module")
def model():
    return demo_folder()


@pytest.fixture
def prompts(tmp_path):
    return text_input(tmp_path / "in.txt", PROMPTS)


def native_getp() -> str:
    """The command itself, without the script that pip installs."""
    if os.environ.get("TRIVIUM_GETP"):
        return getp_binary()
    import trivium

    return str(trivium.__path__[0]) + "/bin/getp"


@pytest.mark.parametrize("name", ["in.jsonl", "./in.jsonl", "link.jsonl", "hard.jsonl"])
def test_an_output_that_is_the_input_is_refused(model, tmp_path, name):
    source = jsonl_input(tmp_path / "in.jsonl", [{"prompt": "Return"}])
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    os.link(source, tmp_path / "hard.jsonl")
    before = source.read_bytes()
    done = batch(model, source, os.path.join(tmp_path, name), *FEW, code=2)
    assert "-o and -i are both" in error_line(done)
    assert source.read_bytes() == before and b"device:" not in done.stderr


@pytest.mark.parametrize("ending", [".tmp", ".journal", ".part"])
def test_an_input_where_the_output_keeps_its_own_files_is_refused(model, prompts, tmp_path, ending):
    source = prompts.rename(tmp_path / f"out.txt{ending}")
    before = source.read_bytes()
    assert "-i names" in error_line(batch(model, source, tmp_path / "out.txt", *FEW, code=2))
    assert source.read_bytes() == before


def test_an_output_is_not_verified_against_itself(model, prompts, tmp_path):
    """It would be overwritten first, and then always match."""
    out = tmp_path / "out.txt"
    out.write_text("5 5 5\n" * len(PROMPTS))
    assert "-o and --verify are both" in error_line(batch(model, prompts, out, "-v", out, *FEW, code=2))
    assert out.read_text().startswith("5 5 5\n")


def test_the_report_replaces_neither_the_results_nor_the_input(model, prompts, tmp_path):
    out = tmp_path / "out.txt"
    before = prompts.read_bytes()
    for report in (out, prompts):
        assert "--json and" in error_line(batch(model, prompts, out, f"--json={report}", *FEW, code=2))
    assert prompts.read_bytes() == before and not out.exists()
    done = batch(model, prompts, "/dev/stdout", "--json", *FEW, code=2)
    assert "write to the same place" in error_line(done) or "both write" in error_line(done)


def test_merging_into_a_part_is_refused(model, prompts, tmp_path):
    parts = [tmp_path / f"part{i}" for i in range(2)]
    for i, part in enumerate(parts):
        batch(model, prompts, part, "--shard", f"{i}/2", *FEW)
    before = parts[0].read_bytes()
    done = getp("merge", "-i", *parts, "-o", parts[0], code=2)
    assert "-o and -i are both" in error_line(done)
    assert parts[0].read_bytes() == before
    getp("merge", "-i", *parts, "-o", tmp_path / "whole")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"])
def test_standard_output_by_any_name_is_appended_to_where_the_shell_says(model, prompts, tmp_path, name):
    want = batch(model, prompts, "-", *FEW).stdout
    log = tmp_path / "log.txt"
    log.write_bytes(b"kept\n")
    with log.open("ab") as stream:
        process = start("getp", model, "-i", prompts, "-o", name, *FEW, stdout=stream)
        assert process.wait(timeout=60) == 0
        process.stderr.close()
    assert log.read_bytes() == b"kept\n" + want
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "log.txt"]


def test_a_link_to_a_file_that_is_not_there_yet_stays_a_link(model, prompts, tmp_path):
    (tmp_path / "deep").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("deep/target.txt")
    batch(model, prompts, link, *FEW)
    assert link.is_symlink()
    assert (tmp_path / "deep" / "target.txt").read_text().count("\n") == len(PROMPTS)


def test_an_output_keeps_the_permissions_of_the_file_it_replaces(model, prompts, tmp_path):
    out = tmp_path / "out.txt"
    out.touch(0o600)
    batch(model, prompts, out, *FEW)
    assert out.stat().st_mode & 0o777 == 0o600 and out.stat().st_size > 0


@pytest.mark.parametrize("ending", [".journal", ".tmp"])
def test_a_fifo_in_the_way_is_an_error_and_not_a_wait(model, prompts, tmp_path, ending):
    fifo = tmp_path / f"out.txt{ending}"
    os.mkfifo(fifo)
    done = batch(model, prompts, tmp_path / "out.txt", *FEW, code=None)
    assert done.returncode in (1, 74) and str(fifo) in error_line(done)


def test_a_link_in_place_of_the_temporary_file_is_not_followed(model, prompts, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "out.txt.tmp").symlink_to(precious)
    assert "out.txt.tmp" in error_line(batch(model, prompts, tmp_path / "out.txt", *FEW, code=74))
    assert precious.read_text() == "kept"


def test_two_names_of_one_output_exclude_each_other(model, prompts, tmp_path):
    (tmp_path / "link.txt").symlink_to("out.txt")
    many = text_input(tmp_path / "many.txt", [f"{p} {i}" for i in range(40) for p in PROMPTS])
    first = start(
        "getp", model, "-i", many, "-o", tmp_path / "out.txt", "--ignore-eos", "-b", "1", "-n", "900"
    )
    journal = tmp_path / "out.txt.journal"
    end = time.monotonic() + 30
    while not journal.exists() or journal.stat().st_size < 100:
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.01)
    done = batch(model, prompts, tmp_path / "link.txt", *FEW, code=74)
    assert "another getp is writing to this output" in error_line(done)
    first.kill()
    first.communicate(timeout=60)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_what_is_printed_never_lands_in_a_file_when_descriptors_are_closed(model, tmp_path, closed):
    """A journal that got descriptor 2 would hold the messages, and lose its records on resuming."""
    source = text_input(tmp_path / "in.txt", [f"{p} {i}" for i in range(8) for p in PROMPTS])
    options = f"-b 2 --threads 1 --max-tokens 60 --ignore-eos --load read -i {source}"
    want, out, journal = tmp_path / "want.txt", tmp_path / "out.txt", tmp_path / "out.txt.journal"
    getp("getp", model, *options.split(), "-o", want)
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", native_getp(), "getp", model, *options.split(), "-o", out],
        env=environment(),
    )
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 2000):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) in (0, 130)
    if process.returncode == 130:
        data = journal.read_bytes()
        assert not any(word in data for word in (b"device: ", b"memory: ", b"interrupted", b"tokens/s"))
        shutil.copy(journal, tmp_path / "kept")
        done = batch(model, source, out, *options.split()[:-2])
        assert b"resuming: " in done.stderr and b"dropped" not in done.stderr
    assert out.read_bytes() == want.read_bytes()


def test_results_for_a_closed_standard_output_are_an_error(model, prompts):
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 1>&-', "sh", native_getp(), "getp", model, "-i", prompts, "-o", "-", *FEW],
        env=environment(),
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert done.returncode == 74 and "standard output: cannot write" in error_line(done)


def test_a_limit_on_file_sizes_is_an_io_error_that_keeps_the_journal(model, tmp_path):
    rows = [{"prompt": f"{p} {i}", "max_tokens": 8} for i in range(30) for p in PROMPTS]
    source, out, want = (
        jsonl_input(tmp_path / "in.jsonl", rows),
        tmp_path / "out.jsonl",
        tmp_path / "want.jsonl",
    )
    batch(model, source, want)
    limited = f'ulimit -f 8; exec env --default-signal=XFSZ "{native_getp()}" "$@"'
    done = subprocess.run(
        ["sh", "-c", limited, "sh", "getp", str(model), "-i", source, "-o", out],
        env=environment(),
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert done.returncode == 74, done
    assert "File too large" in error_line(done) and "the same command resumes" in error_line(done)
    assert b"resuming: " in batch(model, source, out).stderr
    assert out.read_bytes() == want.read_bytes()


def test_a_prompt_comes_from_a_socket_too(model):
    ours, theirs = socket.socketpair()
    ours.sendall(b"Return")
    ours.shutdown(socket.SHUT_WR)
    process = start(model, "-i", "-", *FEW, stdin=theirs)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and stdout == getp(model, "-i", "Return", *FEW).stdout


def wait_until_it_waits(process):
    """Until getp handles SIGINT, and then for as long as a start takes."""
    end = time.monotonic() + 30
    caught = 0
    while not caught & 1 << (signal.SIGINT - 1):
        assert process.poll() is None and time.monotonic() < end
        with open(f"/proc/{process.pid}/status") as status:
            caught = next((int(line.split()[1], 16) for line in status if line.startswith("SigCgt")), 1 << 1)
        with open(f"/proc/{process.pid}/cmdline", "rb") as line:  # not of the script that starts getp
            caught *= line.read().split(b"\0")[0].endswith(b"getp")
        time.sleep(0.01)
    time.sleep(1)
    assert process.poll() is None


@pytest.mark.parametrize("args", [["generate", "-i", "-"], ["getp", "-i", "-", "-o", "-"], ["chat"]])
def test_an_interrupt_ends_the_wait_for_input(model, args):
    process = start(args[0], model, *args[1:], stdin=subprocess.PIPE)
    wait_until_it_waits(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    process.communicate()


def test_an_interrupt_ends_the_wait_for_a_reader_of_a_fifo(model, prompts, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = start("getp", model, "-i", prompts, "-o", fifo, *FEW)
    wait_until_it_waits(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143
    process.communicate()


def test_a_prompt_that_normalisation_lengthens_runs(tmp_path):
    """The cache is sized before prompts are tokenised: NFC makes three bytes six here."""
    folder = tmp_path / "model"
    shutil.copytree(demo_folder().parent / "demo_xlstm", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "NFC"}}))
    prompt = "\u0958" * 50
    out = tmp_path / "out.jsonl"
    batch(folder, jsonl_input(tmp_path / "in.jsonl", [{"prompt": prompt}]), out, "--max-tokens", "2")
    (row,) = read_jsonl(out)
    assert row["error"] is None and row["prompt_tokens"] > len(prompt.encode()) and len(row["tokens"]) == 2


def test_ids_that_are_not_unique_are_a_warning(model, tmp_path):
    rows = [
        {"custom_id": "a", "prompt": "x"},
        {"custom_id": 7, "prompt": "y"},
        {"custom_id": "a", "prompt": "z"},
    ]
    done = batch(model, jsonl_input(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", *FEW)
    assert b'custom_id "a" is on lines 1 and 3' in done.stderr
    assert [row["custom_id"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["a", "7", "a"]


def test_a_journal_belongs_to_a_tokenizer(model, tmp_path):
    """Stop strings end requests by what the ids stand for."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = "a", "b"
    vocab[first], vocab[second] = vocab[second], vocab[first]
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(tokenizer))
    rows = [{"prompt": [i, i + 1], "stop": ["a"]} for i in range(300)]
    source, out = jsonl_input(tmp_path / "in.jsonl", rows), tmp_path / "out.txt"
    process = start("getp", model, "-i", source, "-o", out, "-b", "1")
    journal = tmp_path / "out.txt.journal"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 1500):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert journal.exists(), "it finished before it was killed"
    done = batch(model, source, out, "-b", "1", "-z", other, code=1)
    assert "tokenizer was " in error_line(done)
