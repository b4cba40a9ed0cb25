"""The functions of the package are the commands."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import bayesqid
from bayesqid import cli
from bayesqid.errors import BadInput

# what concerns a terminal or a file, and has no place in a function that returns its answer
OF_A_TERMINAL = {"as_json", "quiet", "output", "shares", "everything"}
NAMES = {"next": "next_measurements"}
# command -> words that a function says otherwise
OTHERWISE = {
    "score": {"names": "data"}, "compare": {"compared": "laws", "future_from": "", "largest_from": "", "params": "",
                                            "tokens": "", "bits": ""},
}  # fmt: skip
COMMANDS = {name: cli.function(name) for names in cli.COMMANDS.values() for name in names
            if NAMES.get(name, name) in bayesqid.__all__}  # fmt: skip


def test_every_question_has_a_function():
    asked = list(cli.COMMANDS.values())[:2]
    assert {name for group in asked for name in group} <= set(COMMANDS)
    assert {NAMES.get(name, name) for name in COMMANDS} | {"open_posterior"} == set(bayesqid.__all__)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_takes_every_option_of_its_command_with_its_default(name):
    options = inspect.signature(COMMANDS[name]).parameters
    words = inspect.signature(getattr(bayesqid, NAMES.get(name, name))).parameters
    other = OTHERWISE.get(name, {})
    for option, parameter in options.items():
        word = other.get(option, option)
        if option in OF_A_TERMINAL or not word:
            continue
        assert word in words, f"bayesqid {name} has --{option}, the function has not"
        default = words[word].default
        empty = (None, (), [], ("atlas",), ("hierarchical",), inspect.Parameter.empty, "boxcox")
        assert default == parameter.default or (default in empty), option


def test_the_functions_answer_as_the_commands_do(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "bayesqid", "project", "--tokens", "1e13", "--params", "7e9", "--json", "--quiet"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = json.loads(run.stdout)["rows"]
    answer = bayesqid.project(tokens=1e13, params=7e9)
    np.testing.assert_allclose(answer["median"], [row["median"] for row in printed], rtol=1e-12)


def test_a_posterior_is_a_path_a_tree_or_opened_once():
    opened = bayesqid.open_posterior()
    by_path, by_tree = bayesqid.open_posterior(opened.path), bayesqid.open_posterior(opened.tree)
    assert bayesqid.open_posterior(opened) is opened
    medians = [bayesqid.project(one, params=7e9)["median"] for one in (opened, by_path, by_tree, opened.tree)]
    for other in medians[1:]:
        xr.testing.assert_equal(medians[0], other)


def test_a_missing_file_is_bad_input():
    with pytest.raises(BadInput, match="nowhere"):
        bayesqid.tokens("nowhere.nc")


def test_importing_the_package_imports_nothing_else():
    code = "import sys, bayesqid; dir(bayesqid); print([m for m in ('numpy', 'xarray', 'typer') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantize'"):
        _ = bayesqid.quantize
