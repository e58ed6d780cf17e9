"""The files that a public project has: valid, and of one mind about versions and commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [ROOT / f".github/ISSUE_TEMPLATE/{n}.yml" for n in ("bug", "performance", "question")]
PYTHONS = re.findall(r"Python :: (3\.\d+)", PYPROJECT)


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_versions_agree() -> None:
    """Of the package, the citation and the newest release of the changelog, with its day."""
    (version,) = re.findall(r'^version = "(.+)"', PYPROJECT, flags=re.M)
    headings = re.findall(r"^## (.+)", CHANGELOG, flags=re.M)
    assert headings[0] == "Unreleased"
    citation = _read(ROOT / "CITATION.cff")
    assert (citation["version"], headings[1]) == (
        version,
        f"{version} - {citation['date-released']}",
    )


def test_supported_pythons_agree() -> None:
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    assert PYTHONS == [f"3.{minor}" for minor in range(10, 14)]
    assert f'requires-python = ">={oldest}"' in PYPROJECT
    assert f"Python {oldest}-{newest}" in README
    for path in WORKFLOWS:
        for job in _read(path)["jobs"].values():
            assert job["strategy"]["matrix"]["python"] == PYTHONS, path.name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_runs_what_is_there_and_may_only_read(path: Path) -> None:
    workflow = _read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
    for step in _steps(workflow):
        if "run" in step:
            script = re.fullmatch(r"bash (\.ci/\w+)( dist)?", step["run"])
            assert script and os.access(ROOT / script[1], os.X_OK), step["run"]
        else:  # a tag could be moved to other code
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
    checkouts = [s for s in _steps(workflow) if s.get("uses", "").startswith("actions/checkout@")]
    assert checkouts and all(s["with"] == {"persist-credentials": False} for s in checkouts)


@pytest.mark.parametrize("script", ["run", "wheel"])
def test_script_is_one_that_bash_reads(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / ".ci" / script], check=True)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_form_asks_for_the_doctor_s_words(path: Path) -> None:
    form = _read(path)
    assert form.keys() == {"name", "description", "labels", "body"}
    asked = {field["id"]: field for field in form["body"]}
    assert len(asked) == len(form["body"])
    assert all(field["type"] == "textarea" for field in asked.values())
    doctor = asked["doctor"]
    assert doctor["attributes"]["label"] == "`vimpac doctor`"
    assert path.stem == "question" or doctor["validations"] == {"required": True}


def test_citation_has_both_papers_of_the_readme() -> None:
    citation = _read(ROOT / "CITATION.cff")
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    cited = {i["value"] for paper in citation["references"] for i in paper["identifiers"]}
    told = re.findall(r"journal = \{arXiv preprint (arXiv:[\d.]+)\}", README)
    assert len(told) == 2 and cited == {*told}
    for paper in citation["references"]:
        names = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
        assert f"author  = {{{names}}}" in README and f"title   = {{{paper['title']}}}" in README


def test_every_extra_that_an_error_names_is_there() -> None:
    from vimpac.checkpoints.hub import EXTRA
    from vimpac.cli import EXTRAS

    named = {re.fullmatch(r"vimpac-kernels\[(\w+)\]", text) for text in (*EXTRAS.values(), EXTRA)}
    extras = PYPROJECT.partition("[project.optional-dependencies]")[2].partition("[project.")[0]
    assert {match[1] for match in named if match} <= {*re.findall(r"^(\w+) = \[", extras, re.M)}


def test_source_distribution_has_what_a_build_needs_and_no_more(tmp_path: Path) -> None:
    """No tests, benchmarks or pages of documentation."""
    command = ["-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path / "dist")]
    subprocess.run([sys.executable, "setup.py", *command], cwd=ROOT, check=True, timeout=120)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        files = {name.partition("/")[2] for name in tar.getnames() if name.partition("/")[2]}
    needed = [ROOT / name for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py")]
    for folder, pattern in (
        ("csrc", "**/*.*"),
        ("build_support", "*.py"),
        ("vimpac", "**/*.py"),
        ("vimpac", "configs/**/*.yaml"),
        ("vimpac_kernels", "**/*.py"),
        ("vimpac*", "py.typed"),
    ):
        found = [path for top in ROOT.glob(folder) for path in top.glob(pattern)]
        assert found, folder
        needed += found
    missing = {str(path.relative_to(ROOT)) for path in needed if path.is_file()} - files
    assert not missing
    tops = {name.partition("/")[0] for name in files}
    own = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert tops == own | {"setup.py", "build_support", "csrc", "vimpac", "vimpac_kernels"}
    assert not [name for name in files if name.endswith((".so", ".pyc"))]
