"""Ctrl-C while gigabytes load. The time is what the process still computes after the signal: on a quiet machine the
wall clock says the same, on a busy one it says more.
"""

import os
import signal
import subprocess
import sys
import time

import checkpoints as cp
import pytest
from getp_runner import environment, jsonl_input

GIB = 1 << 30
CPU_SECONDS = 1.0  # to look at or copy one tensor of these models takes a thread two to five
DELAYS = (0.5, 1.5, 2.5, 4.0, 5.5)
# One matrix of 3 GiB after the other, or 4 GiB of experts to transpose.
CONFIGS = {
    "mxfp4": cp.config(393216, 4096, 512, 1, 4, 2, 64, 4, 2, 64),
    "dense": cp.config(4096, 4096, 8192, 1, 4, 2, 64, 22, 2, 64),
}


@pytest.fixture(scope="module", params=["mxfp4", "mxfp4_odd_header", "dense"])
def model(request, tmp_path_factory):
    available = next(int(x.split()[1]) for x in open("/proc/meminfo") if x.startswith("MemAvailable"))
    if available * 1024 < 8 * GIB:
        pytest.skip("loading these models takes 8 GiB of memory")
    kind = request.param.split("_")[0]
    odd = request.param.endswith("header")
    folder = cp.write_zeros(
        tmp_path_factory.mktemp(request.param), CONFIGS[kind], mxfp4=kind == "mxfp4", odd_header=odd
    )
    yield folder
    (folder / "model.safetensors").unlink()


def interrupted_at(delay, command, ready):
    """Starts the command, waits for its first output and `delay`, and interrupts: (exit code, stderr, CPU seconds)."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), "TRIVIUM_NUM_THREADS": "1"},
    )
    assert ready(process)
    time.sleep(delay)
    assert process.poll() is None, "the load was over before the signal"
    before = cpu_seconds(process.pid)
    process.send_signal(signal.SIGINT)
    text = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close(), process.stderr.close()
    return process.returncode, text, usage.ru_utime + usage.ru_stime - before


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("delay", DELAYS)
def test_getp_stops_within_a_second_of_an_interrupt(model, tmp_path, delay):
    import trivium

    source = jsonl_input(tmp_path / "in.jsonl", [{"prompt": [1, 2, 3], "max_tokens": 1}])
    command = [f"{trivium.__path__[0]}/bin/getp", "getp", model, "-i", source, "-o", tmp_path / "out.jsonl"]
    code, text, seconds = interrupted_at(
        delay, command, lambda process: process.stderr.readline().startswith(b"device:")
    )
    assert code == 130 and "interrupted" in text
    assert seconds < CPU_SECONDS


LOAD = """
import sys, trivium
print("loading", flush=True)
try:
    trivium.load(sys.argv[1], device="cpu")
except KeyboardInterrupt:
    print("KeyboardInterrupt", file=sys.stderr)
    sys.exit(3)
"""


@pytest.mark.parametrize("delay", DELAYS[::2])
def test_python_gets_a_keyboard_interrupt_within_a_second(model, delay):
    code, text, seconds = interrupted_at(
        delay, [sys.executable, "-c", LOAD, model], lambda process: process.stdout.readline() == b"loading\n"
    )
    assert code == 3 and text == "KeyboardInterrupt\n"
    assert seconds < CPU_SECONDS
