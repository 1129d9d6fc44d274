"""Everything that decides a job's tokens stands in its journal: when it differs, the job is not resumed."""

import json
import struct
import time

import pytest
from getp_runner import (
    PROMPTS,
    demo_folder,
    environment,
    error_line,
    getp,
    jsonl_input,
    start,
    text_input,
)

JOB = ["--ignore-eos", "--max-tokens", "60", "-b", "4", "--threads", "1", "-q", "--device", "cpu"]
KEYS = {
    "model", "weights", "build", "device", "cpu_level", "tokenizer", "precision", "kv", "odd_window", "temperature",
    "top_p", "top_k", "min_p", "seed", "steps", "max_tokens", "stop_ids", "stop", "ignore_eos", "input", "shard",
}  # fmt: skip
CHAT_KEYS = {"reasoning", "system", "date"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A job that was killed: its command and its journal's bytes."""
    folder = tmp_path_factory.mktemp("interrupted")
    source = text_input(folder / "in.txt", [f"{p} {i}" for i in range(8) for p in PROMPTS])
    out, journal = folder / "out.txt", folder / "out.txt.journal"
    command = ["getp", demo_folder(), "-i", source, "-o", out, *JOB]
    process = start(*command)
    end = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 3000):
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=30)
    return command, journal, journal.read_bytes()


@pytest.fixture
def interrupted(killed):
    killed[1].write_bytes(killed[2])
    return killed


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def config_of(journal: bytes) -> dict:
    (size,) = struct.unpack_from("<I", journal, 8)
    return json.loads(journal[16 : 16 + size])


def with_config(journal: bytes, config: dict) -> bytes:
    (old,) = struct.unpack_from("<I", journal, 8)
    text = json.dumps(config).encode()
    size = struct.pack("<I", len(text))
    return journal[:8] + size + struct.pack("<I", crc32c(size + text)) + text + journal[16 + old :]


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, 1]
    return 1 if value is None else value + 1


def test_the_journal_holds_every_key(interrupted):
    assert set(config_of(interrupted[2])) == KEYS


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_that_differs_refuses_to_resume(interrupted, key):
    command, journal, kept = interrupted
    config = config_of(kept)
    journal.write_bytes(with_config(kept, {**config, key: changed(config[key])}))
    message = error_line(getp(*command, code=1))
    assert f" another job: {key} was " in message and message.count(" now") == 1
    if config.pop(key) is None:
        return
    journal.write_bytes(with_config(kept, config))
    assert f": {key} was none and is " in error_line(getp(*command, code=1))


OPTIONS = {
    "odd_window": ["--odd_win", "7"],
    "temperature": ["-T", "0.5"],
    "top_p": ["-p", "0.5"],
    "top_k": ["--top-k", "3"],
    "min_p": ["--min-p", "0.25"],
    "seed": ["-s", "3"],
    "steps": ["-n", "300"],
    "max_tokens": ["--max-tokens", "61"],
    "stop": ["--stop", "zq"],
    "shard": ["--shard", "0/2"],
}


@pytest.mark.parametrize("key", [*OPTIONS, "precision", "kv"])
def test_every_option_that_decides_tokens_is_among_the_keys(interrupted, key):
    command, journal, kept = interrupted
    if key in ("precision", "kv"):  # what the other one is depends on the machine
        current = config_of(kept)[key]
        option = "bfloat16" if current == "float32" else "float32"
        flags = (
            ["--precision", option]
            if key == "precision"
            else ["--kv16" if current == "float32" else "--kv32"]
        )
    else:
        flags = OPTIONS[key]
    message = error_line(getp(*command, *flags, code=1))
    assert f"{key} was " in message and "--restart" in message
    assert journal.read_bytes() == kept


def test_another_level_of_the_cpu_is_another_job(interrupted):
    command, journal, kept = interrupted
    level = config_of(kept)["cpu_level"]
    if level == "scalar":
        pytest.skip("this CPU has one level")
    process = start(*command, "--precision", "float32", env={**environment(), "TRIVIUM_CPU_LEVEL": "scalar"})
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1 and f"cpu_level was {level} and is scalar now" in stderr
    assert journal.read_bytes() == kept


def test_chats_add_how_they_are_rendered(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Hi {i}"}]} for i in range(40)]
    source, out = jsonl_input(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.journal"
    command = ["getp", demo_folder(), "-i", source, "-o", out, *JOB, "--date", "2025-06-28"]
    process = start(*command)
    end = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 1500):
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)
    kept = journal.read_bytes()
    config = config_of(kept)
    assert set(config) == KEYS | CHAT_KEYS
    for key in sorted(CHAT_KEYS - {"date"}):
        journal.write_bytes(with_config(kept, {**config, key: changed(config[key])}))
        assert f": {key} was " in error_line(getp(*command, code=1))
    journal.write_bytes(kept)
    assert "date was 2025-06-28 and is 2025-06-29 now" in error_line(
        getp(*command, "--date", "2025-06-29", code=1)
    )
