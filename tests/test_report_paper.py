"""Figures and table for a paper: widths, fonts and sizes that journals ask for, the numbers of the projection."""

import itertools
import re
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

import posteriors
from bayesqid.answers import asking, curves, project
from bayesqid.report import asked, latex, paper, tables

NAMES = [f"{figure}-{width}" for figure in ("fan", "forest", "choose") for width in ("single", "double")]
POINTS = {"single": 3.25 * 72, "double": 6.75 * 72}


def projected(posterior, tokens=1e14, **options):
    return project.project(posterior, asking.targets(posterior, tokens, **options))


@pytest.fixture(scope="module")
def posterior():
    return posteriors.posterior()


@pytest.fixture(scope="module")
def projection(posterior):
    return projected(posterior)


@pytest.fixture(scope="module")
def folder(posterior, projection, tmp_path_factory):
    found = tmp_path_factory.mktemp("paper")
    assert paper.write(posterior, projection, found) == found / "paper"
    return found / "paper"


@pytest.fixture(scope="module")
def canvases(posterior, projection):
    targets = asked.panels(projection)
    found = curves.bands(posterior, targets, curves.grid(posterior, [1e14]))
    rows, chances = tables.parameters(posterior).rows, paper.choices(posterior, projection)
    with matplotlib.rc_context(paper.STYLE):
        made = {
            "fan": lambda width: paper.fan(posterior, found, targets, [1e14], width),
            "forest": lambda width: paper.forest(rows, width),
            "choose": lambda width: paper.choose(chances, width),
        }
        drawn = {f"{figure}-{name}": make(width) for figure, make in made.items()
                 for name, width in (("single", paper.SINGLE), ("double", paper.DOUBLE))}  # fmt: skip
        for canvas in drawn.values():
            canvas.draw_without_rendering()
        return drawn


def test_every_figure_is_there_as_pdf_and_svg_beside_the_table(folder):
    expected = {f"{name}.{kind}" for name in NAMES for kind in ("pdf", "svg")} | {"choose.csv", "projection.tex"}
    assert {path.name for path in folder.iterdir()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_as_wide_as_its_column(folder, name):
    wide = POINTS[name.partition("-")[2]]
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", (folder / f"{name}.pdf").read_bytes())
    svg = re.search(r'<svg [^>]*?width="([\d.]+)pt"', (folder / f"{name}.svg").read_text(encoding="utf-8"), re.DOTALL)
    assert box is not None
    assert svg is not None
    assert float(box[1]) == float(svg[1]) == wide
    # no taller than a page of text
    assert float(box[2]) < 9 * 72


@pytest.mark.parametrize("name", NAMES)
def test_fonts_are_embedded_as_truetype_and_nothing_tells_the_day(folder, name):
    pdf = (folder / f"{name}.pdf").read_bytes()
    fonts = pdf.count(b"/Type /FontDescriptor")
    assert fonts > 0
    assert pdf.count(b"/FontFile2") == fonts
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in svg
    assert "<text" not in svg


@pytest.mark.parametrize("name", NAMES)
def test_text_is_of_eight_points_inside_the_picture_and_no_title(canvases, name):
    canvas = canvases[name]
    found = [text for text in canvas.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert {text.get_fontsize() for text in found} == {8}
    assert canvas.get_suptitle() == ""
    assert all(axis.get_title(loc) == "" for axis in canvas.axes for loc in ("left", "center", "right"))
    whole = canvas.bbox
    for box in [axis.get_tightbbox() for axis in canvas.axes if axis.get_visible()]:
        assert box.x0 >= whole.x0 - 1
        assert box.x1 <= whole.x1 + 1
        assert box.y0 >= whole.y0 - 1
        assert box.y1 <= whole.y1 + 1


@pytest.mark.parametrize("name", NAMES)
def test_legend_and_panels_do_not_lie_over_one_another(canvases, name):
    canvas = canvases[name]
    boxes = [axis.get_tightbbox() for axis in canvas.axes if axis.get_visible()]
    boxes += [legend.get_window_extent() for legend in canvas.legends]
    for one, other in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        up = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, up) <= 1, (one, other)


def test_lines_are_told_apart_without_colour():
    assert len({str(dash) for dash in paper.DASHES}) == len(paper.BITS) == len(paper.SHADES)
    assert len({line for _, line, _ in paper.MARKS.values()}) == len(paper.MARKS)


def test_the_same_posterior_gives_the_same_bytes(posterior, projection, folder, tmp_path):
    paper.write(posterior, projection, tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "paper" / path.name).read_bytes(), path.name


def test_chances_grow_with_the_tolerance_and_are_those_of_the_projection(posterior, projection):
    rows = paper.choices(posterior, projection)
    answer = {(row["params"], row["bits"]): row for row in project.rows(projection)}
    for size, bits in {(row["params"], row["bits"]) for row in rows}:
        own = [row for row in rows if (row["params"], row["bits"]) == (size, bits)]
        p = [row["p_under"] for row in own]
        assert p == sorted(p)
        if (size, bits) in answer:
            at = float(np.interp(np.log(0.2), np.log([row["tolerance"] for row in own]), p))
            # other random numbers, 200 draws
            assert at == pytest.approx(1 - answer[size, bits]["p_gt_0.2"], abs=0.12)


def unescaped(text):
    """What LaTeX prints for the commands that `latex.escaped` may put in; anything else of TeX fails."""
    back = {r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~", r"\textless{}": "<",
            r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"', r"\ensuremath{-}": "−",
            r"\ensuremath{\times}": "×", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#", r"\_": "_",
            r"\%": "%", r"\,": " ", "--": "–", "``": "“", "''": "”"}  # fmt: skip
    out = ""
    while text:
        sign = next((sign for sign in back if text.startswith(sign)), None)
        assert sign or text[0] not in "\\{}$&#_%^~<>|\"", text
        out, text = out + back.get(sign or "", text[0]), text[len(sign or "x") :]
    return out


@pytest.mark.parametrize("text", [
    r"\input{/etc/passwd}", "a_b^c~d", "100% & #1 {x} $y$", "50 % of “these” – or −3 × 4",
    'x|y"z<w>', "a % b", "plain, Übung 7",
])  # fmt: skip
def test_text_comes_out_of_latex_as_it_went_in(text):
    assert unescaped(latex.escaped(text)) == text


def test_control_characters_cannot_end_a_line():
    assert latex.escaped("a\nb\rc\x00d") == "a b c d"


def balanced(source):
    """Braces and environments close in the order in which they open; comments are left out."""
    plain = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in source.splitlines())
    stack = []
    for mark in re.finditer(r"\\begin\{(\w+)\}|\\end\{(\w+)\}|\\.|[{}]", plain):
        if mark[1]:
            stack.append(mark[1])
        elif mark[2]:
            assert stack.pop() == mark[2]
        elif mark[0] == "{":
            stack.append("{")
        elif mark[0] == "}":
            assert stack.pop() == "{"
    assert stack == []
    return plain


def body(source):
    """Cells of the rows between the rules, what spans several columns counted as many."""
    inner = source.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line.strip().removesuffix(r" \\") for line in inner.splitlines() if line.strip().endswith(r"\\")]
    cells = []
    for row in rows:
        found = []
        for cell in re.split(r"(?<!\\) & ", row):
            spans = re.fullmatch(r"\\multicolumn\{(\d)\}\{c\}\{(.*)\}", cell)
            found += [spans[2], *[""] * (int(spans[1]) - 1)] if spans else [cell]
        cells.append(found)
    return cells


@pytest.mark.parametrize("options", [
    {}, {"tokens_range": (1e12, 1e14), "points": 3, "tokens": None, "params": 7e9}, {"family": "crossed", "bits": 3.5},
    {"population": True, "recipes": "rtn-w3,gptq-w4-g128"},
])  # fmt: skip
def test_the_table_is_whole_and_holds_the_projection(posterior, options):
    projection = projected(posterior, **options)
    source = balanced(latex.table(projection))
    spec = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", source)
    assert spec is not None
    rows = project.rows(projection)
    cells = body(source)
    assert len(cells) == len(rows)
    assert {len(row) for row in cells} == {len(spec[1])}
    head = [cell.strip() for cell in source.split(r"\toprule")[1].split(r"\\")[0].split(" & ")]
    at = head.index("Median")
    for shown, row in zip(cells, rows, strict=True):
        if row["p_saturated"] > 0.5:
            assert shown[at] == "loss destroyed"
            continue
        assert float(shown[at]) == pytest.approx(row["median"], rel=0.006)
        for cell, mass in ((shown[at + 1], 50), (shown[at + 2], 90)):
            low, high = map(float, cell.split("--"))
            assert low == pytest.approx(row[f"lower{mass}"], rel=0.006)
            assert high == pytest.approx(row[f"upper{mass}"], rel=0.006)


def test_the_caption_says_what_a_reader_needs(projection):
    caption = latex.caption(projection)
    for words in (r"equal-tailed 50\,\% and 90\,\% credible intervals", "band ``new''", "$N$: non-embedding parameters",
                  "$D$: training tokens", "nats per token", "Verdict: extrapolation", "quantizer gptq"):  # fmt: skip
        assert words in caption
    assert "Checks failed" not in caption


def test_failed_checks_come_first_in_the_caption():
    caption = latex.caption(projected(posteriors.posterior(checks={"ess_bulk": False})))
    assert caption.startswith(r"Checks failed: ess\_bulk.")
    assert "do not use these numbers" in caption


def test_names_that_are_tex_stay_text(tmp_path):
    hostile = "a_b$\\frac{&%#^~"
    data = posteriors.cells({hostile: posteriors.FAMILIES["crossed"], "漢": posteriors.FAMILIES["fixed"]})
    made = posteriors.posterior(data=data)
    projection = projected(made, family=hostile)
    folder = paper.write(made, projection, tmp_path)
    source = balanced((folder / "projection.tex").read_text(encoding="utf-8"))
    assert latex.escaped(hostile) in source
    assert hostile not in source


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: the table is only checked for balance")
def test_the_table_compiles(folder, tmp_path):
    table = (folder / "projection.tex").read_text(encoding="utf-8")
    page = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "page.tex").write_text(f"{page}{table}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(posterior, projection, tmp_path):
    from bayesqid.errors import BadInput

    (tmp_path / "paper").write_text("")
    with pytest.raises(BadInput, match="name another"):
        paper.write(posterior, projection, tmp_path)
