"""getp on a terminal: what it prints fits the terminal and its wishes, and interrupts leave it usable."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest
from getp_runner import PROMPTS, demo_folder, environment, getp_binary, text_input


@pytest.fixture(scope="module")
def model():
    return demo_folder()


class Terminal:
    """getp with a terminal as stdin, stdout and stderr."""

    def __init__(self, *args, width=80, **env):
        self.fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.process = subprocess.Popen(
            [getp_binary(), *map(str, args)],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**environment(), "TERM": "xterm", **env},
            start_new_session=True,
        )
        os.close(child)
        self.shown = b""

    def read(self, seconds=0.1) -> bool:
        """What has come; False at the end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:
            return False
        self.shown += data
        return bool(data)

    def wait_for(self, words: bytes):
        end = time.monotonic() + 60
        while words not in self.shown:
            assert self.read() and time.monotonic() < end, self.shown

    def finish(self) -> tuple[int, bytes]:
        end = time.monotonic() + 60
        while self.read():
            assert time.monotonic() < end, self.shown
        os.close(self.fd)
        return self.process.wait(timeout=10), self.shown


@pytest.fixture
def job(model, tmp_path):
    """A job that takes a second or so."""
    many = text_input(tmp_path / "in.txt", [f"{p} {i}" for i in range(40) for p in PROMPTS])
    return ["getp", model, "-i", many, "-o", tmp_path / "out.txt", "--max-tokens", "60", "--threads", "1"]


@pytest.mark.parametrize("width", [20, 200])
def test_the_progress_line_never_wraps(job, width):
    """A line that wraps cannot be rewritten: every update would leave a part of it behind."""
    code, shown = Terminal(*job, width=width).finish()
    updates = [part.split(b"\r")[0] for part in shown.split(b"\r\x1b[K")[1:-1]]
    assert code == 0 and len(updates) >= 2, shown
    assert all(b" of 480" in line and len(line) < width for line in updates)
    assert width == 20 or any(b"tokens/s" in line for line in updates)


def test_a_job_of_milliseconds_shows_its_line_from_start_to_end(model, tmp_path):
    one = text_input(tmp_path / "in.txt", ["Return", "Open"])
    command = ["getp", model, "-i", one, "-o", tmp_path / "out.txt", "--max-tokens", "2", "--ignore-eos"]
    code, shown = Terminal(*command, width=200).finish()
    assert code == 0 and b"\x1b[K0 of 2 requests, 0 tokens" in shown
    last = [line for line in shown.split(b"\r\n") if b" of 2 requests" in line][-1]
    assert last.rpartition(b"\x1b[K")[2].startswith(b"2 of 2 requests, 4 tokens, ")
    assert b"\x1b[K\r" not in shown and b"left" not in last


@pytest.mark.parametrize("option", ["-q", "--no-progress"])
def test_progress_can_be_switched_off(model, tmp_path, option):
    one = text_input(tmp_path / "in.txt", ["Return"])
    command = ["getp", model, "-i", one, "-o", tmp_path / "out.txt", "--max-tokens", "2", option]
    code, shown = Terminal(*command).finish()
    assert code == 0 and b" of 1 requests" not in shown and b"\x1b[K" not in shown


def test_a_dumb_terminal_gets_no_escapes(job):
    code, shown = Terminal(*job, TERM="dumb").finish()
    assert code == 0 and b"requests: 480" in shown and b"\x1b" not in shown


def test_an_interrupt_ends_a_streamed_line(model):
    """The shell's prompt does not follow half a sentence."""
    terminal = Terminal(model, "-i", "Return", "--ignore-eos", "-n", "0")
    terminal.wait_for(b"value")
    terminal.process.send_signal(signal.SIGINT)
    code, shown = terminal.finish()
    assert code == 130 and shown.endswith(b"\n")


def test_a_chat_ends_by_interrupt_end_of_file_and_command(model):
    for ending, code in ((b"\x04", 0), (b"/exit\n", 0), (signal.SIGINT, 130)):
        terminal = Terminal("chat", model, "--max-tokens", "5")
        terminal.wait_for(b"> ")
        os.write(terminal.fd, b"\xff\xfe hello\n")
        terminal.wait_for(b"\n> ")
        if isinstance(ending, bytes):
            os.write(terminal.fd, ending)
        else:
            terminal.process.send_signal(ending)
        assert terminal.finish()[0] == code


def test_an_interrupt_while_the_command_starts_prints_no_traceback(model, tmp_path):
    """Whatever the signal hits: the script that looks for the driver, or the driver before it has handlers."""
    source = text_input(tmp_path / "in.txt", [f"{p} {i}" for i in range(40) for p in PROMPTS])
    command = [
        getp_binary(),
        "getp",
        model,
        "-i",
        source,
        "-o",
        tmp_path / "out.txt",
        "-q",
        "--max-tokens",
        "200",
    ]
    codes = []
    for i in range(24):
        process = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        time.sleep(0.01 * (1 + i % 8))
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
        codes.append(process.returncode)
        assert b"Traceback" not in stderr and b"python" not in stderr, stderr.decode()
        assert process.returncode in (130, -signal.SIGINT)  # 130 to a shell
    assert 130 in codes
