"""Importing as a whole: the table of importers, what they share, the command."""

import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from bayesqid import bundled, cells, importers
from bayesqid.errors import BadInput
from bayesqid.importers import formats, sources
from importing import HERE, TINY, excluded, read

# importer -> results that it must recognise, and what must be said besides
SAMPLES = {
    "lm-eval": ("lm-eval", {**TINY, "tokens_per_byte": 1}),
    "llama.cpp": ("llama.cpp/llama-3-8b-q4_k_m-kl.log", {}),
    "gptq": ("gptq", {"model": "LLaMA-2-7B", "ppl": "5.47:5.63"}),
    "table": ("table/theirs.csv", {"mapping": HERE / "table" / "mapping.toml"}),
    "measured": (bundled.data_dir() / "tiny.nc", {}),
}


@pytest.fixture(scope="module")
def atlas():
    return sources.read_cells("atlas")


def test_every_importer_has_a_sample():
    assert set(SAMPLES) == set(importers.IMPORTERS)


@pytest.mark.parametrize("name", importers.IMPORTERS)
def test_results_are_recognised_and_become_cells_that_inference_takes(name, atlas):
    path, given = SAMPLES[name]
    assert importers.recognise(HERE / path) == name
    made = read(HERE / path, kind=name, **given)
    cells.check(made)
    assert (made["qid"] > 0).any()
    assert json.loads(made.attrs["sources"])[0]["sha256"]
    # together with the atlas, and under the schema of files that measure wrote
    joined = cells.join([atlas, made])
    assert joined.sizes["cell"] == 1232 + made.sizes["cell"]
    assert set(joined.variables) >= {*cells.TEXTS, *cells.NUMBERS, *cells.FLAGS, *cells.VALUES}


@pytest.mark.parametrize("name", ["lm-eval", "table"])
def test_what_is_written_reads_back_the_same(name, tmp_path):
    from bayesqid import files

    path, given = SAMPLES[name]
    made = read(HERE / path, **given)
    files.write_netcdf(made, tmp_path / "cells.nc")
    back = sources.read_cells(str(tmp_path / "cells.nc"))
    assert back.drop_attrs().identical(made.drop_attrs())
    assert back.attrs["excluded"] == made.attrs["excluded"]


@pytest.mark.parametrize("name", importers.IMPORTERS)
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe\x89HDF", b"{", b"[" * 100_000, b'{"bits": 4', b"nan\n" * 3, b'{"results": 7}',
                b"Final estimate: PPL = nan +/- nan", b"Mean ln(PPL(Q)/PPL(base)) : 1e999 \xc2\xb1 -nan"]
)  # fmt: skip
def test_rubbish_is_refused_in_one_sentence(name, content, tmp_path):
    ending = {"lm-eval": "results_x.json", "gptq": "quantize_config.json", "table": "t.csv", "measured": "m.nc"}
    path = tmp_path / ending.get(name, "run.log")
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read(path, kind=name, model="LLaMA-2-7B", ppl="5:6")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_what_nobody_knows_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("a note")
    with pytest.raises(BadInput, match="none of the results"):
        importers.recognise(tmp_path / "note.txt")
    with pytest.raises(BadInput, match="no file or folder"):
        importers.recognise(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"'vllm'.*lm-eval, gptq"):
        importers.module("vllm")
    with pytest.raises(BadInput, match="one kind at a time"):
        read(HERE / "gptq", HERE / "table" / "theirs.csv")


@pytest.mark.parametrize(
    "wrong", [{"params": 0}, {"tokens": float("nan")}, {"tokens": float("inf")}, {"vocabulary": -1},
              {"tokens_per_byte": 0}, {"lr_phase": "hot"}, {"recipe": "gptq-w9"}, {"context": -5}]
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(wrong):
    with pytest.raises(BadInput):
        formats.Given(**wrong)


def test_facts_come_from_the_name_and_the_revision():
    final = formats.identify(formats.Given(), "EleutherAI/pythia-1b")
    assert final["train_tokens"] == pytest.approx(299892736000)
    early = formats.identify(formats.Given(), "EleutherAI/pythia-1b", "step3000")
    assert (early["train_tokens"], early["checkpoint"]) == (3000 * 2097152, "pythia-1b@step3000")
    assert early["n_params_nonembedding"] == final["n_params_nonembedding"]
    # a revision that no suite lists must not get the final tokens
    with pytest.raises(BadInput, match="training tokens.*--tokens"):
        formats.identify(formats.Given(), "EleutherAI/pythia-1b", "my-branch")
    stated = formats.identify(formats.Given(tokens=5e9), "EleutherAI/pythia-1b", "my-branch")
    assert (stated["train_tokens"], stated["lr_phase"]) == (5e9, "unknown")


@pytest.mark.parametrize(
    ("missing", "option"), [("family", "--family"), ("params", "--params"), ("tokens", "--tokens")]
)
def test_a_missing_fact_names_the_option_that_tells_it(missing, option):
    facts = {"model": "nobody-knows", "family": "f", "params": 1e9, "tokens": 1e11}
    with pytest.raises(BadInput, match=option):
        formats.identify(formats.Given(**{**facts, missing: None}), "nobody-knows")
    assert formats.identify(formats.Given(**facts), "x")["n_params_nonembedding"] == 1e9


def test_the_atlas_is_the_same_by_either_way(atlas):
    made = read(bundled.data_dir() / "published_qid.csv")
    assert made.drop_attrs().identical(atlas.drop_attrs())
    assert excluded(made) == excluded(atlas)
    assert sum(excluded(made).values()) == len(pd.read_csv(bundled.data_dir() / "published_qid.csv")) - 1232


@pytest.mark.slow
def test_measurements_come_through_as_sample_reads_them():
    file = bundled.data_dir() / "tiny.nc"
    assert read(file).identical(cells.join([sources.read_cells(str(file))]))


def command(*arguments):
    import typer

    from bayesqid.cli.import_ import import_

    app = typer.Typer()
    app.command()(import_)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_what_sample_reads_and_says_what_it_left_out(tmp_path):
    out = tmp_path / "cells.nc"
    facts = ["--family", "tiny-neox", "--params", 25472, "--tokens", 7999488, "--vocabulary", 256]
    done = command(HERE / "lm-eval", "--tokens-per-byte", 1, *facts, "-o", out)
    assert done.exit_code == 0, done.output
    assert "0.2003" in done.output
    assert "left out: 2 x word_perplexity" in done.output
    assert np.isfinite(sources.read_cells(str(out))["qid"]).all()
    shown = done.output.replace(str(out), "cells.nc").splitlines()
    assert all(len(line) <= 90 for line in shown if "left out" not in line)


def test_the_command_needs_a_path_and_checks_tables(tmp_path):
    assert isinstance(command().exception, BadInput)
    assert isinstance(command(HERE / "gptq", "--model", "LLaMA-2-7B").exception, BadInput)
    checked = command("--check", HERE / "table" / "theirs.csv")
    assert checked.exit_code == 2
    assert "family" in checked.output


def test_a_tokenizer_counts_what_lm_eval_does_not_say():
    made = read(HERE / "lm-eval", **TINY, count_tokens=lambda text: len(text.encode()))
    by_rate = read(HERE / "lm-eval", **TINY, tokens_per_byte=1)
    xr.testing.assert_equal(made, by_rate)
    with pytest.raises(BadInput, match="--tokenizer"):
        read(HERE / "lm-eval", **TINY)


PAGE = (HERE.parents[2] / "docs" / "import.md").read_text()
FOUND = re.findall(r"```bash\n(bayesqid import .*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
SHOWN = [(line.replace("\\\n", ""), printed) for line, printed in FOUND]


@pytest.mark.parametrize(("line", "printed"), SHOWN, ids=range(len(SHOWN)))
def test_the_page_shows_what_the_command_prints(line, printed, tmp_path, monkeypatch):
    words = [str(HERE.parents[2] / word) if word.startswith("tests/") else word for word in shlex.split(line)[2:]]
    monkeypatch.chdir(tmp_path)
    done = command(*words)
    assert done.exit_code == 0, done.output
    assert done.stdout == printed


def test_the_page_has_an_example_of_every_importer_of_other_peoples_results():
    assert {importers.recognise(HERE.parents[2] / shlex.split(line)[2]) for line, _ in SHOWN} == {
        *importers.IMPORTERS} - {"measured"}  # fmt: skip
    assert (HERE / "table" / "mapping.toml").read_text().split() == re.sub(
        r" +#.*", "", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]).split()  # fmt: skip


@pytest.mark.slow
def test_imported_cells_are_sampled_together():
    from bayesqid import laws
    from bayesqid.inference import sample

    names = [name for name in SAMPLES if name != "measured"]
    parts = [read(HERE / SAMPLES[name][0], **SAMPLES[name][1]) for name in names]
    joined = cells.check(cells.join([*parts, sources.read_cells("tiny").isel(cell=slice(0, 40))]))
    tree = sample.sample(joined, laws.variant("boxcox", "both", ()), "hierarchical", "laplace", 0, 4, 200, 100)
    assert set(tree["cells"]["source"].values) >= {"imported: lm-eval", "imported: llama.cpp", "imported: gptq"}
    assert all(np.isfinite(tree["posterior"][name]).all() for name in ("log_k", "gamma"))
