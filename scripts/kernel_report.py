#!/usr/bin/env python3
"""Reads registers, shared memory, spills and matrix instructions off the compiled kernels.

kernel_report.py --ptx BUILD/tests/isa --hip BUILD/cpp/hip --llvm clang++-19 [--table docs/kernels.md] [--check WHAT]

Without --check it writes the table. WHAT: no-spills, matrix-instructions, budgets, table, library. Exit status 1 when
a check fails, 77 when this build has not the targets of the table.

Spills on the targets that the table leaves out: ptxas reports them while it compiles, as errors with TRIVIUM_WERROR and
in `make wheel`; for AMD, check_wheel.py reads them off the library, and `library` tests that reading.
"""

import argparse
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HIP_TARGETS = ("gfx90a", "gfx942", "gfx1100")  # CI's
SHARED_LIMIT = {"sm_90a": 48 << 10, "gfx90a": 64 << 10, "gfx942": 64 << 10, "gfx1100": 64 << 10}
REGISTER_LIMIT = {"sm_90a": 255, "gfx90a": 512, "gfx942": 512, "gfx1100": 256}
MATRIX = {"sm_90a": "mma.sync", "gfx90a": "v_mfma_", "gfx942": "v_mfma_"}
# Kernels with products of bf16 or f16 tiles.
MATRIX_KERNEL = re.compile(r"\b(gemm|attention|mlstm_chunk)\w*_kernel<(?:trivium::)?(bf16|f16)\b")


@dataclass
class Kernel:
    name: str
    registers: int = 0
    shared_bytes: int = 0
    spilled: int = 0  # registers (AMD) or bytes (NVIDIA)
    scalar_spilled: int = (
        0  # AMD: scalar registers kept in lanes of a vector register, which is no memory access
    )
    scratch_bytes: int = 0  # stack of a thread: arrays indexed at run time, or spills
    matrix: int = 0  # instructions


@dataclass
class Target:
    name: str
    kernels: dict[str, Kernel] = field(default_factory=dict)


def demangle(names: list[str]) -> dict[str, str]:
    tool = shutil.which("c++filt") or "llvm-cxxfilt-19"
    out = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, map(short, out.splitlines())))


def short(name: str) -> str:
    """`void trivium::cuda::f<trivium::bf16, 4>(Args...)` -> `f<bf16, 4>`"""
    name = re.sub(r"^(?:void|auto) ", "", name)
    name = re.sub(r"trivium::(?:cuda::|hip::)?", "", name).replace("(anonymous namespace)::", "")
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0 and i:
            return name[:i]
    return name


# NVIDIA


def read_cuda(folder: Path) -> Target:
    raw: dict[str, Kernel] = {}
    for report in sorted(folder.glob("*/ptxas.txt")):
        current = None
        for line in report.read_text().splitlines():
            if match := re.search(r"Compiling entry function '(\w+)'", line):
                current = raw[match[1]] = Kernel(match[1])
            elif current is None:
                continue
            elif match := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line
            ):
                current.scratch_bytes = int(match[1])
                current.spilled = int(match[2]) + int(match[3])
            elif match := re.search(r"Used (\d+) registers", line):
                current.registers = int(match[1])
                shared = re.search(r"(\d+) bytes smem", line)
                current.shared_bytes = int(shared[1]) if shared else 0
        for ptx in report.parent.glob("*.ptx"):
            for match in re.finditer(r"\.entry (\w+)\((.*?)^}", ptx.read_text(), re.S | re.M):
                if match[1] in raw:
                    raw[match[1]].matrix = match[2].count(MATRIX["sm_90a"])
    return named("sm_90a", raw)


def named(target: str, raw: dict[str, Kernel]) -> Target:
    names = demangle(list(raw))
    for mangled, kernel in raw.items():
        kernel.name = names[mangled]
    return Target(target, {k.name: k for k in sorted(raw.values(), key=lambda k: k.name)})


# AMD


class Llvm:
    """The binary tools beside the compiler."""

    def __init__(self, compiler: str):
        found = shutil.which(compiler) or compiler
        self.folder = Path(found).resolve().parent

    def run(self, tool: str, *arguments: str) -> str:
        return subprocess.run(
            [self.folder / tool, *arguments], check=True, capture_output=True, text=True
        ).stdout


def code_object(llvm: Llvm, obj: Path, target: str, folder: Path) -> Path | None:
    """The code object of one target in an object file; None when it holds no kernels for it."""
    bundle, out = folder / "bundle", folder / "code"
    if ".hip_fatbin" not in llvm.run("llvm-readelf", "-S", str(obj)):
        return None
    llvm.run("llvm-objcopy", f"--dump-section=.hip_fatbin={bundle}", str(obj), str(folder / "rest"))
    listed = llvm.run("clang-offload-bundler", "--type=o", f"--input={bundle}", "--list").split()
    wanted = [name for name in listed if name.endswith("--" + target)]
    if not wanted:
        return None
    llvm.run(
        "clang-offload-bundler",
        "--type=o",
        "--unbundle",
        f"--targets={wanted[0]}",
        f"--input={bundle}",
        f"--output={out}",
    )
    return out


NOTES = {
    ".vgpr_count": "registers",
    ".group_segment_fixed_size": "shared_bytes",
    ".private_segment_fixed_size": "scratch_bytes",
}


def read_notes(text: str) -> dict[str, Kernel]:
    """Kernels of the metadata note, which lists one map a kernel."""
    kernels = {}
    for block in re.split(r"^\s*- \.(?=agpr_count|args)", text, flags=re.M)[1:]:
        values = dict(re.findall(r"^\s*(\.\w+):\s+(\S+)$", "." + block, re.M))
        if ".symbol" not in values:
            continue
        mangled = values[".symbol"].strip("'").removesuffix(".kd")
        kernel = kernels[mangled] = Kernel(mangled)
        for key, attribute in NOTES.items():
            setattr(kernel, attribute, int(values[key]))
        kernel.spilled = int(values[".vgpr_spill_count"])
        kernel.scalar_spilled = int(values[".sgpr_spill_count"])
    return kernels


def count_matrix(disassembly: str, kernels: dict[str, Kernel], instruction: str) -> None:
    for part in re.split(r"^[0-9a-f]+ <", disassembly, flags=re.M)[1:]:
        name, _, body = part.partition(">:")
        if name in kernels:
            kernels[name].matrix = body.count(instruction)


def read_hip(folder: Path, llvm: Llvm, target: str) -> Target:
    raw: dict[str, Kernel] = {}
    for obj in sorted(folder.rglob("*.cu.o")):
        with tempfile.TemporaryDirectory() as temporary:
            code = code_object(llvm, obj, target, Path(temporary))
            if code is None:
                continue
            kernels = read_notes(llvm.run("llvm-readelf", "--notes", str(code)))
            if target in MATRIX:
                count_matrix(llvm.run("llvm-objdump", "-d", str(code)), kernels, MATRIX[target])
            raw.update(kernels)
    return named(target, raw)


# In clang's bundle: the magic, how many entries, and of each where it lies from the magic on, its size, and the
# length and text of its name. A library holds one bundle an object file.
MAGIC = b"__CLANG_OFFLOAD_BUNDLE__"


def code_objects(section: bytes) -> list[tuple[str, bytes]]:
    """(target, code object) of all bundles in a .hip_fatbin section."""
    found = []
    for match in re.finditer(re.escape(MAGIC), section):
        start = match.start()
        at = start + len(MAGIC)
        (count,) = struct.unpack_from("<Q", section, at)
        at += 8
        for _ in range(count):
            offset, size, length = struct.unpack_from("<QQQ", section, at)
            at += 24
            target = section[at : at + length].decode().rpartition("--")[2]
            at += length
            if size and target.startswith("gfx"):
                found.append((target, section[start + offset : start + offset + size]))
    return found


def read_hip_library(library: Path, llvm: Llvm) -> list[Target]:
    """The kernels of every target in a library, without their instructions."""
    raw: dict[str, dict[str, Kernel]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        section, code = Path(temporary, "section"), Path(temporary, "code")
        llvm.run(
            "llvm-objcopy", f"--dump-section=.hip_fatbin={section}", str(library), str(code)
        )  # llvm-objcopy copies the library too
        for target, code_object_bytes in code_objects(section.read_bytes()):
            code.write_bytes(code_object_bytes)
            kernels = read_notes(llvm.run("llvm-readelf", "--notes", str(code)))
            raw.setdefault(target, {}).update(kernels)
    return [named(target, kernels) for target, kernels in sorted(raw.items())]


# Table and checks

HEAD = """# Registers and shared memory of the kernels

Written by `scripts/kernel_report.py` (`make kernel-table`) from the compiled kernels; a test fails when it is out of
date. Registers are those of a thread ({nvcc}; {clang}). Shared memory is the static part; a launch may add
more. Scratch is memory of a thread outside the registers. Matrix counts the instructions `mma.sync` (PTX) and
`v_mfma_` in the code. No register spills to memory, or `isa.no-spills` fails, and `make wheel` for its further targets;
scalar spills, on AMD, are scalar registers kept in lanes of a vector register.
"""


def version(tool: str, pattern: str) -> str:
    try:
        out = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return "none"
    match = re.search(pattern, out)
    return match[1] if match else "unknown"


def table(targets: list[Target], compilers: dict[str, str]) -> str:
    lines = [HEAD.format(**compilers)]
    for t in targets:
        lines += [f"## {t.name}", ""]
        lines += [
            "| kernel | registers | scalar spills | shared bytes | scratch bytes | matrix |",
            "|---|---|---|---|---|---|",
        ]
        for k in t.kernels.values():
            figures = (k.registers, k.scalar_spilled, k.shared_bytes, k.scratch_bytes, k.matrix)
            lines.append(f"| `{k.name}` | " + " | ".join(map(str, figures)) + " |")
        lines.append("")
    return "\n".join(lines)


def spills(targets: list[Target]) -> list[str]:
    faults = []
    for target in targets:
        unit = "bytes" if target.name.startswith("sm") else "registers"
        for kernel in target.kernels.values():
            if kernel.spilled:
                faults.append(f"{target.name}: {kernel.name} spills {kernel.spilled} {unit}")
    return faults


def matrix_faults(targets: list[Target]) -> list[str]:
    faults = []
    for t in targets:
        wanted = [k for k in t.kernels.values() if MATRIX_KERNEL.search(k.name)]
        if t.name not in MATRIX:
            continue
        if not wanted:
            faults.append(f"{t.name}: no kernel with products of bf16 or f16")
        faults += [f"{t.name}: {k.name} has no {MATRIX[t.name]}" for k in wanted if k.matrix == 0]
    return faults


def budget_faults(targets: list[Target]) -> list[str]:
    faults = []
    for t in targets:
        for k in t.kernels.values():
            if k.shared_bytes > SHARED_LIMIT[t.name]:
                faults.append(f"{t.name}: {k.name} has {k.shared_bytes} bytes of static shared memory")
            if k.registers > REGISTER_LIMIT[t.name]:
                faults.append(f"{t.name}: {k.name} has {k.registers} registers")
    return faults


def library_faults(library: Path, llvm: Llvm, targets: list[Target]) -> list[str]:
    """Spills in a library, and where its kernels are not those of the object files."""
    faults = []
    inside = {t.name: t for t in read_hip_library(library, llvm)}
    for target in targets:
        found = inside[target.name].kernels if target.name in inside else {}
        if differing := set(found) ^ set(target.kernels):
            faults.append(
                f"{library.name} and the object files differ in {sorted(differing)[:4]} of {target.name}"
            )
    return faults + spills(list(inside.values()))


def check_table(path: Path, text: str) -> list[str]:
    old = path.read_text() if path.exists() else ""
    if old == text:
        return []
    changed = sorted(set(text.splitlines()) ^ set(old.splitlines()))
    return [f"{path} is out of date (make kernel-table writes it); first differences:", *changed[:8]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ptx", type=Path, required=True)
    parser.add_argument("--hip", type=Path, required=True)
    parser.add_argument("--llvm", default="clang++-19")
    parser.add_argument("--table", type=Path, default=Path("docs/kernels.md"))
    parser.add_argument(
        "--check", choices=["no-spills", "matrix-instructions", "budgets", "table", "library"]
    )
    parser.add_argument("--library", type=Path, help="libtrivium_hip.so, for --check library")
    options = parser.parse_args()
    llvm = Llvm(options.llvm)
    targets = [read_cuda(options.ptx), *(read_hip(options.hip, llvm, t) for t in HIP_TARGETS)]
    if missing := [t.name for t in targets if not t.kernels]:
        print(f"Skipped: this build has no kernels for {', '.join(missing)}")
        return 77
    compilers = {
        "nvcc": "nvcc " + version("nvcc", r"V(\d+\.\d+\.\d+)"),
        "clang": "clang " + version(options.llvm, r"version (\d+\.\d+\.\d+)"),
    }
    text = table(targets, compilers)
    if options.check is None:
        options.table.write_text(text)
        print(f"{options.table}: {sum(len(t.kernels) for t in targets)} kernels")
        return 0
    faults = {
        "no-spills": lambda: spills(targets),
        "matrix-instructions": lambda: matrix_faults(targets),
        "budgets": lambda: budget_faults(targets),
        "table": lambda: check_table(options.table, text),
        "library": lambda: library_faults(options.library, llvm, targets[1:]),
    }[options.check]()
    print(
        "\n".join(faults) or f"{sum(len(t.kernels) for t in targets)} kernels of {len(targets)} targets: fine"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
