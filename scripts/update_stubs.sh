#!/usr/bin/env bash
# Regenerates python/trivium/_core.pyi from the installed extension module.
#   update_stubs.sh [VENV/bin [OUTPUT]]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-.venv/bin}
target=${2:-python/trivium/_core.pyi}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$bin/python" -m pybind11_stubgen trivium._core --output-dir "$out"
# The exceptions call themselves trivium.Name, so the generator imports them from there; they are defined here.
"$bin/python" - "$out/trivium/_core.pyi" "$target" <<'PYTHON'
import re
import sys

import trivium._core as core

text = open(sys.argv[1]).read()
text = re.sub(r"^from trivium import \w+\n", "", text, flags=re.M)
if "import numpy\n" not in text:  # the generator may leave it out
    text = text.replace("import typing\n", "import typing\n\nimport numpy\n", 1)
errors = [e for e in vars(core).values() if isinstance(e, type) and issubclass(e, Exception)]
for error in sorted(errors, key=lambda e: len(e.__mro__)):
    bases = ", ".join(b.__name__ for b in error.__bases__)
    text += f'\nclass {error.__name__}({bases}):\n    """{error.__doc__}"""\n'
open(sys.argv[2], "w").write(text)
PYTHON
"$bin/ruff" check --fix --quiet "$target"
"$bin/ruff" format --quiet "$target"
