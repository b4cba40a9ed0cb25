"""The documentation as a site: it builds, its links lead somewhere, and a dead one is found."""

import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # not --quiet, which hides warnings from strict as well
    command = [sys.executable, "-m", "mkdocs", "build", "-f", root / "mkdocs.yml", "--site-dir", site]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


class Page(HTMLParser):
    """Anchors of a page, what it links to, and what a browser loads for it."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        held = {key: value or "" for key, value in attrs}
        self.anchors |= {held[key] for key in ("id", "name") if key in held}
        if tag == "a" and "href" in held:
            self.links.append(held["href"])
        elif tag == "link" and held.get("rel") != "canonical":
            self.loads.append(held["href"])
        elif "src" in held:
            self.loads.append(held["src"])


def copied(folder: Path) -> Path:
    """A checkout of nothing but what the site is made of, with two pages."""
    (folder / "docs").mkdir(parents=True)
    for name in ("mkdocs.yml", "docs/hooks.py", "docs/site.css"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "docs" / "index.md").write_text("# Index\n\n| page | for |\n|---|---|\n| [One](one.md) | one |\n")
    (folder / "docs" / "one.md").write_text("# One\n\n[here](#two), [index](index.md), [out](../READ.md)\n\n## Two\n")
    (folder / "READ.md").write_text("# Read\n\n[back](docs/one.md#two), [file](data.csv)\n")
    (folder / "data.csv").write_text("a\n1\n")
    return folder


def test_reference_is_what_the_tables_say():
    script = runpy.run_path(str(DOCS / "make_tables.py"))
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == script["page"](), "run `make docs`"


def test_reference_names_every_row_of_every_table():
    from bayesqid import importers, laws, methods, recipe, suite

    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    for table in (laws.LAWS, recipe.METHODS, methods.GENERATION, importers.IMPORTERS, suite.names()):
        assert [name for name in table if f"\n| `{name}` |" not in text] == []


def test_figures_of_the_benchmark_page_come_from_the_results():
    script = runpy.run_path(str(DOCS / "make_benchmarks.py"))
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == script["page"](), "run `make docs`"


def test_every_stored_result_is_on_the_benchmark_page():
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "benchmarks" / "results").iterdir() if path.name not in text] == []


@pytest.mark.slow
def test_site_builds_and_every_link_in_it_leads_somewhere(tmp_path):
    site = tmp_path / "site"
    done = build(ROOT, site)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} <= {path.name for path in pages}
    assert site / "repository" / "data" / "index.html" in pages
    dead, loaded = [], []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, for a server
            continue
        loaded += [f"{path.name}: {target}" for target in page.loads if urlsplit(target).scheme not in ("", "data")]
        for target in (*page.links, *page.loads):
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file() or (parts.fragment and there in pages
                                       and unquote(parts.fragment) not in pages[there].anchors):  # fmt: skip
                dead.append(f"{path.relative_to(site)}: {target}")
    assert dead == []
    assert loaded == []
    assert re.findall(r"(?:@import|url\()\W*(?:https?:)?//", "".join(p.read_text() for p in site.rglob("*.css"))) == []
    assert not list(site.rglob("make_*.py"))


def test_a_site_of_two_pages_brings_along_what_they_link_to(tmp_path):
    done = build(copied(tmp_path / "from"), tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    page = Page(tmp_path / "site" / "one.html")
    assert {"#two", "repository/READ.html"} <= set(page.links)
    read = Page(tmp_path / "site" / "repository" / "READ.html")
    assert {"../one.html#two", "data.csv"} <= set(read.links)
    assert (tmp_path / "site" / "repository" / "data.csv").read_text() == "a\n1\n"


@pytest.mark.parametrize(
    ("page", "added", "words"),
    [
        ("docs/one.md", "[gone](gone.md)", "gone.md"), ("docs/one.md", "[gone](../gone.md)", "gone.md"),
        ("docs/one.md", "[gone](index.md#gone)", "gone"), ("READ.md", "[gone](docs/one.md#gone)", "gone"),
        ("docs/alone.md", "# Nobody names this page", "alone.md"),
    ],
)  # fmt: skip
def test_what_leads_nowhere_is_an_error(tmp_path, page, added, words):
    root = copied(tmp_path / "from")
    with open(root / page, "a", encoding="utf-8") as stream:
        stream.write(f"\n{added}\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
