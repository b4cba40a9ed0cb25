"""The command line as a person or a script meets it: streams, exits, one plain sentence for bad input."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import posteriors
from bayesqid import bundled, cells, cli, files, measurements

HEADER = "family,model,method,bits,qid,n_params_nonembedding,train_tokens\n"
ROWS = "mine,m1,gptq,3,0.2,1e9,1e11\nmine,m1,gptq,4,0.05,1e9,1e11\n"
LADDER = bundled.models_dir() / "tiny"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def bayesqid(monkeypatch, capsys, tmp_path) -> Callable[..., Answer]:
    """Run one command line in this process, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["bayesqid", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Answer(stop.value.code, out, err)

    return run


@pytest.fixture(scope="module")
def bad(tmp_path_factory, good) -> Path:
    """A folder with a good posterior and every bad file of the table below; no test changes it."""
    folder = tmp_path_factory.mktemp("bad")
    lay_out(folder)
    (folder / "posterior.nc").write_bytes(good.read_bytes())
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.nc"
    return files.write_netcdf(posteriors.tree(), path)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


TEXTS = {
    "text.nc": "this is a note, not netCDF\n",
    "text.toml": "what is this\n",
    "typo.toml": "[beta]\nmaen = 0.5\n",
    "unknown.toml": "[delta]\nmean = 0.5\n",
    "negative.toml": "[beta]\nsd = -0.1\n",
    "nan.toml": "[beta]\nmean = nan\n",
    "number.toml": "beta = 3\n",
    "binary.toml": "\x00",
    "lacking.csv": HEADER.replace("method,", "") + "mine,m1,3,0.2,1e9,1e11\n",
    "nan.csv": HEADER + ROWS.replace("1e11", "nan"),
    "negative.csv": HEADER + ROWS.replace("1e11", "-1e11"),
    "zero.csv": HEADER + ROWS.replace("1e9", "0"),
    "inf.csv": HEADER + ROWS.replace("0.2", "inf"),
    "words.csv": HEADER + ROWS.replace("0.2", "bad"),
    "untold.csv": HEADER + ROWS.replace("1e11", ""),
    "rows.csv": HEADER,
    "empty.csv": "",
    "fine.csv": HEADER + ROWS,
    "suite.toml": (bundled.models_dir() / "tiny.toml").read_text().replace("recipes", "recipe"),
    "a-file": "a file, no folder\n",
}  # fmt: skip


def lay_out(folder: Path) -> None:
    """Every bad file that the table below names."""
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    whole = (bundled.data_dir() / "tiny.nc").read_bytes()
    (folder / "measured.nc").write_bytes(whole)
    (folder / "half.nc").write_bytes(whole[: len(whole) // 2])
    (folder / "void.nc").write_bytes(b"")
    lacking = files.open_dataset(folder / "measured.nc").drop_vars("tokens")
    files.write_netcdf(lacking, folder / "lacking.nc")
    bare = xr.DataTree(xr.Dataset(attrs={"schema": "bayesqid-posterior/1"}))
    files.write_netcdf(bare, folder / "bare.nc")


read_once = cache(files.open_tree)
FAST = "--engine laplace --draws 50 --chains 2"
# command line -> what its one sentence must name
BAD = {
    "project nowhere.nc": "nowhere.nc",
    "report nowhere.nc": "nowhere.nc",
    "level nowhere.nc --params 7e9 --qid 4=.1:.01": "nowhere.nc",
    "project --loss-law nobody": "'nobody'",
    "project --tokens-range 5": "--tokens-range",
    "project --tokens-range 1e14:1e11": "--tokens-range",
    "project --population --new-family": "--population",
    "project --points 3": "--points",
    "project --targets nowhere.csv": "nowhere.csv",
    "project --targets lacking.csv": "lacking.csv",
    "tokens nowhere.nc": "nowhere.nc",
    "tokens --threshold 0": "--threshold",
    "tokens --threshold nan": "--threshold",
    "tokens --bits 1e400": "--bits",
    "tokens --family nobody": "'nobody'",
    "choose nowhere.nc --params 7e9 --tokens 1e12": "nowhere.nc",
    "choose --tokens 1e12": "--params",
    "choose --params 0 --tokens 1e12": "--params",
    "choose --params 7e9 --tokens 1e400": "--tokens",
    "choose --params 7e9 --tokens 1e12 --tolerance -1": "--tolerance",
    "choose --params 7e9 --tokens 1e12 --confidence 1.5": "--confidence",
    "choose --memory 6 --tokens 1e12 --loss-law chinchilla": "--memory",
    "choose --memory 6GB --tokens 1e12": "--loss-law",
    "choose --params 7e9 --tokens 1e12 --recipes none": "none",
    "drivers nowhere.nc": "nowhere.nc",
    "drivers --tokens 1e12": "--tokens",
    "drivers --family nobody": "'nobody'",
    "drivers --suite nobody": "'nobody'",
    "next nowhere.nc": "nowhere.nc",
    "next --suite nobody": "'nobody'",
    "next --budget 0": "--budget",
    "next --budget many": "--budget",
    "next --params nan": "--params",
    "level --params 7e9 --measurements nowhere.nc": "nowhere.nc",
    "project half.nc": "half.nc",
    "project void.nc": "void.nc",
    "project text.nc": "text.nc",
    "report text.nc": "text.nc",
    "project measured.nc": "bayesqid-measurements/1",
    "report measured.nc": "bayesqid-measurements/1",
    "level measured.nc --params 7e9 --qid 4=.1:.01": "bayesqid-measurements/1",
    "project bare.nc": "bare.nc",
    "project a-file": "a-file",
    "project --family Nobody": "'Nobody'",
    "level --params 7e9 --qid 4=.1:.01 --family Nobody": "'Nobody'",
    "report --family Nobody": "'Nobody'",
    "project --family crossed --new-family": "--new-family",
    "project --method magic": "'magic'",
    "level --params 7e9 --qid 4=.1:.01 --method magic": "'magic'",
    "project --recipes magic-w3": "'magic'",
    "project --recipes rtn-w3,": "recipe",
    "project --recipes rtn-w7": "7 bits",
    "project --recipes none": "'none'",
    "project --recipes rtn-w3 --bits 3": "--bits",
    "project --band wide": "'wide'",
    "report --band wide": "'wide'",
    "project --lr-phase late": "'late'",
    "project --model-name GPT-9": "'GPT-9'",
    "level --model-name GPT-9 --qid 4=.1:.01": "'GPT-9'",
    "project --params 7e9 --model-name LLaMA-3-8B": "--model-name",
    "level --params 7e9 --model-name LLaMA-3-8B --qid 4=.1:.01": "--model-name",
    **{f"project --{name}={value}": f"--{name}"
       for name in ("tokens", "params", "bits") for value in ("nan", "-1", "0", "inf", "-inf", "1e400", "x", "")},
    **{f"level --params={value} --qid 4=.1:.01": "--params" for value in ("nan", "-7e9", "0", "inf")},
    **{f"report --tokens={value}": "--tokens" for value in ("nan", "-1", "0", "inf")},
    "level --params 7e9": "--qid",
    "level --qid 4=.1:.01": "--params",
    **{f"level --params 7e9 --qid={text}": what for text, what in
       {"4": "--qid '4'", "4=": "malformed", "4=.1": "malformed", "=.1:.01": "malformed", "x=.1:.01": "recipe",
        "4=nan:.01": "nan", "4=.1:0": "standard error", "4=.1:-1": "standard error", "4=.1:inf": "standard error",
        "nan=.1:.01": "nan", "-3=.1:.01": "-3", "rtn-w9=.1:.01": "9 bits", "": "malformed"}.items()},
    "level --params 7e9 --qid 4=.1:.01 --tokens-prior 1e9": "--tokens-prior",
    "level --params 7e9 --qid 4=.1:.01 --tokens-prior 1e16:1e9": "--tokens-prior",
    "level --params 7e9 --qid 4=.1:.01 --tokens-prior nan:1e9": "--tokens-prior",
    "sample fine.csv --law newton": "'newton'",
    "sample fine.csv --model magic": "'magic'",
    "sample fine.csv --engine magic": "'magic'",
    "sample fine.csv --chains 1": "--chains",
    "sample fine.csv --draws 0": "--draws",
    "sample fine.csv --seed -1": "--seed",
    "sample nowhere": "'nowhere'",
    "sample nowhere.csv": "'nowhere.csv'",
    "sample atlas atlas": "two of the data sets",
    "sample text.nc": "text.nc",
    "sample half.nc": "half.nc",
    "sample lacking.nc": "tokens",
    "sample bare.nc": "bayesqid-posterior/1",
    "sample a-file": "a-file",
    "sample lacking.csv": "'method'",
    "sample nan.csv": "train_tokens",
    "sample negative.csv": "train_tokens",
    "sample zero.csv": "n_params_nonembedding",
    "sample inf.csv": "qid",
    "sample words.csv": "qid",
    "sample untold.csv": "No cell is left",
    "sample rows.csv": "no rows",
    "sample empty.csv": "empty.csv",
    "sample fine.csv --prior nowhere.toml": "nowhere.toml",
    "sample fine.csv --prior text.toml": "text.toml",
    "sample fine.csv --prior binary.toml": "binary.toml",
    "sample fine.csv --prior typo.toml": "'maen'",
    "sample fine.csv --prior unknown.toml": "'delta'",
    "sample fine.csv --prior negative.toml": "-0.1",
    "sample fine.csv --prior nan.toml": "nan",
    "sample fine.csv --prior number.toml": "[beta]",
    f"sample fine.csv {FAST} -o .": "folder",
    f"sample fine.csv {FAST} -o a-file/p.nc": "a-file",
    "project -o a-file": "a-file",
    "project -o a-file/report": "a-file",
    "report -o a-file": "a-file",
    "measure nosuite": "'nosuite'",
    "measure suite.toml": "'recipe'",
    "measure text.toml": "text.toml",
    "measure ./nowhere --family f --tokens 1": "./nowhere",
    "measure --recipes magic-w3": "'magic'",
    "measure --recipes=": "recipe",
    "measure --device abacus": "'abacus'",
    "measure --dtype int8": "'int8'",
    "measure --family mine": "--family",
    "measure --text nowhere.jsonl": "nowhere.jsonl",
    "measure --text a-file": "a-file",
    "measure -o text.nc": "text.nc",
    "measure -o measured.nc --max-bytes 64": "max_bytes",
    "measure -o a-file/m.nc": "a-file",
    "measure -o .": "folder",
    "show suites nosuite": "'nosuite'",
    "show suites suite.toml": "'recipe'",
    "show laws newton": "'newton'",
    "show nothing": "nothing",
    "project --colour": "--colour",
    "project one.nc two.nc": "two.nc",
    "projct": "projct",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_plain_sentence_and_leaves_nothing(line, bayesqid, bad, monkeypatch):
    if line.startswith("measure"):
        pytest.importorskip("torch")
    monkeypatch.chdir(bad)
    monkeypatch.setattr(files, "open_tree", read_once)  # the good posterior takes most of a second
    before = tree(bad)
    code, out, err = bayesqid(*line.split(" "))
    assert (code, out) == (2, "")
    notes = ("Posterior: ", "2 cells, 0 of them", "The first run on a machine compiles")
    said = [text for text in err.splitlines() if not text.startswith(notes)]
    assert 1 <= len(said) <= 3
    assert "Traceback" not in err
    assert said[0].startswith("bayesqid: ")
    sentence = " ".join(said)
    assert BAD[line] in sentence
    assert sentence.rstrip("'").endswith((".", "?"))
    assert tree(bad) == before


def test_packages_that_only_measuring_needs_are_those_of_its_extra():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = [re.match(r"[\w-]+", one)[0] for one in project["optional-dependencies"]["measure"]]
    assert sorted(extra) == sorted(cli.OF_MEASURE)


@pytest.mark.parametrize("line", ["measure", "measure tiny --recipes rtn-w3", "mix ./nowhere --budget 3"])
def test_without_torch_its_extra_is_named(tmp_path, line):
    code = "import sys; sys.modules['torch'] = None; from bayesqid import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], text=True, capture_output=True, cwd=tmp_path,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bayesqid: this needs torch, which is not installed: pip install 'bayesqid[measure]'.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_bad_file_in_the_folder_is_not_passed_over(bayesqid, tmp_path):
    """Only the absence of ./posterior.nc leads to the bundled one."""
    (tmp_path / "posterior.nc").write_text("broken")
    assert bayesqid("project").code == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said_before_the_work(bayesqid, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = bayesqid("sample", "-o", "locked/p.nc")
    assert (code, "locked" in err) == (2, True)


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "/some/file"), 2, "/some/file"),
        (OSError(28, "No space left on device", "/some/file"), 2, "No space left"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_what_ends_a_command_from_outside(bayesqid, monkeypatch, raised, code, says):
    from bayesqid.answers import draws

    def stop(*_, **__):
        raise raised

    monkeypatch.setattr(draws, "read", stop)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    result = bayesqid("project")
    assert result.code == code
    assert says in result.err
    assert "Traceback" not in result.err


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "bayesqid", "show", "laws"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch, tmp_path):
    from bayesqid.answers import draws

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bayesqid", "project"])
    monkeypatch.setattr(draws, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


KEYS = {"law", "model", "checks", "verdict", "posterior", "band", "interval", "assumptions", "excluded", "rows"}
ROW = {"family", "params", "tokens", "bits", "method", "median", "lower50", "upper50", "lower90", "upper90", "p_gt_0.1",
       "p_gt_0.2", "p_gt_0.5", "p_saturated", "extrapolation"}  # fmt: skip


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers(item)]
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def no_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("options", [(), ("--band", "mean", "--params", "7e9", "--bits", "3"),
                                     ("--model-name", "llama-3-8b", "--recipes", "gptq-w4-g128,rtn-w3"),
                                     ("--tokens", "1e19", "--params", "1e3", "--band", "observed")])  # fmt: skip
def test_project_json_keeps_its_contract(bayesqid, options):
    code, out, err = bayesqid("project", "--json", *options)
    result = json.loads(out, parse_constant=no_constant)
    assert code == 0
    assert set(result) >= KEYS
    path = bundled.data_dir() / "posterior.nc"
    assert result["posterior"] == {"path": str(path), "sha256": files.sha256_file(path), "origin": "bundled"}
    assert str(path) in err, "stderr names the posterior"
    assert result["interval"] == "eti"
    assert np.isfinite(numbers(result)).all()
    for row in result["rows"]:
        assert set(row) >= ROW
        assert set(row["extrapolation"]) == {"n_ratio", "d_ratio", "p_outside"}
        assert row["lower90"] <= row["lower50"] <= row["median"] <= row["upper50"] <= row["upper90"]
        assert 1 >= row["p_gt_0.1"] >= row["p_gt_0.2"] >= row["p_gt_0.5"] >= 0
        assert row["extrapolation"]["n_ratio"] >= 1


def test_the_posterior_in_the_folder_goes_before_the_bundled_one(bayesqid, good, tmp_path):
    (tmp_path / "posterior.nc").write_bytes(good.read_bytes())
    found = json.loads(bayesqid("project", "--json").out)["posterior"]
    assert found == {"path": "posterior.nc", "sha256": files.sha256_file(good), "origin": "file"}
    code, _, err = bayesqid("project", "nowhere.nc", "--json")
    assert (code, "nowhere.nc" in err) == (2, True)


def test_level_json_has_no_nan_and_names_its_posterior(bayesqid, good):
    code, out, err = bayesqid("level", good, "--params", "7e9", "--qid", "4=0.05:0.004", "--json")
    result = json.loads(out, parse_constant=no_constant)
    assert code == 0
    assert np.isfinite(numbers(result)).all()
    assert str(good) in err


ANSWERS = {
    "project": "verdict", "choose": "verdict", "tokens": "verdict", "level": "verdict", "drivers": "checks",
    "next": "checks",
}  # fmt: skip
WORDS = {"choose": "--params 7e9 --tokens 1e12", "level": "--params 7e9 --qid 4=.1:.01", "next": "--suite tiny",
         "drivers": "--suite tiny"}  # fmt: skip


@pytest.mark.parametrize("command", ANSWERS)
def test_failed_checks_are_the_first_line_of_an_answer(command, bayesqid, tmp_path):
    bad = files.write_netcdf(posteriors.tree(checks={"rhat": False, "divergences": True}), tmp_path / "p.nc")
    words = [command, bad, *WORDS.get(command, "").split()]
    code, out, _ = bayesqid(*words)
    assert code == 0
    assert out.splitlines()[0] == "Checks failed: rhat."
    said = json.loads(bayesqid(*words, "--json").out)
    assert not said["checks"]["rhat"]
    if ANSWERS[command] == "verdict":
        assert said["verdict"] == "checks failed"


@pytest.mark.slow
def test_a_projection_with_output_writes_its_report(bayesqid, good, tmp_path):
    code, out, err = bayesqid("project", good, "-o", "new/report", "--json")
    assert code == 0
    json.loads(out)
    assert {path.name for path in (tmp_path / "new" / "report").iterdir()} == {
        "projection.nc", "index.html", "report.md", "data", "figures"}  # fmt: skip
    assert "index.html" in err


def cells_in(path: Path) -> xr.Dataset:
    """The cells that a posterior holds."""
    return files.open_tree(path)["cells"].to_dataset()


def same_cells(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        np.testing.assert_array_equal(one[name].to_numpy(), other[name].to_numpy(), err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_of_ones_own_from_its_folder_to_a_projection(bayesqid, tmp_path):
    pytest.importorskip("torch")
    place = LADDER / "tiny-neox-25k" / "step244"
    code, out, err = bayesqid(
        "measure", place, "--family", "mine", "--tokens", "1e6", "--tokenizer", LADDER / "tokenizer",
        "--recipes", "rtn-w3,rtn-w4", "--documents", 24, "--max-bytes", 128, "--jobs", 1,
    )  # fmt: skip
    assert code == 0
    assert "3 cells measured, 0 failed" in err
    code, out, err = bayesqid("sample", "measurements.nc", "--engine", "laplace", "--draws", 100, "--chains", 2)
    assert code == 0
    assert "fitted as pooled" in err
    assert "Wrote posterior.nc" in out
    measured = measurements.read(tmp_path / "measurements.nc")
    stored = cells_in(tmp_path / "posterior.nc")
    same_cells(stored, cells.from_measurements(measured, {}))
    assert stored["qid"].to_numpy() == pytest.approx(measurements.qid(measured).values[0, 1:], rel=1e-15)
    source = json.loads(stored.attrs["sources"])[0]
    assert source == {"name": "measurements.nc", "sha256": files.sha256_file(tmp_path / "measurements.nc")}
    tree = files.open_tree(tmp_path / "posterior.nc")
    assert (tree.attrs["model"], tree.attrs["asked_model"]) == ("pooled", "hierarchical")
    code, out, _ = bayesqid("project", "--json", "--family", "mine", "--params", "1e5", "--tokens", "1e8")
    assert (code, json.loads(out)["rows"][0]["family"]) == (0, "mine")


@pytest.mark.slow
def test_one_document_moves_one_cell_and_nothing_else(bayesqid, tmp_path):
    data = measurements.read(bundled.data_dir() / "tiny.nc")
    where = {"checkpoint": str(data["checkpoint"].values[7]), "recipe": "gptq-w3"}
    data["nats"].loc[{**where, "document": data["document"].values[5]}] += 40.0
    files.write_netcdf(data, tmp_path / "moved.nc")
    fast = ("--engine", "laplace", "--draws", 50, "--chains", 2)
    assert bayesqid("sample", "tiny", *fast, "-o", "one.nc").code in (0, 3)
    assert bayesqid("sample", "moved.nc", *fast, "-o", "two.nc").code in (0, 3)
    one, two = cells_in(tmp_path / "one.nc"), cells_in(tmp_path / "two.nc")
    hit = (one["checkpoint"] == where["checkpoint"]) & (one["method"] == "gptq") & (one["bits"] == 3)
    assert int(hit.sum()) == 1
    tokens = float(data["tokens"].sel(checkpoint=where["checkpoint"]).sum())
    moved = (two["qid"] - one["qid"]).sel(cell=hit.to_numpy()).item()
    assert moved == pytest.approx(40.0 / tokens, rel=1e-9)
    for name in one.variables:
        changed = one[name].to_numpy() != two[name].to_numpy()
        expected = hit.to_numpy() if name in ("qid", "qid_se") else np.zeros(hit.size, dtype=bool)
        np.testing.assert_array_equal(changed & ~pd.isna(one[name].to_numpy()), expected, err_msg=str(name))


@pytest.mark.slow
def test_failed_checks_end_with_3_and_stand_in_the_file(bayesqid, tmp_path, monkeypatch):
    from bayesqid.inference import checks

    (tmp_path / "fine.csv").write_text(HEADER + ROWS)
    monkeypatch.setitem(checks.FAST_LIMITS, "importance_ess", np.inf)
    code, out, _ = bayesqid("sample", "fine.csv", "--engine", "laplace", "--draws", 50, "--chains", 2)
    assert code == 3
    assert out.splitlines()[0] == "Checks failed: importance_ess."
    tree = files.open_tree(tmp_path / "posterior.nc")
    assert json.loads(tree.attrs["checks"]) == {"importance_ess": False}
    assert bayesqid("project").out.startswith("Checks failed: importance_ess.")
