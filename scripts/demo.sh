#!/usr/bin/env bash
# Runs the batch driver of the installed package on the embedded demo model and prints what it wrote.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:?usage: demo.sh VENV/bin}

model=$("$bin/python" -c 'import trivium; print(trivium.demo_model())')
mkdir -p build/demo
rm -f build/demo/completions.txt*
"$bin/getp" "$model" -m getp -i examples/prompts.txt -o build/demo/completions.txt
# Each completion under its prompt; line 1 of the prompt file is their number.
"$bin/getp" "$model" -m decode -i build/demo/completions.txt |
  awk 'NR == FNR { prompt[FNR - 2] = $0; next }
       match($0, /^Decoding #[0-9]+:$/) { k = substr($0, 11); sub(":", "", k); print prompt[k] " ..."; next }
       { print }' examples/prompts.txt -
