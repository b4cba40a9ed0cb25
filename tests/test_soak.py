"""Long tests: fuzzed input. Kills are in test_soak_kills.py, calibration of the intervals in test_calibration.py."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayesqid import bundled, cells, files, laws, recipe, suite
from bayesqid.errors import BadInput
from bayesqid.importers import sources
from bayesqid.measure import lock
from bayesqid.measure.lock import Entry

pytestmark = pytest.mark.soak

MODELS = bundled.models_dir()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# Fuzz: whatever a person gives, only BadInput escapes

NASTY = ("", "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "999999999999999999999", "true", '""', "[]", "{}",
         "[[]]", "{a = 1}", '"x"', "'{'", '"{step}"', '"{}"', "[1, 2]",
         '["rtn-w3", 4]', "2024-01-01", "\x00", "é", "\ufeff",
         "0x10", "1_000", "-0.0", "rtn", "None", ",", '"', "=", "#", "[", "]", "\\", "\n", ";", "\t")  # fmt: skip
VALUE = re.compile(r"(?<=[=,:])\s*[^=,:\n]*")
MUTATION = st.tuples(
    st.sampled_from(["value", "line", "twice", "cut", "insert", "word", "swap"]),
    st.integers(0, 10**6), st.sampled_from(NASTY), st.integers(0, 10**6),
)  # fmt: skip
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=4)
LOTS = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
SOME = settings(LOTS, max_examples=1000)


def mutate(text: str, changes: list[tuple[str, int, str, int]]) -> str:
    """The text with values replaced, lines dropped, doubled or swapped, words and characters put in or cut off."""
    for kind, place, nasty, other in changes:
        lines, found = text.splitlines(keepends=True) or [""], list(VALUE.finditer(text))
        here, there = place % len(lines), other % len(lines)
        at = place % (len(text) + 1)
        if kind == "value" and found:
            match = found[place % len(found)]
            text = text[: match.start()] + nasty + text[match.end() :]
        elif kind == "line":
            text = "".join(lines[:here] + lines[here + 1 :])
        elif kind == "twice":
            text = "".join([*lines[: here + 1], *lines[here:]])
        elif kind == "swap":
            lines[here], lines[there] = lines[there], lines[here]
            text = "".join(lines)
        elif kind == "cut":
            text = text[:at]
        elif kind == "word":
            words = re.findall(r"\w+", text) or [""]
            text = text.replace(words[place % len(words)], nasty or words[other % len(words)], 1)
        else:
            text = text[:at] + nasty + text[at:]
    return text


def only_bad_input(call, *arguments) -> None:
    with contextlib.suppress(BadInput):
        call(*arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where mutated suites find what they name."""
    place = tmp_path_factory.mktemp("fuzz")
    (place / "tiny").symlink_to(MODELS / "tiny", target_is_directory=True)
    return place


@LOTS
@given(st.sampled_from(suite.names()), MUTATIONS)
def test_mutated_suites(folder, name, changes):
    path = folder / "suite.toml"
    path.write_text(mutate((MODELS / f"{name}.toml").read_text(), changes))
    only_bad_input(suite.load, path)


PRIORS = """[beta]
mean = 0.5
sd = 0.1
spread = 0.2
[lam]
mean = 0.1
sd = 0.2
[scatter]
spread = 0.3
[checkpoint_level]
spread = 0.5
"""


@LOTS
@given(st.sampled_from(sorted(laws.LAWS)), MUTATIONS)
def test_mutated_priors(folder, law, changes):
    path = folder / "prior.toml"
    path.write_text(mutate(PRIORS if law == "boxcox" else PRIORS.replace("[lam]", "[alpha]"), changes))
    only_bad_input(lambda: laws.describe(laws.with_priors(laws.get(law), files.read_toml(path))))


TABLE = """family,model,method,bits,group_size,ppl_fp,ppl_q,qid,qid_se,n_params_nonembedding,train_tokens,vocab_size
mine,m1,gptq,3,128,5.47,6.29,,0.001,6.5e9,2e12,32000
mine,m1,rtn,4,-1,5.47,6.11,,,6.5e9,2e12,32000
mine,m2,awq,4,128,,,0.05,0.002,1.3e10,2e12,
other,LLaMA-3-8B,gptq-sym,2,64,,,3.5,,,,
"""


@SOME
@given(MUTATIONS)
def test_mutated_tables(folder, changes):
    path = folder / "table.csv"
    path.write_text(mutate(TABLE, changes))
    only_bad_input(lambda: cells.check(sources.read_cells(str(path))))


RECIPE = (
    r"(rtn|gptq|awq|hqq|none)-(w|mxint|mxfp|nvfp|nf|fp)\d{1,3}(e\dm\d)?(-g\d{1,3})?(-a?sym)?(-act)?(-oneshot)?(-wa)?"
    r"(-s\d{1,3})?(-saved)?"
)


@LOTS
@given(st.one_of(st.text(), st.from_regex(RECIPE, fullmatch=True),
                 MUTATIONS.map(lambda changes: mutate("gptq-w4-g128-asym-act-oneshot-s3", changes)),
                 MUTATIONS.map(lambda changes: mutate("awq-w3-g32-sym-saved", changes))))  # fmt: skip
def test_any_text_for_a_recipe(text):
    try:
        found = recipe.parse(text)
    except BadInput:
        return
    assert recipe.parse(str(found)) == found
    # nothing is written that was not said, but for what is usual
    assert {*str(found).split("-")} <= {*text.split("-")}
    assert found == recipe.NONE or recipe.stored_bits(found, 7, 33) > found.bits * 7 * 33


LOCKED = {
    "f/a@1": Entry("org/toy", "main", "1" * 40, {"model.safetensors": "a" * 64, "config.json": "c" * 64}),
    "f/b@1": Entry("folder", "local", None, {"model.safetensors": "b" * 64}),
}


@SOME
@given(MUTATIONS)
def test_mutated_locks(folder, changes):
    path = folder / "toy.lock"
    lock.write(path, LOCKED)
    path.write_text(mutate(path.read_text(), changes))
    only_bad_input(lock.claim, path, "f/a@1", LOCKED["f/a@1"])
    only_bad_input(lock.claim, path, "f/c@1", Entry("folder", "local", None, {"model.safetensors": "d" * 64}))


# a corrupt file may end the whole process inside libhdf5: each batch reads in its own
READER = """
import json, random, sys, traceback
from pathlib import Path
from bayesqid.answers import asking, draws, project
from bayesqid.errors import BadInput
from bayesqid.importers import sources
from bayesqid.measure import lock
from bayesqid.measure.lock import Entry
source, place, kind, first, count = sys.argv[1:]
whole = Path(source).read_bytes()
read = {"measurements": sources.read_cells, "posterior": lambda path: (
    lambda found: project.as_json(project.project(found, asking.targets(found, 1e13), "new")))(draws.read(path))}[kind]
for number in range(int(first), int(first) + int(count)):
    chance, spoiled = random.Random(number), bytearray(whole)
    if number % 4 == 0:
        del spoiled[chance.randrange(len(spoiled)):]
    for _ in range(chance.choice([1, 10, 300])):
        # half of the hits in the first bytes, where the structure of the file is dense
        spoiled[chance.randrange(len(spoiled) if chance.random() < 0.5 else 20000) % max(len(spoiled), 1)] = \\
            chance.randrange(256)
    Path(place).write_bytes(spoiled)
    print(number, "begins", flush=True)
    try:
        read(place)
    except BadInput:
        pass
    except Exception:
        print(number, "ESCAPED", traceback.format_exc(), flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "name", "count"), [("measurements", "tiny.nc", 200), ("posterior", "posterior.nc", 100)]
)
def test_corrupt_netcdf(tmp_path, kind, name, count):
    command = [sys.executable, "-W", "ignore", "-c", READER, bundled.data_dir() / name, tmp_path / "spoiled.nc", kind]
    first, escaped = 0, []
    while first < count:
        done = subprocess.run([str(word) for word in (*command, first, count - first)], env=ENVIRONMENT, text=True,
                              capture_output=True, check=False, timeout=800)  # fmt: skip
        escaped += [done.stdout] if "ESCAPED" in done.stdout else []
        begun = re.findall(r"^(\d+) begins", done.stdout, re.MULTILINE)
        assert begun, done.stderr
        # a crash of libhdf5 itself is not ours: go on behind it
        assert done.returncode == 0 or done.returncode < 0, done.stderr
        first = int(begun[-1]) + 1
    assert not escaped, "\n".join(escaped)
