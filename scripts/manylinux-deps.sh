#!/usr/bin/env bash
# What a manylinux_2_28 container (AlmaLinux 8) lacks for the wheel. Not run yet.
set -euo pipefail

dnf install -y ninja-build ccache pcre2-static pcre2-devel json-devel cli11-devel clang lld llvm
dnf config-manager --add-repo https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
dnf install -y cuda-nvcc-13-0 cuda-cudart-devel-13-0
