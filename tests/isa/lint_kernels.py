#!/usr/bin/env python3
"""Kernels name no vendor: what may not stand in cpp/cuda outside the files that are one vendor's own.

lint_kernels.py cpp/cuda [FILE ...]    files outside of it that kernels include
"""

import re
import sys
from pathlib import Path

# Only these may: they are what the names are hidden behind.
OWN = {"vendor_cuda.cuh", "tile_sm80.cuh", "gpu.cuh", "tile.cuh"}
FORBIDDEN = [
    (r"\b(?:cuda|hip)(?:[A-Z_]\w*|::)", "a name of the CUDA or HIP API"),
    (r"\b(?:cu|nv)[A-Z]\w*\(", "a call of a vendor's library"),
    (
        r"\b__(?:shfl|ballot|any|all|activemask|sync|ldg|ldcs|popc|threadfence|cvta|builtin_amdgcn)\w*",
        "an intrinsic",
    ),
    (
        r"\b__(?:global|device|host|shared|constant|launch_bounds|forceinline)__",
        "an attribute; gpu.cuh has macros",
    ),
    (r"\b__(?:CUDA|HIP|NVCC|AMDGCN|gfx|GFX)\w*", "a test for one compiler or architecture"),
    (r"\b0x[fF]{8}(?:[uU]|\b)", "a literal lane mask; use full_mask()"),
    (r"\basm\b", "inline assembly"),
    (r"<<<", "a launch; use launch()"),
    (r"\bwarpSize\b", "warpSize; use kWarpSize"),
    (r"\b(?:float|int|uint|half)[234]\b|\b__(?:nv_bfloat16|half)\b", "a vendor's type"),
]
PLANTED = [
    "cudaMalloc(&p, 4);",
    "hipStream_t s;",
    "v += __shfl_xor_sync(m, v, 1);",
    "__syncthreads();",
    "const auto m = 0xffffffffu;",
    'asm("mov");',
    "k<<<1, 32>>>();",
    "#if defined(__CUDA_ARCH__)",
    "__global__ void f();",
    "uint4 x;",
]


def code_of(text: str) -> str:
    """The text without comments, strings and include lines; line numbers stay."""
    keep_lines = lambda m: "\n" * m.group().count("\n")
    text = re.sub(r"/\*.*?\*/", keep_lines, text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\s*#\s*include[^\n]*", "", text, flags=re.M)
    return re.sub(r'(?<!asm\()"(?:\\.|[^"\\\n])*"', '""', text)


def faults(text: str) -> list[tuple[int, str, str]]:
    found = []
    for number, line in enumerate(code_of(text).splitlines(), 1):
        for pattern, what in FORBIDDEN:
            if match := re.search(pattern, line):
                found.append((number, match.group(), what))
    return found


def main() -> int:
    for sample in PLANTED:
        if not faults(sample):
            print(f"the lint itself is broken: it accepts {sample!r}")
            return 2
    root = Path(sys.argv[1])
    files = sorted([*root.glob("*.cuh"), *root.rglob("*.cu"), *root.glob("kernels/*.cuh")])
    files = [f for f in files if f.name not in OWN]
    files += map(Path, sys.argv[2:])
    if len(files) < 3:
        print(f"no kernels below {root}")
        return 2
    count = 0
    for file in files:
        for number, word, what in faults(file.read_text()):
            print(f"{file}:{number}: {word}: {what}")
            count += 1
    print(f"{len(files)} files, {count} faults")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
