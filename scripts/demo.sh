#!/usr/bin/env bash
# Runs the batch driver of the installed package on the embedded demo model and prints what it wrote.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:?usage: demo.sh VENV/bin}

model=$("$bin/python" -c 'import trivium; print(trivium.demo_model())')
mkdir -p build/demo
rm -f build/demo/completions.txt*
"$bin/getp" "$model" -m getp -i examples/prompts.txt -o build/demo/completions.txt
printf '\nprompts and completions:\n'
"$bin/python" scripts/show_completions.py "$model" examples/prompts.txt build/demo/completions.txt
