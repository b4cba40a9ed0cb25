"""What mkdocs.yml needs besides: the menu from docs/index.md, and what the pages link to outside docs/.

The pages are written for the repository, where ../data/README.md is a good link. In the site everything outside docs/
that some page links to, and what that links to in turn, stands under repository/: Markdown as pages, the rest as files.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)\s*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<before>\]\(|\b(?:src|srcset|href)=\")(?P<target>[^)\s#\"]+)(?P<after>[^)\"]*[)\"])")


def links(text: str) -> list[str]:
    """Targets of a page's relative links, without anchors, in order."""
    found = (match["target"] for match in LINK.finditer(CODE.sub("", text)))
    return [target for target in found if not re.match(r"[a-z]+:|/", target)]


def in_site(path: str) -> str:
    """Where a file of the repository stands in the site; scripts in docs/ are no pages."""
    inside = path.startswith("docs/") and not path.endswith(".py")
    return path.removeprefix("docs/") if inside else f"repository/{path}"


def in_repository(uri: str) -> str:
    """The file of the repository that stands there in the site."""
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def linked() -> list[str]:
    """Files outside the site's pages that they link to, and those that these link to."""
    queue = [f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))]
    seen, outside = set(queue), []
    for path in queue:
        for target in links((ROOT / path).read_text(encoding="utf-8")) if path.endswith(".md") else ():
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if found not in seen and (ROOT / found).is_file():
                seen.add(found)
                queue.append(found)
                outside += [found] if in_site(found).startswith("repository/") else []
    return outside


def suited(text: str) -> str:
    """What GitHub reads and Python-Markdown does not: a table right behind a comment, lists set in by 2, | in code."""
    text = re.sub(r"(-->)\n(?=\|)", r"\1\n\n", text)
    text = re.sub(r"^  (?=[-*] )", "    ", text, flags=re.MULTILINE)
    return re.sub(r"(?<=\|)[^\n]*`[^`\n]*\\\|[^\n]*", lambda row: re.sub(
        r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0]), text)  # fmt: skip


def on_config(config):
    """The menu: index.md, then what its first table links to."""
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("\n## ")[0]
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    pages = [(words, in_site(posixpath.normpath(posixpath.join("docs", target))))
             for words, target in re.findall(r"\[([^\]]+)\]\(([^)#]+)", rows)]  # fmt: skip
    config.nav = [{"Overview": "index.md"}, *({words: page} for words, page in pages)]
    return config


def on_files(files, config):
    """Add what stands outside docs/ and is linked to."""
    for path in linked():
        files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as they hold in the site; what cannot be found stays as it is, and fails."""
    here = in_repository(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if re.match(r"[a-z]+:|/", target) or not (ROOT / found).is_file():
            return match[0]
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"{match['before']}{posixpath.relpath(in_site(found), start)}{match['after']}"

    parts, last = [], 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(moved, suited(markdown[last : code.start()])), code[0]]
        last = code.end()
    return "".join([*parts, LINK.sub(moved, suited(markdown[last:]))])
