"""What a journal and a part remember of the weights: every byte."""

import json
import shutil
import signal
import struct
import time

import pytest
from getp_runner import PROMPTS, demo_folder, error_line, getp, start, text_input

JOB = ["--ignore-eos", "--max-tokens", "60", "-b", "4", "--threads", "1", "-q"]


@pytest.fixture
def model(tmp_path):
    """A copy of the demo model, to be changed."""
    return shutil.copytree(demo_folder(), tmp_path / "model")


def flip(model, bit=0x10):
    """Changes one bit well inside the largest tensor, at no round fraction of it."""
    path = model / "model.safetensors"
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        begin, end = max(
            (t["data_offsets"] for name, t in header.items() if name.endswith("_blocks")),
            key=lambda offsets: offsets[1] - offsets[0],
        )
        at = 8 + size + begin + (end - begin) * 3 // 8 + 5
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def test_a_changed_byte_of_the_weights_is_refused_on_resuming(model, tmp_path):
    source = text_input(tmp_path / "in.txt", [f"{p} {i}" for i in range(4) for p in PROMPTS])
    out, want, journal = (tmp_path / name for name in ("out.txt", "want.txt", "out.txt.journal"))
    getp("getp", model, "-i", source, "-o", want, *JOB)
    process = start("getp", model, "-i", source, "-o", out, *JOB)
    end = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 2000):
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = journal.read_bytes()
    flip(model)
    message = error_line(getp("getp", model, "-i", source, "-o", out, *JOB, code=1))
    assert "weights was" in message and "belongs to another job" in message
    assert journal.read_bytes() == kept and not out.exists()
    flip(model)
    getp("getp", model, "-i", source, "-o", out, *JOB)
    assert out.read_bytes() == want.read_bytes()


def test_parts_of_weights_that_differ_in_a_byte_are_not_merged(model, tmp_path):
    source = text_input(tmp_path / "in.txt", PROMPTS)
    a, b, out = (tmp_path / name for name in ("a.txt", "b.txt", "out.txt"))
    getp("getp", model, "-i", source, "-o", a, "--shard", "0/2", *JOB)
    flip(model)
    getp("getp", model, "-i", source, "-o", b, "--shard", "1/2", *JOB)
    message = error_line(getp("merge", a, b, "-o", out, code=1))
    assert "was made with other options, weights" in message and not out.exists()
    flip(model)
    getp("getp", model, "-i", source, "-o", b, "--shard", "1/2", *JOB)
    getp("merge", a, b, "-o", out)
