"""Disks that fail: every error of a system call ends in exit code 74, and the same command completes the job."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import trivium
from getp_runner import PROMPTS, demo_folder, environment, error_line, getp, text_input

JOB = ["--ignore-eos", "--max-tokens", "60", "-T", "0.8", "-b", "4", "--threads", "1", "-q"]
NATIVE = Path(trivium.__path__[0]) / "bin" / "getp"  # the fault is to hit getp, not the Python that starts it


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("there is no C compiler to build the faults with")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("fault_injection.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """An input and its output when nothing fails."""
    folder = tmp_path_factory.mktemp("job")
    source = text_input(folder / "in.txt", [f"{p} {i}" for i in range(3) for p in PROMPTS])
    getp("getp", demo_folder(), "-i", source, "-o", folder / "want.txt", *JOB)
    return source, (folder / "want.txt").read_bytes()


def start(library, fault, *args):
    env = {**environment(), "LD_PRELOAD": str(library), **{f"FAULT_{k}": str(v) for k, v in fault.items()}}
    return subprocess.Popen(
        [NATIVE, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )


@pytest.mark.parametrize(
    ("call", "path", "after"),
    [
        ("write", ".journal", 0),  # its header
        ("write", ".journal", 1),  # the first record
        ("write", ".journal", 17),
        ("write", ".txt.tmp", 0),
        ("fdatasync", ".journal", 0),
        ("fsync", ".txt.tmp", 0),
        ("close", ".txt.tmp", 0),
        ("rename", "out.txt", 0),
        ("fsync", "/disk", 0),  # the folder, when the journal is new
        ("fsync", "/disk", 1),  # and when the output has its name
    ],
)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_failing_call_is_an_io_error_and_the_job_can_be_completed(
    faults, job, tmp_path, call, path, after, error
):
    source, want = job
    folder = tmp_path / "disk"
    folder.mkdir()
    out = folder / "out.txt"
    command = ["getp", demo_folder(), "-i", source, "-o", out, *JOB]
    fault = {"CALL": call, "PATH": path, "AFTER": after, "ERRNO": getattr(errno, error)}
    process = start(faults, fault, *command)
    stdout, stderr = process.communicate(timeout=120)
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    assert done.returncode == 74, stderr
    assert os.strerror(getattr(errno, error)) in error_line(done) and str(folder) in error_line(done)
    assert not (folder / "out.txt.tmp").exists()
    assert not out.exists() or out.read_bytes() == want  # never a part of it
    getp(*command)
    assert out.read_bytes() == want
    assert [p.name for p in folder.iterdir()] == ["out.txt"]


def test_what_was_written_before_the_failure_is_not_computed_again(faults, job, tmp_path):
    source, want = job
    out = tmp_path / "out.txt"
    command = ["getp", demo_folder(), "-i", source, "-o", out, *JOB]
    fault = {"CALL": "write", "PATH": ".journal", "AFTER": 17, "ERRNO": errno.EIO}  # the header, 16 records
    process = start(faults, fault, *command)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 74 and b"completed requests are kept in" in stderr
    again = getp(*[a for a in command if a != "-q"])
    assert re.search(rb"resuming: 16 of 36 requests", again.stderr), again.stderr
    assert out.read_bytes() == want


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_even_a_process_that_hangs(faults, job, tmp_path, number, code):
    """A disk that does not answer: the first signal cannot be obeyed, the second needs nobody's help."""
    source, want = job
    out = tmp_path / "out.txt"
    command = ["getp", demo_folder(), "-i", source, "-o", out, *JOB]
    process = start(faults, {"CALL": "fsync", "PATH": ".txt.tmp", "ERRNO": 0}, *command)
    while b"waits" not in (line := process.stderr.readline()):
        assert line, "it ended without waiting"
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == code
    process.communicate()
    assert not out.exists()
    getp(*command)
    assert out.read_bytes() == want
