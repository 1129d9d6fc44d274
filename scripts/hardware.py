#!/usr/bin/env python3
"""Builds, tests and measures on this machine's GPU; the figures go to bench/results/DEVICE/.

    hardware.py [--parts build test sanitize bench] [--device cuda|hip] [--kit .hardware-kit] [--dry-run]

build     the wheel and the tests, for the architecture of the GPU in this machine only
test      ctest (the entries of the device, and what they share) and pytest with the device
sanitize  compute-sanitizer memcheck and racecheck on chosen op tests (NVIDIA)
bench     kernels beside the roof, then a model with the shapes of gpt-oss-20b: prefill, decode, a batch job,
          transformers in bfloat16 and vLLM in the same run where they are installed; a training step of the
          reference LUT language model; the mLSTM's passes beside mlstm_kernels' Triton kernels
Needs no network when .hardware-kit lies here (`make hardware-kit` on another machine makes it).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/hardware"
PYTEST_FILES = (
    "device",
    "tensor_devices",
    "ops",
    "ops_oracle",
    "ops_oracle_moe",
    "models",
    "batch_invariance",
    "lut",
    "lut_model",
    "lut_properties",
    "lut_large",
    "torch_lut",
    "lut_batch_norm",
    "mlstm_backend",
    "hardware",
)
CHECKPOINT = BUILD / "gpt-oss-20b-random"
SANITIZED = ["test_norm", "test_moe", "test_attention", "test_linear", "test_rope", "test_sampling"]
SANITIZED += ["test_lut", "test_lut_edges", "test_mlstm_forward", "test_mlstm_segments"]
TOKENS = [1, 8, 32, 128, 256]


class Session:
    """Runs commands, keeps what each part took and what failed."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}

    def run(self, name: str, command: list[object], **environment: str) -> str:
        text = " ".join(map(str, command))
        print(f"\n##### {name}: {text}", flush=True)
        if self.dry_run:
            return ""
        start = time.monotonic()
        process = subprocess.Popen(
            [str(c) for c in command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        self.seconds[name] = time.monotonic() - start
        if process.wait() != 0:
            self.failed.append(f"{name} (status {process.returncode})")
        return "".join(lines)


def find_device() -> str:
    """cuda or hip, whichever has a device here."""
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True).returncode == 0:
        return "cuda"
    nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    if any(re.search(r"gfx_target_version [1-9]", n.read_text()) for n in nodes):
        return "hip"
    sys.exit("hardware.py: no NVIDIA or AMD device in this machine")


def device_name(kind: str) -> str:
    if kind == "cuda":
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout
        return re.sub(r"\W+", "-", out.splitlines()[0].strip()).lower()
    return "amd"


def build(session: Session, kind: str, kit: Path) -> None:
    prefix = [f"-DCMAKE_PREFIX_PATH={kit}"] if kit.exists() else []
    backends = [
        f"-DTRIVIUM_CUDA={'ON' if kind == 'cuda' else 'OFF'}",
        f"-DTRIVIUM_HIP={'ON' if kind == 'hip' else 'OFF'}",
        "-DTRIVIUM_CUDA_ARCHS=present",
        "-DTRIVIUM_HIP_ARCHS=present",
    ]
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DTRIVIUM_TESTS=ON",
        "-DTRIVIUM_BENCH=ON",
        "-DTRIVIUM_PYTHON=ON",
    ]
    pybind = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True
    ).stdout.strip()
    if pybind:
        options.append(f"-Dpybind11_DIR={pybind}")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    session.run("configure", ["cmake", "-S", ROOT, "-B", BUILD, *generator, *options, *backends, *prefix])
    session.run("compile", ["cmake", "--build", BUILD, "-j", os.cpu_count()])
    # The package, installed without pip: the module, the library and its backends beside the Python files.
    session.run("package", ["cmake", "--install", BUILD, "--prefix", BUILD / "package/trivium"])
    if not session.dry_run:
        shutil.copytree(ROOT / "python/trivium", BUILD / "package/trivium", dirs_exist_ok=True)


def python_path() -> str:
    return os.pathsep.join(filter(None, [str(BUILD / "package"), os.environ.get("PYTHONPATH", "")]))


def test(session: Session, kind: str) -> None:
    jobs = min(os.cpu_count() or 1, 8)
    wanted = ["--output-on-failure", "--no-tests=error", "-j", jobs, "-E", r"\.(emu32|emu64)$"]
    report = BUILD / "ctest.xml"
    session.run("ctest", ["ctest", "--test-dir", BUILD, *wanted, "--timeout", 120, "--output-junit", report])
    if not session.dry_run and f".{kind}" not in report.read_text():
        session.failed.append(f"ctest ran no test on {kind}")
    files = [f"tests/python/test_{name}.py" for name in PYTEST_FILES]
    command = [sys.executable, "-m", "pytest", "-q", f"--backend={kind}", *files]
    session.run("pytest", command, PYTHONPATH=python_path())


def sanitize(session: Session, kind: str) -> None:
    if kind != "cuda" or not (shutil.which("compute-sanitizer") or session.dry_run):
        print("sanitize: compute-sanitizer is not here; skipped")
        return
    for tool in ("memcheck", "racecheck"):
        for name in SANITIZED:
            program = BUILD / "tests/ops" / name
            if not session.dry_run and not program.exists():
                continue
            session.run(
                f"{tool} {name}",
                ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=3", program, f"--backend={kind}"],
                TRIVIUM_BACKEND_PATH=str(BUILD / "backends"),
            )


def bench(session: Session, kind: str, results: Path, peer: bool) -> None:
    kernels = session.run(
        "kernels",
        [BUILD / "bench/trivium_gpu_kernels", f"{kind}:0", *TOKENS],
        TRIVIUM_BACKEND_PATH=str(BUILD / "backends"),
    )
    rows = [json.loads(line) for line in kernels.splitlines() if line.startswith("{")]
    if not (CHECKPOINT / "model.safetensors").exists():
        session.run("checkpoint", [sys.executable, "bench/make_checkpoint.py", CHECKPOINT, "--layers", 24])
    figures = BUILD / "model.json"
    figures.unlink(missing_ok=True)
    session.run(
        "model",
        [sys.executable, "bench/gpu.py", CHECKPOINT, "--device", f"{kind}:0", "--json", figures]
        + (["--bandwidth", rows[0]["copy_gb_per_s"]] if rows else [])
        + ([] if peer else ["--no-peer"]),
        PYTHONPATH=python_path(),
    )
    bandwidth = ["--bandwidth", rows[0]["copy_gb_per_s"]] if rows else []
    lut_figures = bench_script(session, kind, "lut", bandwidth)
    mlstm_figures = bench_script(session, kind, "mlstm", [] if peer else ["--no-peer"])
    if session.dry_run:
        return
    results.mkdir(parents=True, exist_ok=True)
    model = json.loads(figures.read_text()) if figures.exists() else {}
    record = {"seconds": session.seconds, "kernels": rows, "model": model, "lut": lut_figures}
    record["mlstm"] = mlstm_figures
    (results / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    text = tables(rows, model) + lut_table(lut_figures) + mlstm_table(mlstm_figures)
    (results / "README.md").write_text(text)
    print(f"\n{text}\nwritten to {results}")


def bench_script(session: Session, kind: str, family: str, options: list) -> dict:
    figures = BUILD / f"{family}.json"
    figures.unlink(missing_ok=True)
    script = [sys.executable, f"bench/gpu_{family}.py", "--device", f"{kind}:0", "--json", figures]
    session.run(family, script + options, PYTHONPATH=python_path())
    return json.loads(figures.read_text()) if figures.exists() else {}


def lut_table(figures: dict) -> str:
    if not figures:
        return ""
    lines = [
        "",
        f"LUT language model, {figures['parameters'] / 1e6:.1f} M parameters, {figures['tokens']} tokens a training "
        f"step, {figures['row_gigabytes']:.1f} GB of table rows:",
        "",
        "| part | ms | p10-p90 |",
        "|---|---|---|",
    ]
    names = {"forward_ms": "LUT layers forward", "backward_ms": "LUT layers backward", "layers_ms": "both"}
    for key, name in (names | {"step_ms": "whole step under torch"}).items():
        if key in figures:
            t = figures[key]
            lines.append(f"| {name} | {t['median']:.2f} | {t['p10']:.2f}-{t['p90']:.2f} |")
    if "bound_ms" in figures:
        lines += ["", f"The rows at copy bandwidth take {figures['bound_ms']:.2f} ms."]
    return "\n".join(lines) + "\n"


def mlstm_table(figures: dict) -> str:
    if not figures:
        return ""
    b, nh, length, dqk, dv = figures["shape"]
    lines = [
        "",
        f"mLSTM, {figures['tokens']} tokens of bfloat16 (B {b}, NH {nh}, S {length}, DHQK {dqk}, DHHV {dv}):",
        "",
        "| pass | trivium ms | p10-p90 | TFLOP/s | mlstm_kernels (Triton) ms |",
        "|---|---|---|---|---|",
    ]
    for key, name in (("forward", "forward"), ("both", "forward and backward")):
        t, peer = figures[f"trivium_{key}_ms"], figures.get(f"mlstm_kernels_{key}_ms")
        theirs = f"{peer['median']:.2f}" if peer else "-"
        lines.append(
            f"| {name} | {t['median']:.2f} | {t['p10']:.2f}-{t['p90']:.2f} | {figures[f'{key}_tflops']:.0f} | {theirs} |"
        )
    return "\n".join(lines) + "\n"


def tables(rows: list[dict], model: dict) -> str:
    lines = []
    if rows:
        head = rows[0]
        lines += [
            f"# {head['device']} ({head['arch']}), build {head['build']}",
            "",
            f"Copy within the device: {head['copy_gb_per_s']:.0f} GB/s. Medians with the 10th and 90th percentile, cold cache.",
            "",
            "| kernel | tokens | us | p10-p90 | GB/s | TFLOP/s | of copy bandwidth |",
            "|---|---|---|---|---|---|---|",
        ]
    for r in rows[1:]:
        lines.append(
            f"| {r['kernel']} | {r['tokens']} | {r['median_us']:.1f} | {r['p10_us']:.1f}-{r['p90_us']:.1f} | "
            f"{r['gb_per_s']:.0f} | {r['tflops']:.1f} | {r['of_bandwidth']:.2f} |"
        )
    if model:
        lines += [
            "",
            f"Model with {model['layers']} layers, tokens/s:",
            "",
            *peer_table(model),
        ]
        if "decode_of_bound" in model:
            lines += ["", f"Decode at batch 1 is {model['decode_of_bound']:.2f} of the bandwidth's bound."]
    return "\n".join(lines) + "\n"


def peer_table(model: dict) -> list[str]:
    """Ours and every peer that was installed, tokens/s; a peer that failed says why."""
    peers = {name: figures for name, figures in model["peers"].items() if "error" not in figures}
    lines = [
        " | ".join(["| case", "trivium", *peers]) + " |",
        "|---" * (2 + len(peers)) + "|",
    ]
    cases = {"prefill": lambda f: f["prefill_tokens_per_s"]}
    for batch in model["decode_tokens_per_s"]:
        cases[f"decode, batch {batch}"] = lambda f, batch=batch: f["decode_tokens_per_s"].get(batch)
    cases[f"batch job, {model['job_requests']} requests"] = lambda f: f.get("job_tokens_per_s")
    for name, rate in cases.items():
        rates = [rate(figures) for figures in (model, *peers.values())]
        lines.append(" | ".join([f"| {name}", *(f"{r:.0f}" if r else "-" for r in rates)]) + " |")
    failed = {name: figures["error"] for name, figures in model["peers"].items() if "error" in figures}
    lines += [f"\n{name} could not be measured: {why}" for name, why in failed.items()]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ["build", "test", "sanitize", "bench"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--device", choices=["cuda", "hip"])
    parser.add_argument("--kit", type=Path, default=ROOT / ".hardware-kit")
    parser.add_argument("--no-peer", action="store_true", help="leave the peers out of the bench")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    options = parser.parse_args()
    kind = options.device or ("cuda" if options.dry_run else find_device())
    session = Session(options.dry_run)
    if "build" in options.parts:
        build(session, kind, options.kit.resolve())
    if not session.failed and "test" in options.parts:
        test(session, kind)
    if "sanitize" in options.parts:
        sanitize(session, kind)
    if "bench" in options.parts:
        name = "dry-run" if options.dry_run else device_name(kind)
        bench(session, kind, ROOT / "bench/results" / name, not options.no_peer)
    print("\n".join(f"{name}: {seconds:.0f} s" for name, seconds in session.seconds.items()))
    print("\n".join(f"FAILED {name}" for name in session.failed) or "nothing failed")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
