"""Runs the tests of interpreted Triton kernels in one child process and reports them as its own.

TRITON_INTERPRET is read when a kernel is decorated, so interpreted and compiled kernels cannot
share a process. The first such test to run starts a child pytest with all of them; each then
reports the outcome that it had there, with the child's own traceback.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

OPTION = "--triton-interpreted"  # given to the child: where it writes its outcomes
FIXTURE_ID = "triton-interpreted"


def is_interpreted(item: pytest.Item) -> bool:
    """Whether the test's `impl` is Triton under the interpreter."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec._idlist.count(FIXTURE_ID) > 0


class Child:
    """Plugin of the child: writes a line of JSON for each phase of each test that matters."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the call's outcome, and what went wrong before or after it."""
        if report.when != "call" and report.passed:
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        line = {"test": report.nodeid, "outcome": report.outcome, "text": reason}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Parent:
    """Plugin of the parent: each interpreted test reports its outcome in the child."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] | None = None
        self.log = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Reports the child's outcome in place of running the test."""
        if not is_interpreted(pyfuncitem):
            return None
        if self.outcomes is None:
            self.outcomes = self._run([i for i in pyfuncitem.session.items if is_interpreted(i)])
        found = self.outcomes.get(pyfuncitem.nodeid)
        if found is None:
            pytest.fail(f"the interpreting process did not reach it:\n{self.log}", pytrace=False)
        if found["outcome"] == "skipped":
            pytest.skip(found["text"].removeprefix("Skipped: "))
        if found["outcome"] == "failed":
            pytest.fail(found["text"], pytrace=False)
        return True

    def _run(self, items: list[pytest.Item]) -> dict[str, dict[str, str]]:
        with tempfile.TemporaryDirectory() as folder:
            tests, report = Path(folder) / "tests.txt", Path(folder) / "report.jsonl"
            tests.write_text("".join(item.nodeid + "\n" for item in items))
            report.touch()
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run(
                [*command, f"{OPTION}={report}", f"@{tests}"],
                cwd=items[0].config.rootpath,
                env={**os.environ, "TRITON_INTERPRET": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.log = done.stdout[-4000:]
            lines = [json.loads(line) for line in report.read_text().splitlines()]
        outcomes: dict[str, dict[str, str]] = {}
        for line in lines:  # a failure in any phase counts
            if outcomes.get(line["test"], {}).get("outcome") != "failed":
                outcomes[line["test"]] = line
        return outcomes
