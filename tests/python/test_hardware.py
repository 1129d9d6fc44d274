"""What `make hardware` will run: its commands, and the LUT part of its measurements at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import config, oracle, write_hf

ROOT = Path(__file__).resolve().parents[2]


def script(*command, **env):
    command = [sys.executable, *map(str, command)]
    env = {**os.environ, **{k: str(v) for k, v in env.items()}}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)


def test_a_dry_run_names_every_measurement():
    run = script("scripts/hardware.py", "--dry-run", "--device", "cuda", "--parts", "build", "test", "bench")
    assert run.returncode == 0, run.stderr
    for part in (
        "trivium_gpu_kernels cuda:0",
        "bench/gpu.py ",
        "bench/gpu_lut.py --device cuda:0",
        "bench/gpu_mlstm.py --device",
    ):
        assert part in run.stdout
    for name in run.stdout.split():
        if name.startswith("tests/python/"):
            assert (ROOT / name).exists(), name


@pytest.mark.backend
def test_the_lut_step_runs_at_a_tiny_size(backend):
    run = script("bench/gpu_lut.py", "--device", backend, "--small", "--rounds", "2")
    assert run.returncode == 0, run.stderr
    assert "tried: forward_ms backward_ms layers_ms" in run.stdout
    if backend.startswith("emu"):
        assert "without the whole step" in run.stdout
    else:
        pytest.importorskip("torch")
        assert run.stdout.rstrip().endswith("step_ms")


@pytest.mark.backend
def test_the_mlstm_passes_run_at_a_tiny_size(backend):
    run = script("bench/gpu_mlstm.py", "--device", backend, "--small", "--rounds", "1")
    assert run.returncode == 0, run.stderr
    assert "tried: trivium_forward_ms trivium_both_ms" in run.stdout


def test_the_lut_step_counts_the_reference_model():
    """lut.md 9.1 and 9.3: 812.7 M parameters; 4.06 M row reads and 520 MB a layer in one forward pass."""
    sys.path.insert(0, str(ROOT / "bench"))
    import gpu_lut

    c = gpu_lut.REFERENCE
    attention = c["num_layers"] * c["num_heads"] * c["n_detectors"] * 2**16 * 32
    pe = c["num_layers"] * 31 * 64 * 4
    rows = c["num_layers"] * 16 * 2**10 * 32 + 16 * 2**10 * 256
    assert attention + pe + rows + 256 * 32 == gpu_lut.PARAMETERS
    one_layer = 128 * 496 * 64 * 32 * 4
    assert abs(one_layer - 520e6) < 1e6
    assert 30 * one_layer < gpu_lut.traffic_bytes(c, 128) < 30 * one_layer * 1.05


@pytest.mark.parametrize("family", ["lut", "mlstm"])
@pytest.mark.parametrize("device", ["cpu", "emu32"])
def test_families_are_measured_on_gpus_alone(family, device):
    run = script(f"bench/gpu_{family}.py", "--device", device)
    assert run.returncode != 0 and f"measures GPUs, not {device}" in run.stderr


def test_the_tables_show_what_was_measured():
    sys.path.insert(0, str(ROOT / "scripts"))
    import hardware

    ms = {"median": 4.5, "p10": 4.25, "p90": 4.75}
    figures = {
        "shape": [8, 8, 8192, 256, 512],
        "tokens": 65536,
        "trivium_forward_ms": ms,
        "forward_tflops": 97.4,
    }
    figures |= {"trivium_both_ms": ms, "both_tflops": 61.0, "mlstm_kernels_both_ms": {"median": 21.1}}
    table = hardware.mlstm_table(figures)
    assert "65536 tokens" in table and "| forward | 4.50 | 4.25-4.75 | 97 | - |" in table
    assert "| forward and backward | 4.50 | 4.25-4.75 | 61 | 21.10 |" in table
    assert hardware.mlstm_table({}) == ""


def test_the_kit_for_machines_without_network_is_whole_and_small(tmp_path):
    if not Path("/usr/include/gtest").exists():
        pytest.skip("GoogleTest's headers are not installed")
    script = ROOT / "scripts/hardware_kit.sh"
    subprocess.run([script, tmp_path / "kit"], check=True, capture_output=True)
    files = [p for p in (tmp_path / "kit").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 40e6
    text = """cmake_minimum_required(VERSION 3.25)
project(kit CXX)
find_package(nlohmann_json 3 REQUIRED)
find_package(CLI11 REQUIRED)
find_package(GTest REQUIRED)
add_executable(uses main.cpp)
target_link_libraries(uses nlohmann_json::nlohmann_json CLI11::CLI11 GTest::gtest)
"""
    (tmp_path / "CMakeLists.txt").write_text(text)
    (tmp_path / "main.cpp").write_text(
        "#include <gtest/gtest.h>\nTEST(Kit, Links) {}\nint main() { return 0; }\n"
    )
    prefix = f"-DCMAKE_PREFIX_PATH={tmp_path / 'kit'}"
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build", prefix], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cache = (tmp_path / "build/CMakeCache.txt").read_text()
    for package in ("nlohmann_json", "CLI11", "GTest"):
        assert f"{package}_DIR:PATH={tmp_path}/kit/" in cache, package
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True, capture_output=True)


STUB = """
import types
class SamplingParams:
    def __init__(self, temperature, max_tokens, ignore_eos, detokenize):
        assert temperature == 0 and ignore_eos and not detokenize
        self.max_tokens = max_tokens
class LLM:
    def __init__(self, model, skip_tokenizer_init, dtype, max_model_len, gpu_memory_utilization,
                 enable_prefix_caching, disable_log_stats):
        hf_config = types.SimpleNamespace(vocab_size=320)
        self.llm_engine = types.SimpleNamespace(model_config=types.SimpleNamespace(hf_config=hf_config))
    def generate(self, prompts, params, use_tqdm):
        import time
        assert all(list(p) == ["prompt_token_ids"] for p in prompts)
        time.sleep(0.01 * params.max_tokens)
"""


def test_the_model_part_runs_with_its_peers(tmp_path):
    """On the CPU and a tiny model, beside a stand-in for vLLM and a peer that breaks; then the table of a report."""
    cfg = config(320, 64, 96, 2, 4, 2, 16, 4, 2, 64)
    folder = write_hf(tmp_path / "model", oracle.random_weights(cfg, seed=2), cfg)
    (tmp_path / "vllm.py").write_text(STUB)
    (tmp_path / "transformers.py").write_text("raise RuntimeError('built for\\nanother machine')")
    sizes = "--batches 1 2 --prefill 16 --steps 400 --requests 4 --job-tokens 4 --rounds 1".split()
    figures = tmp_path / "figures.json"
    run = script(
        "bench/gpu.py",
        folder,
        "--device",
        "cpu",
        "--allow-cpu",
        *sizes,
        "--json",
        figures,
        PYTHONPATH=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    model = json.loads(figures.read_text())
    peers = model["peers"]
    assert set(peers) == {"transformers", "vllm"}
    assert 0 < peers["vllm"]["decode_tokens_per_s"]["1"] < 200  # 10 ms a token
    for measured in (model, peers["vllm"]):
        assert measured["prefill_tokens_per_s"] > 0 and set(measured["decode_tokens_per_s"]) == {"1", "2"}
    assert "transformers could not be measured: RuntimeError: built for" in run.stdout

    sys.path.insert(0, str(ROOT / "scripts"))
    import hardware

    table = "\n".join(hardware.peer_table(model))
    assert table.startswith("| case | trivium | vllm |\n|---|---|---|\n| prefill | ")
    assert "| batch job, 4 requests | " in table
    assert table.endswith("\ntransformers could not be measured: RuntimeError: built for")
