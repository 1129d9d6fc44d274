#!/usr/bin/env python3
"""Installs a build into a temporary folder and asks the getp there what it finds.

check_install.py CMAKE BUILD BACKEND...
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from check_wheel import foreign_libraries


def main() -> int:
    cmake, build, *backends = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        first, folder = Path(temporary, "first"), Path(temporary, "moved")
        subprocess.run([cmake, "--install", build, "--prefix", first], check=True, stdout=subprocess.DEVNULL)
        shutil.move(first, folder)  # it must not depend on where it was put
        faults = foreign_libraries(folder)
        faults += [f"a test backend is installed: {p}" for p in folder.rglob("*emu*")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRIVIUM", "LD_"))}
        report = subprocess.run(
            [folder / "bin/getp", "--doctor"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        print(report)
        for name in backends:
            file = rf"{re.escape(str(folder))}/\S*lib/backends/libtrivium_{name}\.so"
            where = "built in" if name == "cpu" else file
            if not re.search(rf"^backend {name}: {where}", report, re.M):
                faults.append(f"getp does not find the {name} backend")
    print("\n".join(faults) or "fine")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
