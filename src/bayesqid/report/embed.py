"""What the page needs to draw its charts: their specifications, the library, and what scripts may do at all."""

import base64
import functools
import hashlib
import json
from dataclasses import replace
from importlib import resources

from bayesqid.report import charts
from bayesqid.report.blocks import Figure, Section

SEPARATORS = str.maketrans("\u2028\u2029", "  ")
NOTICE = "/* Vega, Vega-Lite and Vega-Embed, BSD 3-Clause License, University of Washington Interactive Data Lab */\n"


def attached(sections: tuple[Section, ...]) -> tuple[Section, ...]:
    """The same sections; every figure that has an interactive chart holds its specification."""
    return tuple(replace(section, blocks=tuple(map(_with_spec, section.blocks))) for section in sections)


def _with_spec(block):
    chart = charts.CHARTS.get(block.name) if isinstance(block, Figure) else None
    if chart is None:
        return block
    return replace(block, spec=chart(one_line(block.rows), one_line(block.points)) | {"description": block.alt})


def one_line(rows: list[dict]) -> list[dict]:
    """Rows whose texts hold no line or paragraph separators, at which Vega's expressions end."""
    return [{key: value.translate(SEPARATORS) if isinstance(value, str) else value for key, value in row.items()}
            for row in rows]  # fmt: skip


def scripts(sections: tuple[Section, ...]) -> dict[str, str]:
    """The scripts of a page with these sections, the policy that allows them alone, and the specifications' text.

    Keys: `page_script` (theme), `chart_script` (the library and what calls it; empty where no figure has a
    specification), `policy` (the value of Content-Security-Policy).
    """
    page = text("page.js")
    drawing = ""
    if any(isinstance(block, Figure) and block.spec for section in sections for block in section.blocks):
        drawing = library() + text("charts.js")
    allowed = " ".join(f"'sha256-{digest(source)}'" for source in (page, drawing) if source)
    # vega-embed writes the style of its tooltips into the page; nothing else is allowed, network least of all
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return {"page_script": page, "chart_script": drawing, "policy": f"{policy}; base-uri 'none'; form-action 'none'"}


def text(name: str) -> str:
    """A file beside this one."""
    return (resources.files("bayesqid.report") / name).read_text(encoding="utf-8")


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed, minified, as one script: 0.9 MB, made offline in two seconds."""
    import vl_convert

    # inside a function its short names stay its own
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"{NOTICE}(() => {{\n{bundle}\n}})();\n"


def digest(source: str) -> str:
    """SHA-256 of a script as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")


def packed_rows(rows: list[dict]) -> list[list]:
    """Rows of equal keys as [keys, values, values, ...], which takes half the room; charts.js turns them back."""
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(list(row.values()))
    return [[list(keys), *values] for keys, values in groups.items()]


def as_data(spec: dict) -> str:
    """A specification as JSON that can stand inside <script>: no text in it ends the element or opens a comment."""
    packed = spec | {"datasets": {name: packed_rows(rows) for name, rows in spec["datasets"].items()}}
    plain = json.dumps(packed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        plain = plain.replace(sign, f"\\u{ord(sign):04x}")
    return plain
