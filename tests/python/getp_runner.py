"""Runs the getp binary of the installed package, or the one that TRIVIUM_GETP names."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO_IN_TREE = Path(__file__).resolve().parents[2] / "python" / "trivium" / "demo"

PROMPTS = [
    "Return True if the",
    "Return a list of all",
    "This module provides",
    "Raised when the",
    "a",
    "Convert a string to " * 12,
    "Read and return up to",
    "Write the given " * 5,
    "x = [1, 2, 3]\tand é ü €",
    "Get the current",
    "Set the value of",
    "Parse the arguments and",
]


def getp_binary() -> str:
    named = os.environ.get("TRIVIUM_GETP")
    beside = Path(sys.executable).parent / "getp"
    path = named or (str(beside) if beside.exists() else shutil.which("getp"))
    if not path:
        pytest.skip("getp is not installed: pip install . or set TRIVIUM_GETP")
    return path


def demo_folder() -> Path:
    try:
        import trivium

        folder = trivium.demo_model()
    except ImportError:
        folder = DEMO_IN_TREE
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the demo model is not in {folder}")
    return folder


def environment() -> dict:
    return {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")}


def start(*args, **options) -> subprocess.Popen:
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("env", environment())
    return subprocess.Popen([getp_binary(), *map(str, args)], **options)


def getp(*args, stdin: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess:
    """Runs to the end; checks the exit code unless it is None. Output is bytes."""
    done = subprocess.run(
        [getp_binary(), *map(str, args)], input=stdin, capture_output=True, timeout=300, env=environment()
    )
    if code is not None:
        assert done.returncode == code, (done.returncode, done.stderr.decode(errors="replace"))
    assert -signal.SIGSEGV != done.returncode != -signal.SIGABRT
    return done


def error_line(done: subprocess.CompletedProcess) -> str:
    """The last line of stderr, which is where a failure is explained."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def text_input(path: Path, prompts: list[str]) -> Path:
    path.write_bytes("\n".join([str(len(prompts)), *prompts, ""]).encode())
    return path


def jsonl_input(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(path: Path) -> list[list[int]]:
    return [[int(word) for word in line.split(" ") if word] for line in path.read_text().splitlines()]


def batch(model, source, output, *args, code=0):
    """Runs mode getp."""
    return getp("getp", model, "-i", source, "-o", output, *args, code=code)
