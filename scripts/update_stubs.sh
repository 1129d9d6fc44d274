#!/usr/bin/env bash
# Regenerates python/trivium/_core.pyi from the installed extension module.
#   update_stubs.sh [VENV/bin]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-.venv/bin}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$bin/python" -m pybind11_stubgen trivium._core --output-dir "$out"
cp "$out/trivium/_core.pyi" python/trivium/_core.pyi
"$bin/ruff" check --fix --quiet python/trivium/_core.pyi
"$bin/ruff" format --quiet python/trivium/_core.pyi
