import csv
from itertools import chain, combinations
from pathlib import Path

import pytest

from bayesqid import methods, recipe

RAW = Path(__file__).parents[1] / "data" / "raw" / "published_qid.csv"


def printed_names():
    with open(RAW, encoding="utf-8") as stream:
        return sorted({row["method"] for row in csv.DictReader(stream)})


@pytest.mark.parametrize("printed", printed_names())
def test_every_printed_method_of_the_atlas_has_a_generation(printed):
    assert methods.generation(*methods.canonical(printed)) in methods.GENERATIONS


def legal_recipes():
    """Every method, format, bit width, group size, grid and set of options that a recipe may name."""
    for name, method in recipe.METHODS.items():
        for kind in method.formats:
            known = [*recipe.options(name, kind), "saved"]
            choices = list(chain.from_iterable(combinations(known, count) for count in range(len(known) + 1)))
            form = recipe.FORMATS[kind]
            for grid in method.grids if kind == "int" else ("sym",):
                for bits in form.bits:
                    for group in form.groups:
                        for options in choices:
                            yield recipe.Recipe(name, bits, group, grid == "sym", kind, options)


def test_every_recipe_has_a_quantizer_of_a_known_generation():
    printed = {legal.quantizer for legal in legal_recipes()}
    narrow = {f"rtn-{name}" for name in (*methods.MX_TYPES, *methods.FP8_TYPES)}
    nearest = {"rtn", "nf4", "fp4", "rtn-nvfp4"} | narrow | {f"{name}-wa" for name in narrow}
    calibrated = {"gptq", "gptq-actorder", "gptq-mxint", "gptq-mxint-wa", "awq", "hqq"}
    assert printed == nearest | calibrated
    found = {name: methods.generation(*methods.canonical(name)) for name in printed}
    assert {name for name, generation in found.items() if generation == "rtn"} == nearest
    assert {name for name, generation in found.items() if generation == "calibrated"} == calibrated
    assert all(methods.canonical(name) == (*name.split("-", 1),) for name in narrow | {"gptq-mxint-wa"})


def test_every_name_in_the_table_leads_to_a_generation_and_every_generation_is_reachable():
    keys = {methods.effect_key(*pair) for pair in methods.METHODS.values()}
    assert keys <= set(methods.GENERATION)
    assert set(methods.GENERATION) - keys <= {"bnb"}  # a bare family name that no table prints
    assert {generation for generation, _ in methods.GENERATION.values()} == set(methods.GENERATIONS)
    assert all(reason and not reason.endswith(".") for _, reason in methods.GENERATION.values())


@pytest.mark.parametrize(
    ("printed", "pair"),
    [
        ("GPTQ", ("gptq", "")),
        (" auto-gptq ", ("gptq", "")),
        ("GPTQModel", ("gptq", "")),
        ("GPTQ-actorder", ("gptq", "actorder")),
        ("gptq-w4", ("gptq-w4", "")),
        ("SqueezeLLM-0.45%", ("squeezellm", "")),
        ("AQLM-PV-1x16", ("aqlm", "")),
        ("RTN-sym", ("rtn", "")),
        ("RTN-MXINT", ("rtn", "mxint")),
        ("HQQ", ("hqq", "")),
        ("llama.cpp:Q4_0", ("llamacpp-legacy", "")),
        ("llama.cpp:Q4_K_M", ("llamacpp-k", "")),
        ("llama.cpp-pure:IQ3_K", ("llamacpp-iq", "")),
        ("Q5_K_S+imatrix", ("llamacpp-k", "imatrix")),
    ],
)
def test_printed_names_are_read_without_regard_to_case_or_packaging(printed, pair):
    assert methods.canonical(printed) == pair


def test_an_effect_key_names_itself():
    for pair in methods.METHODS.values():
        assert methods.canonical(methods.effect_key(*pair)) == pair


def test_an_unknown_method_keeps_its_name_and_has_no_generation():
    assert methods.canonical("WonderQuant-2") == ("wonderquant-2", "")
    assert methods.generation("wonderquant-2") == "unknown"


def test_activation_weighting_lifts_the_legacy_types_out_of_plain_rounding():
    assert methods.generation("llamacpp-legacy") == "rtn"
    assert methods.generation("llamacpp-legacy", "imatrix") == "calibrated"


@pytest.mark.parametrize(
    ("method", "variant", "group", "expected"),
    [
        ("rtn", "", -1, True),
        ("gptq", "actorder", -1, True),
        ("gptq", "", 128, False),
        ("squeezellm", "", -1, False),  # a codebook per row is no uniform scale
        ("rtn", "fp8e4m3-wa", -1, False),  # floats have exponents of their own
        ("lnq", "guidedquant", -1, False),
        ("lnq", "", -1, False),
        ("rtn", "", float("nan"), False),
    ],
)
def test_only_one_uniform_scale_per_row_counts_as_per_channel(method, variant, group, expected):
    assert methods.is_per_channel(method, variant, group) is expected
