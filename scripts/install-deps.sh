#!/usr/bin/env bash
# Installs the system packages of the named groups where they are missing: build, test, lint, fuzz, gpu
# (the HIP compiler; CUDA's nvcc is not in Debian).
# Debian and Ubuntu only; elsewhere it says what to install and goes on.
set -euo pipefail

build=(g++ cmake ninja-build make git ccache python3 python3-dev python3-venv
  nlohmann-json3-dev libpcre2-dev libcli11-dev)
test=(libgtest-dev)
lint=(clang-format-15)
fuzz=(clang-15)
gpu=(clang-19 clang-tools-19 lld-19 llvm-19)  # clang-tools-19 holds clang-offload-bundler

missing=()
for group in "$@"; do
  declare -n packages=$group
  for package in "${packages[@]}"; do
    if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then
      missing+=("$package")
    fi
  done
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "install-deps: no apt-get here; the build needs the equivalents of: ${missing[*]}" >&2
  exit 0
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "install-deps: missing packages, and no right to install them. Run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
echo "install-deps: installing ${missing[*]}"
"${root[@]}" apt-get update -q
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
