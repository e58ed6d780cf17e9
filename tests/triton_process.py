"""Runs the tests of interpreted Triton kernels in one child process and reports them as its own.

TRITON_INTERPRET is read when a kernel is decorated, so interpreted and compiled kernels cannot
share a process. A child pytest runs all of the interpreted ones beside the others; each then
reports the outcome that it had there, with the child's own traceback.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
        if hasattr(os, "nice"):
            os.nice(5)  # the parent takes longer, so it goes first
        if find_spec("triton"):
            _mend_triton_3_6()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the call's outcome, and what went wrong before or after it."""
        if report.when != "call" and report.passed:
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        line = {"test": report.nodeid, "outcome": report.outcome, "text": reason}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _mend_triton_3_6() -> None:
    """Lets Triton 3.6 interpret what it cannot, or not exactly: newer ones do both themselves."""
    import triton

    if not triton.__version__.startswith("3.6."):
        return
    interpreter = triton.runtime.interpreter
    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor: type, scope: Any) -> None:
        """A loop to a tensor of one element, whose way NumPy 2.5 forbids."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        """Without rounding the product."""
        total = x.data.astype("float64") * y.data + z.data
        return interpreter.TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)

    interpreter._patch_lang_tensor = patch_and_index
    interpreter.InterpreterBuilder.create_fma = create_fma


class Parent:
    """Plugin of the parent: each interpreted test reports its outcome in the child.

    The child starts with the run and interprets while the parent runs all other tests.
    """

    def __init__(self) -> None:
        self.child: subprocess.Popen[str] | None = None
        self.folder = tempfile.TemporaryDirectory()
        self.outcomes: dict[str, dict[str, str]] | None = None
        self.log = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Puts interpreted tests last, when the child has had the most time."""
        items.sort(key=is_interpreted)

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Starts the child, if there is something to interpret."""
        items = [item for item in session.items if is_interpreted(item)]
        if not items or session.config.option.collectonly:
            return
        folder = Path(self.folder.name)
        (folder / "tests.txt").write_text("".join(item.nodeid + "\n" for item in items))
        (folder / "report.jsonl").touch()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        with (folder / "log.txt").open("w") as log:
            self.child = subprocess.Popen(
                [*command, f"{OPTION}={folder / 'report.jsonl'}", f"@{folder / 'tests.txt'}"],
                cwd=session.config.rootpath,
                env={**os.environ, "TRITON_INTERPRET": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def pytest_sessionfinish(self) -> None:
        """Leaves no child behind when the run is cut short."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
        self.folder.cleanup()

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Reports the child's outcome in place of running the test."""
        if not is_interpreted(pyfuncitem):
            return None
        if self.outcomes is None:
            self.outcomes = self._wait()
        found = self.outcomes.get(pyfuncitem.nodeid)
        if found is None:
            pytest.fail(f"the interpreting process did not reach it:\n{self.log}", pytrace=False)
        if found["outcome"] == "skipped":
            pytest.skip(found["text"].removeprefix("Skipped: "))
        if found["outcome"] == "failed":
            pytest.fail(found["text"], pytrace=False)
        return True

    def _wait(self) -> dict[str, dict[str, str]]:
        assert self.child is not None
        self.child.wait()
        folder = Path(self.folder.name)
        self.log = (folder / "log.txt").read_text()[-4000:]
        lines = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
        outcomes: dict[str, dict[str, str]] = {}
        for line in lines:  # a failure in any phase counts
            if outcomes.get(line["test"], {}).get("outcome") != "failed":
                outcomes[line["test"]] = line
        return outcomes
