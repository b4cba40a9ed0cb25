"""The HTML report in a real browser: it opens without network and without scripts, and fits the window."""

import base64
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "reports" / "example" / "index.html"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no browser: {CHROMIUM} is not there, install chromium"),
    pytest.mark.skipif(not PAGE.is_file(), reason="no reports/example/index.html: run make reports"),
]

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars", "--virtual-time-budget=5000")  # fmt: skip
# an address that nothing answers: whatever the page asked of the network would fail
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"


def browse(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess:
    command = [CHROMIUM, *FLAGS, OFFLINE, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probe(tmp_path: Path, script: str, width: int) -> dict[str, str]:
    """What a script put behind a copy of the page finds out, as the attributes it leaves on <html>.

    The page lies in a frame of that width: the window of a headless browser does not go below 500 pixels.
    """
    shutil.copytree(PAGE.parent, tmp_path / "copy", dirs_exist_ok=True)
    inner = tmp_path / "copy" / "index.html"
    tail = f"<script>addEventListener('load', () => {{ const found = {{}}; {script}\n" \
        "for (const [key, value] of Object.entries(found))" \
        " document.documentElement.setAttribute('data-found-' + key, value) })</script>"  # fmt: skip
    inner.write_text(PAGE.read_text(encoding="utf-8") + tail, encoding="utf-8")
    dom = browse(tmp_path, inner, "--dump-dom", f"--window-size={width},900").stdout
    return dict(re.findall(r'data-found-(\w+)="([^"]*)"', dom.split("<head>")[0]))


def pixels(png: Path) -> tuple[int, int, set[bytes]]:
    """Width, height and the colours of every 97th pixel, read without a library."""
    raw = png.read_bytes()
    width, height = struct.unpack(">II", raw[16:24])
    channels = {2: 3, 6: 4}[raw[25]]
    chunks, at = b"", 8
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        chunks += raw[at + 8 : at + 8 + size] if raw[at + 4 : at + 8] == b"IDAT" else b""
        at += size + 12
    lines = zlib.decompress(chunks)
    return width, height, {lines[i : i + channels] for i in range(1, len(lines) - channels, channels * 97)}


def test_the_page_reads_the_same_with_scripts_switched_off(tmp_path):
    """A sandboxed frame runs no scripts; what a reader sees must not depend on them."""
    html = PAGE.read_text(encoding="utf-8")
    assert "<script" not in html
    verdict = re.search(r'<p class="verdict[^>]*>.*?</p>', html, re.DOTALL)
    assert verdict is not None
    on = browse(tmp_path, PAGE, "--dump-dom").stdout
    assert verdict.group() in on
    assert on.index('class="verdict') < on.index("<h1"), "the verdict comes first"
    assert "</footer>" in on
    frame = tmp_path / "frame.html"
    address = "data:text/html;base64," + base64.b64encode(html.encode()).decode()
    frame.write_text(f'<body style="margin:0"><iframe sandbox width=1200 height=900 style="border:0" src="{address}">')
    shots = []
    for page, name in ((PAGE, "on.png"), (frame, "off.png")):
        browse(tmp_path, page, f"--screenshot={tmp_path / name}", "--window-size=1200,900")
        shots.append(pixels(tmp_path / name))
    for width, height, colours in shots:
        assert (width, height) == (1200, 900)
        assert len(colours) > 3, "an empty page has one colour"
    assert shots[0][2] & shots[1][2] == shots[1][2] or len(shots[1][2]) > 20


def test_nothing_is_fetched_and_every_link_leads_to_a_file(tmp_path):
    html = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|srcset|data|poster)="(?!data:)[^"]*"', html)
    assert not re.findall(r"<link\b|@import|url\((?!['\"]?data:)", html)
    found = probe(tmp_path, "found.fetched = performance.getEntriesByType('resource')"
                  ".filter(one => !one.name.startsWith('data:')).length;", 1200)  # fmt: skip
    assert found == {"fetched": "0"}
    for target in re.findall(r'href="([^"]+)"', html):
        if target.startswith("#"):
            assert f'id="{target[1:]}"' in html, target
        elif not target.startswith("http"):
            assert (PAGE.parent / target).is_file(), target


@pytest.mark.parametrize("width", [500, 1200])
def test_figures_show_and_the_page_does_not_scroll_sideways(tmp_path, width):
    found = probe(tmp_path, """
        const pictures = [...document.images];
        found.pictures = pictures.length;
        found.broken = pictures.filter(one => !one.complete || one.naturalWidth === 0).length;
        found.flat = pictures.filter(one => one.getBoundingClientRect().width < 100
            || one.getBoundingClientRect().height < 100).length;
        found.untold = pictures.filter(one => !one.alt).length;
        found.window = innerWidth;
        found.wide = document.documentElement.scrollWidth;
        found.body = document.body.scrollWidth;
        found.small = [...document.querySelectorAll('p, td, li')].filter(one =>
            parseFloat(getComputedStyle(one).fontSize) < 10).length;
    """, width)  # fmt: skip
    assert int(found["pictures"]) >= 3
    assert [found[key] for key in ("broken", "flat", "untold", "small")] == ["0"] * 4
    assert int(found["window"]) == width
    assert int(found["wide"]) <= width
    assert int(found["body"]) <= width
