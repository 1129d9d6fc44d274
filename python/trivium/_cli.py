"""`python -m trivium`."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

from ._version import __version__

GETP = Path(__file__).parent / "bin" / "getp"


def main() -> NoReturn:
    """`python -m trivium doctor` describes the installation; other arguments go to getp."""
    arguments = sys.argv[1:]
    if arguments == ["doctor"]:
        _print_python_side()
        arguments = ["--doctor"]
    _exec_getp(arguments or ["--help"])


def _print_python_side() -> None:
    from . import _core

    rows = {
        "trivium": f"{__version__} (build {_core.build_id()})",
        "package": str(Path(__file__).parent),
        "python": f"{sys.version.split()[0]} ({sys.executable})",
    }
    for name in ("numpy", "ml_dtypes"):
        rows[name] = "found" if importlib.util.find_spec(name) else "not installed"
    for name, value in rows.items():
        print(f"{name + ':':<14}{value}")
    sys.stdout.flush()


def _exec_getp(arguments: list[str]) -> NoReturn:
    try:
        os.execv(GETP, ["getp", *arguments])
    except OSError as error:
        sys.exit(f"getp: cannot start {GETP}: {error.strerror}")
