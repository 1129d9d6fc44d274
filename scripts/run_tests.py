#!/usr/bin/env python3
"""Runs ctest and pytest, then says what passed, failed and was skipped and why.

    run_tests.py --build build/dev [--python .venv/bin/python] [--jobs 2] [-- PYTEST_ARGUMENTS]

Without --python only ctest runs. Exit status 0 when nothing failed and every suite ran at least one test.
"""

import argparse
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Suite:
    name: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # test, reason
    broken: str = ""  # why the suite as a whole did not run

    @property
    def ok(self) -> bool:
        return not self.failed and not self.broken


def run_ctest(build: Path, jobs: int) -> Suite:
    report = (build / "ctest.xml").resolve()
    report.unlink(missing_ok=True)
    # The limit is for tests that hang; the slowest takes a minute and a half on an idle machine.
    command = ["ctest", "--test-dir", build, "--output-on-failure", "-j", jobs, "--timeout", "900"]
    command += ["--output-junit", report]
    limits = ["--test-output-size-passed", 1 << 24, "--test-output-size-failed", 1 << 24]
    code = subprocess.run([*map(str, command + limits), "--no-tests=error"]).returncode
    return read_report("ctest", report, code, add_ctest_entry)


def run_pytest(python: Path, build: Path, arguments: list[str]) -> Suite:
    report = (build / "pytest.xml").resolve()
    report.unlink(missing_ok=True)
    code = subprocess.run([python, "-m", "pytest", f"--junitxml={report}", *arguments]).returncode
    return read_report("pytest", report, code, add_pytest_case)


def read_report(name: str, report: Path, code: int, add: Callable[[Suite, ET.Element], None]) -> Suite:
    suite = Suite(name)
    if not report.exists():
        suite.broken = f"{name} ended with status {code} and wrote no report"
        return suite
    for case in ET.parse(report).iter("testcase"):
        add(suite, case)
    if code != 0 and not suite.failed:
        suite.broken = f"{name} ended with status {code}"
    elif suite.passed == 0 and not suite.failed:
        suite.broken = f"{name} ran no test"
    return suite


def add_pytest_case(suite: Suite, case: ET.Element) -> None:
    test = f"{case.get('classname')}::{case.get('name')}"
    skipped = case.find("skipped")
    if case.find("failure") is not None or case.find("error") is not None:
        suite.failed.append(test)
    elif skipped is not None:
        suite.skipped.append((test, (skipped.get("message") or "no reason given").strip()))
    else:
        suite.passed += 1


RESULT = re.compile(r"^\[ +(OK|SKIPPED|FAILED) +\] ([\w./-]+).* \(\d+ ms\)$")


def add_ctest_entry(suite: Suite, case: ET.Element) -> None:
    """An entry is one GoogleTest case or a whole binary: what counts is the cases its output reports."""
    entry, output = case.get("name", ""), case.findtext("system-out") or ""
    failed_before, reason, cases = len(suite.failed), "no reason given", 0
    lines = output.splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        if line.endswith(": Skipped"):
            reason = following.strip() or reason
        if match := RESULT.match(line):
            cases += 1
            verdict, name = match.groups()
            test = name if name == entry else f"{entry} {name}"
            if verdict == "OK":
                suite.passed += 1
            elif verdict == "SKIPPED":
                suite.skipped.append((test, reason))
            else:
                suite.failed.append(test)
    skipped = case.find("skipped")
    whole_skipped = skipped is not None and (skipped.get("message") or "").startswith("SKIP_")
    if whole_skipped and cases == 0:
        said = re.search(r"^Skipped: (.+)$", output, re.M)
        suite.skipped.append((entry, said.group(1) if said else "no reason given"))
    elif case.get("status") != "run" and not whole_skipped and len(suite.failed) == failed_before:
        suite.failed.append(entry)  # not built, crashed or timed out
    elif cases == 0:
        suite.passed += 1  # not a GoogleTest binary


def print_summary(suites: list[Suite]) -> None:
    print("\n" + "=" * 30 + " summary " + "=" * 30)
    for suite in suites:
        counts = f"{suite.passed} passed, {len(suite.failed)} failed, {len(suite.skipped)} skipped"
        print(f"{suite.name}: {counts}" + (f"; {suite.broken}" if suite.broken else ""))
    for suite in suites:
        for test in suite.failed:
            print(f"FAILED  {suite.name} {test}")
    reasons = Counter(f"{suite.name}: {reason}" for suite in suites for _, reason in suite.skipped)
    for reason, count in reasons.most_common():
        print(f"SKIPPED {count} x {reason}")
    passed, failed = sum(s.passed for s in suites), sum(len(s.failed) or bool(s.broken) for s in suites)
    print(f"{passed} passed, {failed} failed, {sum(reasons.values())} skipped")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("pytest_arguments", nargs="*")
    options = parser.parse_args()
    suites = [run_ctest(options.build, options.jobs)]
    if options.python:
        suites.append(run_pytest(options.python, options.build, options.pytest_arguments))
    print_summary(suites)
    return 0 if all(suite.ok for suite in suites) else 1


if __name__ == "__main__":
    sys.exit(main())
