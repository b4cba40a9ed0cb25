import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import vl_convert

import posteriors
from bayesqid.report import answer_charts, charts, embed, marks, pages, vega
from bayesqid.report.blocks import Figure
from reportpage import projected

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ('</script><script>alert("1")</script>', "<img src=x onerror=alert(1)>", "<!-- ", "a\u2028b\u2029c", "'\"\\",
           "a.b[0]")  # fmt: skip
COVERAGE = [{"by": "bits", "group": "3 bits", "cells": 40, "coverage50": 0.6, "coverage90": 0.95, "least50": 0.4,
             "most50": 0.6, "least90": 0.8, "most90": 1.0, "loo_coverage50": 0.5, "loo_coverage90": None}]  # fmt: skip


def content(posterior):
    return embed.attached(pages.sections(posterior, projected(posterior)))


@pytest.fixture(scope="module")
def sections():
    return content(posteriors.posterior())


@pytest.fixture(scope="module")
def figures(sections):
    return {block.name: block for section in sections for block in section.blocks if isinstance(block, Figure)}


def rendered(spec):
    """The SVG of a specification, drawn by Vega without a browser."""
    return ElementTree.fromstring(vl_convert.vegalite_to_svg(spec))


def drawn(svg, kind):
    """Marks of a kind, axes and legends left out, by what they look like."""
    groups = [one for one in svg.iter(f"{SVG}g")
              if {f"mark-{kind}", "role-mark"} <= set(one.get("class", "").split())]  # fmt: skip
    return [one for group in groups for one in group if one.tag != f"{SVG}g"]


def words(svg):
    return [one.text for one in svg.iter(f"{SVG}text")]


def switched(spec, **values):
    """The same specification after a reader has set its switches."""
    known = {param["name"] for param in spec["params"]}
    assert set(values) <= known
    params = [param | {"value": values.get(param["name"], param["value"])} for param in spec["params"]]
    return spec | {"params": params}


def fan_rows(p_saturated=lambda tokens: 0.0, outside=lambda tokens: tokens > 1e13, bits=(3.0, 4.0)):
    """Curves that double with every step of tokens."""
    return [
        {"family": "new", "params": 7e9, "bits": b, "effective_bits": b, "method": "gptq", "tokens": tokens,
         "lower90": qid / 4, "lower50": qid / 2, "median": qid, "upper50": qid * 2, "upper90": qid * 4,
         "p_saturated": p_saturated(tokens), "outside": outside(tokens), "ouyang_published": qid, "fitted_low": 3e11,
         "fitted_high": 1e13, "headroom": 9.0, "asked": tokens == 1e14}
        for b in bits for tokens, qid in ((10.0**power, 2.0 ** (power - 15 - b)) for power in range(11, 16))
    ]  # fmt: skip


def test_every_figure_of_a_report_has_a_chart_and_no_chart_is_left_over(figures):
    assert [name for name, figure in figures.items() if figure.spec is None] == []
    # too few cells for groups of their own
    assert set(charts.CHARTS) - set(figures) <= {"calibration"}


def some(rows, *names):
    return len({tuple(row[name] for name in names) for row in rows})


# what is drawn how often, counted from the rows
MARKS = {
    "thresholds": ("symbol", lambda rows: sum(
        row[name] is not None for row in rows if row["threshold"] == rows[0]["threshold"]
        for name in ("median", "printed"))),
    "choice": ("symbol", lambda rows: 2 * len(rows)),
    "forest": ("symbol", lambda rows: len(rows) + sum(row["informed"] == "data" for row in rows)),
    "levels": ("area", lambda rows: some(rows, "checkpoint", "label")),
    "variance": ("rect", lambda rows: len(rows) - sum(
        not any(row["share"] for row in rows if row["part"] == part) for part in [row["part"] for row in rows])),
    "pit": ("line", lambda rows: some(rows, "cells")),
    "predictive": ("symbol", lambda rows: sum(not row["diverged"] for row in rows)),
}  # fmt: skip


def test_every_chart_draws_every_row_and_says_no_hole(figures):
    for name, figure in figures.items():
        svg = rendered(figure.spec)
        assert not [text for text in words(svg) if re.search(r"undefined|NaN|null|Infinity", text or "")], name
        if name in MARKS:
            kind, count = MARKS[name]
            assert len(drawn(svg, kind)) == count(figure.rows), name


def test_charts_hold_no_colours_of_their_own(figures):
    for name, figure in figures.items():
        told = json.dumps({key: value for key, value in figure.spec.items() if key != "datasets"})
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb|\"(?:fill|stroke)\"", told), name


def test_a_chart_does_not_depend_on_the_charts_made_before(figures):
    for name, figure in figures.items():
        again = charts.CHARTS[name](figure.rows, figure.points) | {"description": figure.alt}
        assert json.dumps(again) == json.dumps(figure.spec), name


def test_the_fan_draws_every_curve_once():
    svg = rendered(charts.fan(fan_rows(), []))
    # of two widths: median and published line each, and two edges of the one run outside the data
    assert len(drawn(svg, "line")) == 2 * (2 + 2)
    # 50 % and 90 %, inside and outside
    assert len(drawn(svg, "area")) == 2 * 4
    assert {"7B", "3 bits", "4 bits", "asked: 100T", "data: 300B to 10T", "uniform guess"} <= set(words(svg))


def test_switching_off_a_width_takes_its_curves_away_and_nothing_else():
    spec = charts.fan(fan_rows(bits=(2.0, 3.0, 4.0)), [])
    before, after = rendered(spec), rendered(switched(spec, bits_1=False))
    assert len(drawn(before, "line")) == 12
    assert len(drawn(after, "line")) == 8
    assert len(drawn(after, "rule")) == len(drawn(before, "rule"))
    without = rendered(switched(spec, published=False))
    assert len(drawn(before, "line")) - len(drawn(without, "line")) == 3


def test_a_band_has_no_gap_where_the_data_end():
    rows = marks.fan(fan_rows(bits=(3.0,)), [], 1e-4)
    runs = [[row["tokens"] for row in rows if row["kind"] == f"band {where}"] for where in ("inside", "outside")]
    assert runs == [[1e11, 1e12, 1e13], [1e13, 1e14, 1e15]]


def test_beyond_saturation_there_is_no_median_but_words():
    rows = fan_rows(p_saturated=lambda tokens: 0.9 if tokens >= 1e14 else 0.0, bits=(2.0,))
    made = marks.fan(rows, [], 1e-4)
    assert [row["tokens"] for row in made if row["kind"] == "line" and row["median"] is not None] == [
        1e11, 1e12, 1e13, 1e14]  # fmt: skip
    (area,) = (row for row in made if row["kind"] == "destroyed")
    assert (area["left"], area["right"]) == (1e14, 1e15)
    said = [row["b0"] for row in made if row["kind"] == "hover"]
    assert said[-1] == "loss destroyed with probability 90 %"
    assert said[0].startswith("0.0156 (90 %")


def test_what_a_logarithmic_axis_cannot_show_is_drawn_at_its_foot():
    point = {"panel_params": 7e9, "panel_bits": 3.0, "family": "f", "checkpoint": "c", "quantizer": "rtn",
             "generation": "rtn", "effective_bits": 3.0, "n_params_nonembedding": 7e9, "train_tokens": 1e12,
             "qid": -0.01, "alike": True}  # fmt: skip
    (made,) = (row for row in marks.fan(fan_rows(), [point], 1e-4) if row["kind"] == "cell")
    assert (made["qid"], made["says"]) == (1e-4, "−0.0100")
    measured = {"family": "f", "checkpoint": "c", "quantizer": "q", "effective_bits": 3.0, "pit": 0.1, "qid": 0.0,
                "median": 0.02, "lower90": 0.01, "upper90": 0.03, "diverged": False}  # fmt: skip
    (row,) = marks.predictive([measured, measured | {"diverged": True}], 1e-3)
    assert (row["qid"], row["measured"]) == (1e-3, "0")


def test_the_histogram_follows_the_family(figures):
    spec = figures["predictive"].spec
    rows = [row for row in figures["predictive"].rows if not row["diverged"]]
    family = rows[0]["family"]
    own = [row for row in rows if row["family"] == family]
    assert len(own) < len(rows)
    svg = rendered(switched(spec, family_chosen=family))
    assert len(drawn(svg, "symbol")) == len(own)
    assert len(drawn(svg, "rect")) == len({min(int(row["pit"] * 20), 19) for row in own})


def test_a_value_that_is_the_prior_reads_so(figures):
    rows = [row | {"informed": "prior"} if row["term"] == "beta" else row for row in figures["forest"].rows]
    svg = rendered(charts.forest(rows, figures["forest"].points))
    assert marks.PRIOR in words(svg)
    assert marks.PRIOR not in words(rendered(figures["forest"].spec))
    # hollow everywhere, filled on top where the data spoke
    told = sum(row["informed"] == "data" for row in rows)
    assert len(drawn(svg, "symbol")) == len(rows) + told


def test_a_threshold_not_reached_goes_to_the_edge():
    row = {"params": 7e9, "bits": 4.0, "threshold": 0.2, "lower90": 1e12, "lower50": 1e13, "median": None,
           "upper50": None, "upper90": None, "printed": None}  # fmt: skip
    (made,) = marks.thresholds([row], 1e15)
    assert (made["upper90"], made["upper50"]) == (1e16, 1e16)
    assert (made["says"], made["most"]) == ("not reached", "1T to not reached")
    svg = rendered(answer_charts.thresholds([row], []))
    assert len(drawn(svg, "symbol")) == 0
    assert len(drawn(svg, "rule")) == 2


def test_coverage_without_cells_left_out_has_no_such_points():
    svg = rendered(answer_charts.calibration(COVERAGE, []))
    assert len(drawn(svg, "symbol")) == 3
    alone = [row | {"loo_coverage50": None} for row in COVERAGE]
    assert len(drawn(rendered(answer_charts.calibration(alone, [])), "symbol")) == 2


def test_only_the_chosen_recipe_is_named():
    rows = [{"recipe": f"gptq-w{b}", "effective_bits": b, "bytes": b * 1e9, "lower90": 0.01, "lower50": 0.02,
             "median": 0.03, "upper50": 0.04, "upper90": 0.05, "p_under": 0.2 * b, "chosen": b == 4}
            for b in (3, 4)]  # fmt: skip
    for more, dashed in (({}, 0), ({"tolerance": 0.05, "confidence": 0.9}, 4)):
        svg = rendered(answer_charts.choice([row | more for row in rows], []))
        assert [text for text in words(svg) if "gptq" in (text or "")] == ["gptq-w4", "gptq-w4"]
        assert len(drawn(svg, "rule")) == 2 * 2 + dashed


def test_nothing_to_choose_is_no_switch():
    assert vega.boxes("bits", ["3 bits"]) == []
    assert vega.menu("family", "Family", ["one"]) == []
    assert vega.one("family", "Family", ["one"]) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_text_in_the_page_and_in_expressions(name):
    rows = [{"checkpoint": other, "label": name, "tokens": 10.0**power, "density": 0.1, "disclosed": 1e12}
            for other in (name, "other") for power in range(10, 14)]  # fmt: skip
    rows = embed.one_line(rows + [row | {"label": "own"} for row in rows])
    name = rows[0]["checkpoint"]
    spec = answer_charts.levels(rows, [])
    text = embed.as_data(spec)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert unpacked(text) == in_order(json.loads(json.dumps(spec)))
    svg = rendered(spec)
    assert name.strip() in [text.strip() for text in words(svg) if text]
    assert len(drawn(svg, "area")) == 4
    assert len(drawn(rendered(switched(spec, label_0=False)), "area")) == 2
    assert len(drawn(rendered(switched(spec, checkpoint_chosen=name)), "area")) == 2


def unpacked(text):
    """What charts.js makes of the text."""
    spec = json.loads(text)
    spec["datasets"] = {name: [dict(zip(keys, row, strict=True)) for keys, *lists in packed for row in lists]
                        for name, packed in spec["datasets"].items()}  # fmt: skip
    return in_order(spec)


def in_order(spec):
    """Packing lays rows of equal keys together; which comes first is no matter."""
    return spec | {"datasets": {name: sorted(rows, key=str) for name, rows in spec["datasets"].items()}}


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else(sections):
    head = {"title": "t", "verdict": "ok", "verdict_sentence": "s", "alerts": [], "summary": "s", "sections": sections}
    page = pages.html(head)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    sources = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(sources) == 2
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources]
    allowed = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert allowed["default-src"] == "'none'"
    assert allowed["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert "connect-src" not in allowed
    assert not re.findall(r"<[a-z][^<>]*\son[a-z]+=", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_a_page_without_charts_carries_no_library(sections):
    plain = tuple(section for section in sections if not any(isinstance(block, Figure) for block in section.blocks))
    found = embed.scripts(plain)
    assert found["chart_script"] == ""
    assert len(embed.scripts(sections)["chart_script"]) > 500_000
