#!/usr/bin/env bash
# Runs every libFuzzer target of a build folder for some seconds each; the first finding ends the run.
#   run_fuzzers.sh BUILD_DIR [SECONDS]
set -euo pipefail
build=${1:?usage: run_fuzzers.sh BUILD_DIR [SECONDS]}
seconds=${2:-30}

shopt -s nullglob
targets=("$build"/tests/fuzz/fuzz_*)
count=0
for target in "${targets[@]}"; do
  [ -f "$target" ] && [ -x "$target" ] || continue
  name=$(basename "$target")
  corpus=$build/corpus/$name
  seeds=tests/fuzz/corpus/${name#fuzz_}
  mkdir -p "$corpus"
  echo "fuzz: $name, $seconds s"
  "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=0 -print_funcs=0 -print_final_stats=1 \
    -artifact_prefix="$build/" "$corpus" $([ -d "$seeds" ] && echo "$seeds")
  count=$((count + 1))
done
[ "$count" -gt 0 ] || { echo "fuzz: no target in $build/tests/fuzz" >&2; exit 1; }
echo "fuzz: $count targets, $seconds s each, no findings"
