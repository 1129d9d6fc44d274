#!/usr/bin/env python3
"""Checks the wheel in dist/: its size, what its libraries need, that no AMD kernel spills on any target, and that it
runs in a clean environment. (NVIDIA kernels that spill do not compile in `make wheel`.)

check_wheel.py [WHEEL] [--max-megabytes 60] [--llvm clang++-19]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from kernel_report import Llvm, read_hip_library, spills

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "libc.so.6",
    "libstdc++.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
}
OURS = {"libtrivium.so"}
MEMBERS = [
    r"trivium/lib/libtrivium\.so",
    r"trivium/lib/backends/libtrivium_cuda\.so",
    r"trivium/lib/backends/libtrivium_hip\.so",
    r"trivium/bin/getp",
    r"trivium/_core\..*\.so",
    r"trivium/_jax\..*\.so",
    r".*/licenses/LICENSES\.md",
]


def needed(path: Path) -> set[str]:
    out = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", out))


def is_elf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def foreign_libraries(folder: Path) -> list[str]:
    """What the libraries and programs in a folder need beyond the C and C++ runtimes."""
    faults, count = [], 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and is_elf(p)):
        count += 1
        if extra := needed(path) - ALLOWED - OURS:
            faults.append(f"{path.relative_to(folder)} needs {', '.join(sorted(extra))}")
    return faults if count else [f"no library in {folder}"]


def check_contents(wheel: Path, max_bytes: int, folder: Path) -> list[str]:
    faults = []
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB")
    if size > max_bytes:
        faults.append(f"the wheel is {size / 1e6:.1f} MB, at most {max_bytes / 1e6:.0f} are allowed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        names = archive.namelist()
    for info in sorted(folder.rglob("*.so")):
        print(f"  {info.relative_to(folder)}: {info.stat().st_size / 1e6:.1f} MB")
    faults += [f"no {m} in the wheel" for m in MEMBERS if not any(re.fullmatch(m, n) for n in names)]
    if emulated := [n for n in names if "emu" in n]:
        faults.append(f"test backends in the wheel: {emulated}")
    return faults + foreign_libraries(folder)


def check_hip_kernels(library: Path, compiler: str) -> list[str]:
    """All of cpp/gpu.cmake's targets are there, and nothing spills on any."""
    wanted = re.search(r"set\(TRIVIUM_HIP_ALL ([^)]+)\)", (ROOT / "cpp/gpu.cmake").read_text())[1].split()
    targets = read_hip_library(library, Llvm(compiler))
    kernels = {target.name: len(target.kernels) for target in targets}
    print(f"  kernels: {kernels}")
    if sorted(kernels) != sorted(wanted) or len(set(kernels.values())) != 1:
        return [f"{library.name} has kernels {kernels}, expected as many for each of {', '.join(wanted)}"]
    return spills(targets)


def try_installed(wheel: Path, folder: Path) -> None:
    """Installs into a fresh environment and runs the demo with nothing else on PATH."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRIVIUM", "PYTHON", "LD_"))}
    environment["PATH"] = str(folder / "venv/bin")

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(c) for c in command], env=environment, cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    report = run(python, "-m", "trivium", "doctor")
    print(report.rstrip())
    for backend in ("cuda", "hip"):
        if not re.search(rf"backend {backend}: .*libtrivium_{backend}\.so", report):
            sys.exit(f"the installed package does not find its {backend} backend")
    model = run(python, "-c", "import trivium; print(trivium.demo_model())").strip()
    prompts = ROOT / "examples/prompts.txt"
    run(folder / "venv/bin/getp", model, "-m", "getp", "-i", prompts, "-o", folder / "out.txt")
    lines = (folder / "out.txt").read_text().splitlines()
    expected = int(prompts.read_text().split("\n", 1)[0])
    if len(lines) != expected or not all(line.strip() for line in lines):
        sys.exit(f"the demo wrote {len(lines)} completions, expected {expected}")
    print(f"the demo wrote {len(lines)} completions in a clean environment")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", nargs="?", type=Path)
    parser.add_argument("--max-megabytes", type=float, default=60)
    parser.add_argument("--llvm", default="clang++-19")
    options = parser.parse_args()
    built = sorted((ROOT / "dist").glob("trivium-*.whl"), key=lambda p: p.stat().st_mtime)
    wheel = options.wheel or (built[-1] if built else None)
    if wheel is None:
        sys.exit("no wheel in dist/; `make wheel` builds one")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        faults = check_contents(wheel.resolve(), int(options.max_megabytes * 1e6), folder / "wheel")
        if not faults:
            hip = folder / "wheel/trivium/lib/backends/libtrivium_hip.so"
            faults = check_hip_kernels(hip, options.llvm)
        if faults:
            print("\n".join(faults))
            return 1
        try_installed(wheel.resolve(), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
