"""getp is killed, interrupted and starved of disk: the same command resumes and the output is byte-equal."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from getp_runner import PROMPTS, demo_folder, error_line, getp, start, text_input

KILLS = 50
JOB = ["--ignore-eos", "--max-tokens", "60", "-T", "0.8", "-b", "4", "--threads", "1", "-q"]


@pytest.fixture(scope="module")
def model():
    return demo_folder()


@pytest.fixture(scope="module")
def job(model, tmp_path_factory):
    """An input, its output when nothing disturbs, and how long that takes."""
    folder = tmp_path_factory.mktemp("job")
    source = text_input(folder / "in.txt", [f"{p} {i}" for i in range(3) for p in PROMPTS])
    want = folder / "want.txt"
    started = time.monotonic()
    getp("getp", model, "-i", source, "-o", want, *JOB)
    return source, want.read_bytes(), time.monotonic() - started


def command(model, source, out, *more):
    return ["getp", model, "-i", source, "-o", out, *JOB, *more]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def journal_of(out):
    return out.with_name(out.name + ".journal")


def test_killed_at_random_points_it_resumes_to_the_same_bytes(model, job, tmp_path):
    source, want, seconds = job
    chance = random.Random(4)
    kills = finished = resumed = 0
    while kills < KILLS:
        out = tmp_path / f"out{finished}.txt"
        before = journal_of(out).stat().st_size if journal_of(out).exists() else 0
        resumed += before > 1000
        process = start(*command(model, source, out), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, seconds))
        process.kill()
        code = process.wait(timeout=60)
        process.stdout.close()
        if code == -signal.SIGKILL:
            kills += 1
            # A kill after the rename leaves the whole file: never half of it.
            assert not out.exists() or out.read_bytes() == want
        else:
            assert code == 0
        if code == 0 or kills == KILLS:
            getp(*command(model, source, out))
            assert out.read_bytes() == want
            assert not journal_of(out).exists()
            finished += 1
    assert resumed > 5, "the kills should have left work to resume"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_within_a_second_and_keeps_what_is_done(model, tmp_path, number, code):
    source = text_input(tmp_path / "in.txt", [f"{p} {i}" for i in range(40) for p in PROMPTS])
    out, journal = tmp_path / "out.txt", tmp_path / "out.txt.journal"
    options = ["--ignore-eos", "-n", "400", "-b", "4"]
    process = start("getp", model, "-i", source, "-o", out, *options)
    wait_for(lambda: journal.exists() and journal.stat().st_size > 5000)
    process.send_signal(number)
    sent = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - sent < 1
    assert process.returncode == code
    assert b"interrupted; completed requests are kept in" in stderr
    assert journal.exists() and not out.exists()


def test_an_interrupted_job_resumes_without_computing_again(model, job, tmp_path):
    source, want, _ = job
    out = tmp_path / "out.txt"
    process = start(*command(model, source, out))
    wait_for(lambda: journal_of(out).exists() and journal_of(out).stat().st_size > 2000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    done = getp(*[a for a in command(model, source, out) if a != "-q"])
    line = next(x for x in done.stderr.decode().splitlines() if x.startswith("resuming: "))
    assert int(line.split()[1]) > 0
    assert out.read_bytes() == want


def test_a_torn_journal_resumes_from_every_cut(model, job, tmp_path):
    source, want, _ = job
    out = tmp_path / "out.txt"
    process = start(*command(model, source, out))
    wait_for(lambda: journal_of(out).exists() and journal_of(out).stat().st_size > 2000)
    process.kill()
    process.communicate(timeout=30)
    whole = journal_of(out).read_bytes()
    chance = random.Random(1)
    for cut in sorted(
        {0, 1, 7, 8, 11, 200, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(4))}
    ):
        journal_of(out).write_bytes(whole[:cut])
        out.unlink(missing_ok=True)
        getp(*command(model, source, out))
        assert out.read_bytes() == want, cut


def test_other_options_are_refused_unless_restarted(model, job, tmp_path):
    source, want, _ = job
    out = tmp_path / "out.txt"
    process = start(*command(model, source, out))
    wait_for(lambda: journal_of(out).exists() and journal_of(out).stat().st_size > 2000)
    process.kill()
    process.communicate(timeout=30)
    kept = journal_of(out).read_bytes()
    done = getp(*command(model, source, out, "-s", "3"), code=1)
    assert "seed was 0 and is 3 now" in error_line(done)
    done = getp(*command(model, source, out, "--kv32", "--precision", "float32"), code=1)
    assert "--restart" in error_line(done)
    changed = text_input(tmp_path / "changed.txt", ["another prompt"] * (len(PROMPTS) * 3))
    assert "has changed" in error_line(getp(*command(model, changed, out), code=1))
    assert journal_of(out).read_bytes() == kept
    getp(*command(model, source, out, "--restart"))
    assert out.read_bytes() == want


def test_a_second_process_on_the_same_output_is_refused(model, job, tmp_path):
    source, _, _ = job
    out = tmp_path / "out.txt"
    with journal_of(out).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another getp is writing" in error_line(getp(*command(model, source, out), code=74))


def test_a_journal_that_is_not_ours_is_left_alone(model, job, tmp_path):
    source, _, _ = job
    out = tmp_path / "out.txt"
    journal_of(out).write_text("my notes, not a journal")
    assert "not a journal" in error_line(getp(*command(model, source, out), code=1))
    assert journal_of(out).read_text() == "my notes, not a journal"


def test_a_full_disk_keeps_the_journal_and_the_job_resumes(model, job, tmp_path):
    source, want, _ = job
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or not mount:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 56 * 1024)
        out = disk / "out.txt"
        done = getp(*command(model, source, out), code=74)
        assert "No space left on device" in error_line(done)
        assert "completed requests are kept" in error_line(done)
        assert journal_of(out).stat().st_size > 1000
        assert not out.exists()
        filler.unlink()
        getp(*command(model, source, out))
        assert out.read_bytes() == want
    finally:
        subprocess.run(["umount", disk], check=True)
