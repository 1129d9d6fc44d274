"""The installed package: import cost, entry points, stubs, and the examples in the README."""

import doctest
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trivium

PACKAGE = Path(trivium.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, **options)


def python(code, **options):
    return run(sys.executable, "-c", code, **options)


def test_version_is_the_same_everywhere():
    assert trivium.__version__ == importlib.metadata.version("trivium")
    assert trivium.build_id().startswith(trivium.__version__)
    assert trivium.__version__ in run(PACKAGE / "bin" / "getp", "--version").stdout


def test_numpy_is_the_only_dependency():
    required = importlib.metadata.requires("trivium")
    assert [r for r in required if "extra ==" not in r] == ["numpy>=1.26"]


def test_import_is_fast_and_touches_nothing_else():
    """Best of five and in time of the processor, so that a busy machine does not decide; beyond numpy, in ms."""
    code = """
import sys, time, numpy
start = time.process_time()
import trivium
print((time.process_time() - start) * 1e3)
print([m for m in ("torch", "jax", "transformers", "ml_dtypes") if m in sys.modules])
"""
    runs = [python(code).stdout.split("\n") for _ in range(5)]
    assert min(float(r[0]) for r in runs) < 150
    assert runs[0][1] == "[]"


def test_the_library_needs_only_the_c_and_cpp_runtimes():
    allowed = re.compile(
        r"linux-vdso|ld-linux|libc\.|libm\.|libdl|libpthread|librt\.|libstdc\+\+|libgcc_s|libtrivium"
    )
    for file in (PACKAGE / "lib" / "libtrivium.so", PACKAGE / "bin" / "getp", *PACKAGE.glob("_core*.so")):
        needed = re.findall(r"^\s*(\S+)", run("ldd", file).stdout, re.M)
        assert needed
        assert [n for n in needed if not allowed.search(n)] == []


def test_getp_console_script_and_module_run_the_native_driver():
    script = Path(sys.executable).parent / "getp"
    native = run(PACKAGE / "bin" / "getp", "--version")
    assert native.returncode == 0
    for command in ([script], [sys.executable, "-m", "trivium"]):
        assert run(*command, "--version").stdout == native.stdout
        assert run(*command, "--no-such-option").returncode == 2


def test_doctor_describes_python_and_backends():
    done = run(sys.executable, "-m", "trivium", "doctor")
    assert done.returncode == 0, done.stderr
    for word in (trivium.__version__, sys.executable, "cpu", "numpy"):
        assert word in done.stdout


def test_a_relocated_installation_still_runs(tmp_path):
    """cmake --install's layout is bin/ beside lib/: nothing may depend on where the package lies."""
    for folder in ("bin", "lib"):
        (tmp_path / folder).mkdir()
        for file in (PACKAGE / folder).iterdir():
            if file.is_file():
                (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "bin" / "getp").chmod(0o755)
    assert trivium.__version__ in run(tmp_path / "bin" / "getp", "--version", cwd="/").stdout


def test_package_data():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_core.pyi").exists()
    assert trivium.demo_model() == PACKAGE / "demo"
    assert (trivium.demo_model() / "config.json").exists()


def test_public_names_exist_and_backends_report():
    assert all(hasattr(trivium, name) for name in trivium.__all__)
    reports = {b["name"]: b for b in trivium.backends()}
    assert reports["cpu"]["loaded"]
    assert all(b["loaded"] or b["reason"] for b in reports.values())
    assert trivium.cpu_level()


def test_thread_count_can_be_set():
    before = trivium.num_threads()
    try:
        trivium.set_num_threads(1)
        assert trivium.num_threads() == 1
    finally:
        trivium.set_num_threads(0)
    assert trivium.num_threads() == before


def test_stubs_describe_the_module(tmp_path):
    """_core.pyi is what scripts/update_stubs.sh makes from the installed module."""
    pytest.importorskip("pybind11_stubgen")
    fresh = tmp_path / "_core.pyi"
    done = run(ROOT / "scripts" / "update_stubs.sh", Path(sys.executable).parent, fresh)
    assert done.returncode == 0, done.stderr
    assert (ROOT / "python" / "trivium" / "_core.pyi").read_text() == fresh.read_text()


def test_package_type_checks():
    pytest.importorskip("mypy")
    done = run(sys.executable, "-m", "mypy", "-p", "trivium", cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_ops_survive_fork():
    """A forked child starts a thread pool of its own."""
    done = python("""
import os, signal, numpy as np, trivium
x, w = np.ones((64, 256), np.float32), np.ones((256, 256), np.float32)
want = trivium.ops.linear(x, w).numpy()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if np.array_equal(trivium.ops.linear(x, w).numpy(), want) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""")
    assert done.returncode == 0, done.stderr


def readme_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_readme_examples_run(tmp_path, demo_folder):
    blocks = readme_blocks()
    assert blocks
    for block in blocks:
        done = python(block, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_module_docstring_examples_run(demo_folder):
    assert doctest.testmod(trivium).failed == 0
