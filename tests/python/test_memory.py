"""Memory: peak use of loading and running, and what happens when there is none left.

Peak: VmHWM of a process of its own (anonymous and file-backed pages), at most 1.10 x the weight files + the KV
cache + 300 MB, for MXFP4 and for dense experts, which are transposed into memory of our own.
"""

import json
import os
import subprocess
import sys

import checkpoints as cp
import numpy as np
import pytest

MB = 1 << 20
# 340 MB as MXFP4 (embeddings 128 MB, experts 200 MB), 2 layers
CFG = cp.config(32768, 1024, 1024, 2, 8, 2, 64, 64, 4, 128, max_positions=4096)


def big_dense_tensors(cfg):
    rng = np.random.default_rng(1)
    tensors = {}
    for name, (tag, array) in cp.random_bytes(cfg).items():
        if name.endswith("_scales"):
            continue
        if not name.endswith("_blocks"):
            tensors[name] = tag, array
            continue
        experts, rows, blocks, _ = array.shape
        tensors[name.removesuffix("_blocks")] = "BF16", cp.small_bf16(rng, (experts, 32 * blocks, rows))
    return tensors


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """MXFP4 checkpoint and a dense one with a quarter of the experts, by name."""
    root = tmp_path_factory.mktemp("big")
    few = cp.config(32768, 1024, 1024, 2, 8, 2, 64, 16, 4, 128, max_positions=4096)
    yield {
        "mxfp4": cp.write_hf(root / "mxfp4", None, CFG, tensors=cp.random_bytes(CFG)),
        "dense": cp.write_hf(root / "dense", None, few, mxfp4=False, tensors=big_dense_tensors(few)),
    }
    for path in root.rglob("model.safetensors"):
        path.unlink()


PEAK = """
import json, sys, numpy, trivium

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

path, precision, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = status("VmRSS")
model = trivium.load(path, device="cpu", precision=precision, batch_size=batch)
loaded = status("VmHWM")
prompts = [[(7 * i + 13 * j) % 32768 for i in range(300)] for j in range(batch)]
tokens = [len(r.tokens) for r in model.generate(prompts, max_tokens=8, ignore_eos=True)]
print(json.dumps({"before": before, "loaded": loaded, "peak": status("VmHWM"), "tokens": tokens}))
"""


def kv_bytes(cfg, sequences, positions, element):
    """Pages of 16 positions; a sliding layer's ring holds the window and one step of prefill."""
    full = -(-positions // 16) * 16
    ring = min(full, -(-(cfg.sliding_window + 256 + sequences) // 16) * 16)
    return sum(
        2 * cfg.kv_dim * element * sequences * (ring if cfg.is_sliding(layer) else full)
        for layer in range(cfg.num_layers)
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["mxfp4", "dense"])
def test_peak_memory_is_the_files_the_cache_and_300_mb(folders, kind, precision):
    path, batch = folders[kind], 4
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, precision, str(batch)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["tokens"] == [8] * batch
    files = (path / "model.safetensors").stat().st_size
    assert files > 200 * MB
    cache = kv_bytes(CFG, batch, 308, 4 if precision == "float32" else 2)
    assert seen["peak"] <= 1.10 * files + cache + 300 * MB, {k: v for k, v in seen.items() if k != "tokens"}
    assert seen["peak"] >= 0.5 * files  # the measurement sees the weights


@pytest.mark.parametrize("header", ["even", "odd"])
@pytest.mark.parametrize("kind", ["mxfp4", "dense"])
def test_peak_memory_does_not_depend_on_the_length_of_the_header(tmp_path, kind, header):
    """After an odd header no 16-bit tensor lies where it can be read: each is copied once, its pages given back.

    Embeddings are most of the MXFP4 checkpoint, one layer's experts most of the dense one, so that a second copy of
    either is more than the 300 MB.
    """
    sizes = (131072, 2048, 2048, 1) if kind == "mxfp4" else (32768, 2048, 2048, 1)
    cfg = cp.config(*sizes, 8, 2, 64, 4 if kind == "mxfp4" else 48, 4, 128, max_positions=4096)
    path = cp.write_zeros(tmp_path / "zeros", cfg, mxfp4=kind == "mxfp4", odd_header=header == "odd")
    files = (path / "model.safetensors").stat().st_size
    assert (files > 1000 * MB) and (8 + header_bytes(path)) % 2 == (header == "odd")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, "bfloat16", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["peak"] <= 1.10 * files + kv_bytes(cfg, 1, 308, 2) + 300 * MB, seen
    assert seen["peak"] >= 0.5 * files


def header_bytes(path):
    with (path / "model.safetensors").open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def test_mxfp4_experts_are_never_expanded(folders):
    """Anonymous memory stays far below the weights: they are mapped, not copied."""
    code = PEAK + "\nprint(status('RssAnon'))"
    done = subprocess.run(
        [sys.executable, "-c", code, folders["mxfp4"], "bfloat16", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    anonymous = int(done.stdout.split()[-1])
    assert anonymous < 150 * MB, anonymous


# The model works, then the address space ends a little above what it holds; what needs much more must fail with
# MemoryError and leave the model as it was.
EXHAUST = """
import resource, sys, numpy, trivium
path = sys.argv[1]
model = trivium.load(path, device="cpu", precision="float32")
ids = list(range(20))
want = model.generate(ids, max_tokens=8, ignore_eos=True).tokens
logits = model.logits(ids)
limits = resource.getrlimit(resource.RLIMIT_AS)

def limit(extra):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra if extra else limits[0], limits[1]))

big, one = numpy.ones((64, 1 << 19), numpy.float32), numpy.ones(1 << 19, numpy.float32)  # 128 MB
calls = [
    lambda: model.logits(ids * 100),  # 262 MB of logits
    lambda: trivium.load(path, device="cpu", precision="float32"),  # maps 340 MB
    lambda: trivium.ops.rms_norm(big, one),
]
failed = 0
for extra in (1 << 20, 20 << 20, 96 << 20):  # the first is too little for a thread
    for call in calls:
        limit(extra)
        try:
            call()
        except MemoryError as error:
            failed += 1
            assert isinstance(error, trivium.OutOfMemory), repr(error)
            assert str(error) and "\\n" not in str(error)
        limit(0)
    assert model.generate(ids, max_tokens=8, ignore_eos=True).tokens == want
    assert (model.logits(ids) == logits).all()
print(failed)
"""


def test_exhausted_memory_is_a_memory_error_and_the_next_call_works(folders):
    done = subprocess.run(
        [sys.executable, "-c", EXHAUST, folders["mxfp4"]], capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRIVIUM_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    assert int(done.stdout) == 9


def test_loading_without_memory_for_the_transposed_experts_fails_cleanly(folders):
    code = """
import resource, sys, trivium
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for extra in (64 << 20, 300 << 20):
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
    try:
        trivium.load(sys.argv[1], device="cpu")
        print("loaded")
    except MemoryError as error:
        print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(trivium.load(sys.argv[1], device="cpu").logits([1, 2]).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folders["dense"]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["OutOfMemory", "OutOfMemory", "(2, 32768)"]
