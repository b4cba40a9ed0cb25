import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LIMIT_BYTES = 45_000_000
DOCS = ROOT / "docs"
# Put together from pieces, so that this file does not find itself
MACHINES = ["/" + "work/", "/" + "root/", "/" + "Users/", "python" + "hosted", "pypi" + ".org"]
UNFINISHED = ["TO" + "DO", "FIX" + "ME"]
NEVER_IN_ANSWERS = {
    "torch", "transformers", "pymc", "pytensor", "numba", "nutpie", "numpyro", "jax",
    "arviz", "arviz_base", "arviz_stats", "arviz_plots", "matplotlib", "altair", "vl_convert",
}  # fmt: skip


def run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)


def checkout() -> list[Path]:
    """Files that are or would be committed; skips the test where git cannot say."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip(f"git cannot list this checkout: {listed.stderr.strip()}")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def modules() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def test_code_passes_the_linter():
    done = run(sys.executable, "-m", "ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout


def test_no_part_imports_what_it_may_not():
    done = run(BIN / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


def test_every_module_is_named_in_the_import_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {name for contract in contracts for key in ("source_modules", "modules") for name in contract.get(key, ())}
    package = ROOT / "src" / "bayesqid"
    found = {f"bayesqid.{p.stem}" for p in package.glob("*.py") if not p.stem.startswith("__")}
    found |= {f"bayesqid.{p.parent.name}" for p in package.glob("*/__init__.py")}
    assert found == {name for name in named if name.count(".") == 1}


@pytest.mark.slow
def test_types_are_clean():
    if run(sys.executable, "-m", "pyright", "--version").returncode:
        pytest.skip("pyright cannot start here: it needs node")
    done = run(sys.executable, "-m", "pyright")
    assert done.returncode == 0, done.stdout


def test_every_module_says_what_it_is():
    silent = [str(path.relative_to(ROOT)) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_checkout_stays_small_enough_to_travel():
    total = sum(path.stat().st_size for path in checkout())
    assert 1_000_000 < total < LIMIT_BYTES


def containing(words: list[str], paths: list[Path]) -> list[str]:
    return [f"{p.relative_to(ROOT)}: {word}" for p in paths for word in words if word.encode() in p.read_bytes()]


def test_no_file_names_the_machine_it_was_made_on():
    assert containing(MACHINES, checkout()) == []


def test_nothing_is_left_unfinished():
    written = {".py", ".md", ".toml", ".html", ".yml", ""}  # the ladder's text is other people's source code
    assert containing(UNFINISHED, [path for path in checkout() if path.suffix in written]) == []


def test_constraints_are_exact_versions_of_what_is_declared():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(row.url is None and re.fullmatch(r"==[0-9][\w.!+]*", str(row.specifier)) for row in rows)
    pinned = {canonical(row.name): str(row.specifier)[2:] for row in rows}
    assert len(pinned) == len(rows)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *sum(extras.values(), [])]]
    assert [row.name for row in wanted if not row.specifier.contains(pinned.get(canonical(row.name), "0"))] == []


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_command_reference_is_what_the_commands_say():
    script = runpy.run_path(str(DOCS / "make_cli.py"))
    shown = (DOCS / "cli.md").read_text()
    assert re.findall(r"^## bayesqid (.+)$", shown, re.MULTILINE) == list(script["commands"]())
    assert shown == script["page"](), "run `make docs`"


def test_docs_name_only_commands_and_options_that_exist():
    """Every `bayesqid ...` line in a code block of README.md and docs/ must parse to a known command and options."""
    known = runpy.run_path(str(DOCS / "make_cli.py"))["commands"]()
    wrong = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        fenced = "\n".join(re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.DOTALL))
        for line in re.findall(r"^\s*(?:\$ )?bayesqid (.+)$", fenced, re.MULTILINE):
            words = line.split()
            name = next((n for n in sorted(known, key=len, reverse=True) if f"{line} ".startswith(f"{n} ")), None)
            if name is None:
                wrong.append(f"{page.name}: {line}")
                continue
            options = {option for param in known[name].params for option in (*param.opts, *param.secondary_opts)}
            wrong += [f"{page.name}: {line}: {w}" for w in words if re.match(r"--?[a-z]", w) and w not in options]
    assert wrong == []


SHOWING = ("tutorial", "project", "choose", "tokens", "level", "drivers", "next", "replications", "atlas")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in SHOWING)])
def test_shown_outputs_are_what_the_commands_print(page):
    script = runpy.run_path(str(DOCS / "make_outputs.py"))
    shown = script["blocks"]((ROOT / page).read_text())
    assert shown
    assert shown == {words: script["output"](words) for words in shown}, "run `make docs`"


def test_links_in_the_docs_lead_somewhere():
    broken = []
    for page in (*ROOT.glob("*.md"), *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_project_loads_neither_torch_nor_pymc_nor_figures(tmp_path):
    script = tmp_path / "call.py"
    script.write_text(
        "import sys\n"
        "from bayesqid.cli import main\n"
        "sys.argv = ['bayesqid', 'project', '--tokens', '1e14', '--json']\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = run(sys.executable, script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert {"numpy", "xarray"} <= loaded
    assert loaded & NEVER_IN_ANSWERS == set()
