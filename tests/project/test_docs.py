"""The documentation is built, complete and of one mind with the code and the result files."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.project.doc_pages import PAGES, ROOT, links, name_of
from vimpac import cli
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.settings import load_config
from vimpac_kernels import OPS

DOCS = ROOT / "docs"
TEXTS = {name_of(page): page.read_text(encoding="utf-8") for page in PAGES}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once, with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-n", "-q", "-E", "-d", str(folder / "cache")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class _Page(HTMLParser):
    """What an HTML page refers to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []  # fetched with the page
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.anchors.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("img", "script", "source") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="session")
def html(site: Path) -> dict[Path, _Page]:
    """Every page of the site."""
    return {page: _Page(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}


def test_site_has_every_page(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").exists(), page


def test_site_loads_nothing_from_elsewhere(site: Path, html: dict[Path, _Page]) -> None:
    for path, page in html.items():
        for address in page.loaded:
            file = path.parent / address.partition("?")[0]
            assert not re.match(r"(\w+:)?//", address) and file.exists(), (path.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style.name


def test_links_of_the_site_lead_somewhere(html: dict[Path, _Page]) -> None:
    for path, page in html.items():
        for link in page.links:
            place, _, anchor = link.partition("#")
            if re.match(r"\w+:", link):
                continue
            target = (path.parent / place).resolve() if place else path
            assert target.exists(), (path.name, link)
            if anchor and target in html:
                assert anchor in html[target].anchors, (path.name, link)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere_in_the_repository_too(page: Path) -> None:
    for target in links(page):
        place = target.partition("#")[0]
        assert (page.parent / place).exists(), target


def test_readme_is_the_first_visit_and_links_to_the_pages() -> None:
    readme = TEXTS["README.md"]
    assert len(re.findall(r"^\| .*x \|$", readme, flags=re.M)) == 4  # headline results
    assert "No GPU has run or timed the kernels yet." in readme
    assert readme.count("\n") < 80
    for name in ("start", "ops/index", "kernels", "training", "evaluation", "benchmarks"):
        assert f"(docs/{name}.md)" in readme


def test_every_op_has_a_page_of_the_same_sections() -> None:
    for op in OPS:
        text = TEXTS[f"docs/ops/{op}.md"]
        assert f"autofunction:: vimpac_kernels.{op}\n" in text
        sections = re.findall(r"^## (.*)$", text, flags=re.M)
        first = "What it draws" if op == "mask_tokens" else "Formula"
        names = [first, "Example", "Contract", "Limits", "Backends", "Numerics", "Speed"]
        assert sections == [*names, "Where the code is"]
    assert {page.stem for page in (DOCS / "ops").glob("*.md")} == {*OPS, "index"}


def test_every_command_is_explained() -> None:
    text = "".join(TEXTS.values())
    for name in cli.COMMANDS:
        assert re.search(rf"\bvimpac {name}\b", text), name


def test_public_names_are_documented() -> None:
    import vimpac
    import vimpac_kernels

    text = "".join(TEXTS.values())
    constants = {"IMPLS", "OPS", "MASK_TOKEN", "PAD_TOKEN", "PRESETS"}
    for module in (vimpac, vimpac_kernels):
        for name in {*module.__all__} - constants:
            assert re.search(rf":: {module.__name__}\.{name}\n", text), name


def test_oldest_triton_is_the_one_that_pip_asks_for() -> None:
    asked = re.findall(r'"triton>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    told = re.findall(r"Triton \((\d+\.\d+) or newer", TEXTS["docs/start.md"])
    told += re.findall(r"Triton (\d+\.\d+) or newer", TEXTS["docs/ops/index.md"])
    told += re.findall(r"Triton (\d+\.\d+), the oldest", TEXTS["CONTRIBUTING.md"])
    assert len(asked) == 1 and told == 3 * asked


def test_settings_of_the_docs_exist() -> None:
    settings = re.findall(r"^\| `(\S+)=(\S+?)`", TEXTS["docs/training.md"], flags=re.M)
    assert len(settings) == 5
    for key, value in settings:
        load_config(PretrainConfig, None, [f"{key}={value.replace('N', '2')}"])
    options = re.findall(r"^\| `(\S+=\S+?)`", TEXTS["docs/evaluation.md"], flags=re.M)
    assert len(options) == 6
    load_config(FinetuneConfig, None, options).check()


def test_actions_of_visualise_are_those_that_there_are() -> None:
    from vimpac.commands.visualise import ACTIONS

    assert re.findall(r"^\| `(\w+)` \|", TEXTS["docs/visualise.md"], flags=re.M) == [*ACTIONS]


def test_claims_of_simvtp_name_tests_that_exist() -> None:
    named = {*re.findall(r"`(test_\w+)`", TEXTS["docs/simvtp.md"])}
    files = (ROOT / "tests/vimpac/simvtp").glob("test_*.py")
    there = {*re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in files), flags=re.M)}
    assert len(named) == 7 and named <= there


def test_annotations_of_the_docs_are_the_ones_that_are_read() -> None:
    from vimpac.data.annotations.datasets import DATASETS

    told = re.findall(r"`(\w+):", TEXTS["docs/evaluation.md"])
    assert {*DATASETS} <= {*told, "kinetics600", "kinetics700"}


def test_numbers_of_tokenizing_are_those_of_the_code() -> None:
    from vimpac.commands.made_store import MAX_SKIPPED
    from vimpac.data import clock, tokenize_workers, video, workers

    for words in (
        f"by more than {clock.JITTER} frames, or runs too far ahead",
        f"clocks start again, more than {clock.LONGEST_GAP} seconds",
        f"up to {'an hour' if clock.LONGEST_FREEZE == 3600 else clock.LONGEST_FREEZE}",
        f"at most {'a tenth' if video.MOST_DAMAGED == 0.1 else video.MOST_DAMAGED} of its pictures",
        f"({MAX_SKIPPED:g} by default",
        f"up to {tokenize_workers.AHEAD} videos for every worker",
        f"take {workers.MOST_WAITING >> 20} MiB at most",
        f"tried {'three' if tokenize_workers.MOST_TRIES == 3 else 0} times",
    ):
        assert words in TEXTS["docs/tokenizing.md"]
