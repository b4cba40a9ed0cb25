"""The atlas as a dataset: its columns with types, units and allowed values, its version, and how to cite it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

# a DataFrame: pandas' own hints cannot tell one column of a table from several
Table = Any

SCHEMA = "bayesqid-atlas/1"
# first number: a column changes its meaning or goes; second: rows or columns are added; third: values are mended
VERSION = "1.0.0"
TITLE = "The bayesqid atlas: published quantization-induced degradation of language models"
LICENCE = "Apache-2.0"
CITATION = f"bayesqid contributors (2026): {TITLE}, version {VERSION}. And the sources of the rows used."

TEXT, NUMBER, BOOLEAN = "text", "number", "boolean"
REQUIRED, LOSS, OPTIONAL, DERIVED = "required", "loss", "optional", "derived"

# a text that the laws do not know would be taken for WikiText-2
TEXTS = (
    "wikitext2", "wikitext2 raw", "wikitext2 (HF strided)", "c4", "c4_new", "c4_subset", "ptb", "ptb_new",
    "lambada_openai",
)  # fmt: skip
QUOTED = "quoted copy (same digits)"
RERUN = "independent re-run, near-equal"
SAME = "same deterministic experiment (RTN), independent runs / rounding"
CHANCE = "different KV bits (KV4 vs KV16): coincidence, not a duplicate"
DUPLICATES = tuple(f"{role}: {kind}" for kind in (RERUN, SAME, QUOTED, CHANCE) for role in ("original", "repeat"))


@dataclass(frozen=True)
class Column:
    """One column: `unit` as netCDF has it ("1": none; "" for texts), the range of a number, the values of a text.

    `given`: `required` in every table; `loss`, both of these or `qid`; `optional`; `derived` by data/clean.py.
    """

    name: str
    kind: str
    unit: str
    given: str
    meaning: str
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()


def _text(name: str, given: str, meaning: str, *values: str) -> Column:
    return Column(name, TEXT, "", given, meaning, values=values)


def _number(name: str, unit: str, given: str, meaning: str, low: float | None = None, high: float | None = None):
    return Column(name, NUMBER, unit, given, meaning, low, high)


COLUMNS = (
    _text("family", REQUIRED, "family of the law; point releases are one family"),
    _text("model", REQUIRED, "model, one name whoever prints it"),
    _number("n_params", "1", OPTIONAL, "parameters, all", 1e4, 1e14),
    _number("n_params_nonembedding", "1", OPTIONAL, "N: parameters without embeddings and output head", 1e4, 1e14),
    _number("train_tokens", "1", OPTIONAL, "D: tokens seen in training; empty: undisclosed", 1e6, 1e16),
    _text("tokens_source", OPTIONAL, "where the token count stands"),
    _text("method", REQUIRED, "quantizer"),
    _number("bits", "bit", REQUIRED, "nominal bits per weight", 0.5, 16),
    _number("group_size", "1", OPTIONAL, "weights that share a scale; -1: one scale per output row", -1, 1e6),
    _number("effective_bits", "bit", OPTIONAL, "P: stored bits per weight, scales and zero points included", 0.5, 20),
    _text("kind", OPTIONAL, "what is quantized", "weight_only", "weight_activation"),
    _text("eval_dataset", REQUIRED, "text of the perplexity", *TEXTS),
    _number("ctx_len", "1", OPTIONAL, "tokens of context", 16, 2**20),
    _number("ppl_fp", "1", LOSS, "perplexity before quantization, as printed", 1, 1e4),
    _number("ppl_q", "1", LOSS, "perplexity after quantization, as printed", 1, 1e12),
    _number("qid", "nat", LOSS, "quantization-induced degradation ln(ppl_q / ppl_fp), nats per token", -0.2, 30),
    _number("qid_se", "nat", OPTIONAL, "paired standard error of qid, where printed", 0, 1),
    _text("source", REQUIRED, "paper, README, pull request or model card; a row of data/sources.csv"),
    _text("notes", OPTIONAL, "what the reader of the source noted"),
    _number("unique_tokens", "1", OPTIONAL, "distinct tokens, where the data were repeated", 1e6, 1e16),
    _number("vocab_size", "1", OPTIONAL, "entries of the vocabulary", 16, 1e7),
    _text("tokens_confidence", OPTIONAL, "how sure the token count is"),
    _text("duplicate_group", OPTIONAL, "rows of one experiment share a mark"),
    _text("duplicate_kind", OPTIONAL, "what a row is in its duplicate_group", *DUPLICATES),
    _text("tier", OPTIONAL, "A: original paper and standard protocol; B; C", "A", "B", "C"),
    Column("diverged", BOOLEAN, "", OPTIONAL, "qid > ln 10"),
    _number("ppl_fp_decimals", "1", DERIVED, "decimals to which the source prints ppl_fp", 0, 5),
    _number("ppl_q_decimals", "1", DERIVED, "decimals to which the source prints ppl_q", 0, 5),
    _number("width", "1", DERIVED, "hidden size", 1, 1e6),
    _text("flags", DERIVED, "what speaks against a row or qualifies it, separated by semicolons"),
    _number("effective_bits_printed", "bit", DERIVED, "effective bits as the source has them", 0.5, 20),
    _text("bits_scope", DERIVED, "what effective bits are counted over", "linear weights", "whole file"),
    _text("lr_phase", DERIVED, "learning-rate phase", "annealed"),
    _number("lr_fraction", "1", DERIVED, "last learning rate over its peak, where stated", 0, 1),
    _text("checkpoint", DERIVED, "whose effect the row shares: the model"),
    _text("method_printed", DERIVED, "method as printed"),
    _text("variant", DERIVED, "variant of the method whose effect is estimated apart"),
    _text("family_printed", DERIVED, "family as printed"),
    _text("generation", DERIVED, "generation of the quantizer", "rtn", "calibrated", "optimised", "vector", "unknown"),
    _text("source_method", DERIVED, "source and quantizer: the level of the source effect"),
    Column("per_channel", BOOLEAN, "", DERIVED, "one uniform scale per output row"),
    _number("loss16", "nat", DERIVED, "loss before quantization ln ppl_fp, nats per token", 0, 20),
    _number("headroom", "nat", DERIVED, "ln vocab_size - loss16, nats per token", -20, 20),
    _number("qid_se_total", "nat", DERIVED, "standard error of qid with rounding and protocol floor", 0, 1),
    Column("censored", BOOLEAN, "", DERIVED, "only qid > ln 10 is known"),
    _text("default_reason", DERIVED, "why the row stays out of inference by default"),
    Column("default", BOOLEAN, "", DERIVED, "the row enters inference by default"),
)
BY_NAME = {column.name: column for column in COLUMNS}

SOURCE_COLUMNS = {
    "source": "as in the column `source` of the rows",
    "reference": "authors or project, and title",
    "url": "where it can be opened",
    "licence": "licence of the source, where it is known",
    "read": "what was read: text of the paper, README, image of a table, model card",
    "date": "day the rows were collected, YYYY-MM-DD, or the month; `unrecorded`",
    "decimals": "decimals to which perplexities are printed (of most rows)",
    "protocol": "text and context of the perplexities, and what departs from them",
    "reference_status": "`verified`: authors or project, title and number were looked up; `unverified`: from memory",
}
REFERENCE_STATUS = ("verified", "unverified")
READ_SOURCES = ("source", "reference", "read", "date", "protocol")  # never empty


def as_dataset(table: Table, source_table: Table) -> "xr.Dataset":
    """The whole atlas as xarray Dataset over `cell` with units and meanings; texts that are missing are empty.

    `table`: the typed clean table; `source_table`: data/sources.csv. What cells have as coordinates are coordinates.
    """
    import json

    import numpy as np
    import xarray as xr

    casts = {TEXT: lambda values: values.fillna("").astype(str).to_numpy(dtype=object),
             NUMBER: lambda values: values.to_numpy(dtype=float),
             BOOLEAN: lambda values: values.to_numpy(dtype=bool).astype(np.int8)}  # fmt: skip
    variables = {}
    for column in COLUMNS:
        attrs = {"long_name": column.meaning} | ({"units": column.unit} if column.unit else {})
        attrs |= {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "no yes"} if column.kind == BOOLEAN else {}
        variables[column.name] = ("cell", casts[column.kind](table[column.name]), attrs)
    attrs = {
        "Conventions": "CF-1.11", "title": TITLE, "schema": SCHEMA, "version": VERSION, "licence": LICENCE,
        "citation": CITATION, "source_table": json.dumps(source_table.to_dict("records")),
        "comment": "Published numbers, gathered one by one; what they cannot say: first page of data/README.md. "
                   "Rows with default = 0 stay out of inference unless asked for.",
    }  # fmt: skip
    return xr.Dataset(variables, attrs=attrs).set_coords(["family", "model", "method", "source"])


def encoding() -> dict[str, dict]:
    """How the variables are packed: texts as characters, all compressed, so that the file stays small."""
    packed = {"zlib": True, "complevel": 9, "shuffle": True}
    return {c.name: packed | ({"dtype": "S1"} if c.kind == TEXT else {}) for c in COLUMNS}


def markdown() -> str:
    """The table of columns as the datasheet has it."""
    lines = ["| column | type | unit | given | meaning |", "|---|---|---|---|---|"]
    for column in COLUMNS:
        allowed = f" ({', '.join(f'`{value}`' for value in column.values)})" if 0 < len(column.values) < 7 else ""
        unit = "" if column.unit == "1" else column.unit
        lines.append(f"| `{column.name}` | {column.kind} | {unit} | {column.given} | {column.meaning}{allowed} |")
    return "\n".join(lines)
