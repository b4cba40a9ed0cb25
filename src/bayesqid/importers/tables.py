"""Tables of quantization losses: the atlas's CSV and a user's own, checked and brought to one form."""

import difflib
import math
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesqid import bundled, files, methods, suite
from bayesqid.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

Column = Any  # a Series: pandas' own hints cannot tell one column of a table from several

REQUIRED = ("family", "model", "method", "bits")
POSITIVE = (
    "bits", "n_params", "n_params_nonembedding", "train_tokens", "vocab_size", "ctx_len", "ppl_fp", "ppl_q",
    "effective_bits", "width",
)  # fmt: skip
NUMBERS = (
    *POSITIVE, "qid", "qid_se", "qid_se_total", "group_size", "unique_tokens", "lr_fraction", "loss16",
    "headroom", "ppl_fp_decimals", "ppl_q_decimals", "effective_bits_printed",
)  # fmt: skip
BOOLEANS = ("diverged", "censored", "per_channel", "default")
LOOKED_UP = ("n_params", "n_params_nonembedding", "train_tokens", "vocab_size", "width")

DIVERGED = math.log(10)  # beyond ten times the baseline's perplexity a model is broken, not measured
PROTOCOL_FLOOR = 1e-3  # nats: repeated runs of one configuration differ by about this much
RATIO_ROUNDING = 6e-4  # nats: ratios printed without perplexities carry three decimals at best
BITS_RANGE = (1.9, 6.7)
CONTEXT = 2048.0  # the papers' convention where a table does not say
BASELINE_LOSS = math.log(6.5)  # only the headroom needs it, and such rows lie far below saturation
VOCABULARY = 32_000.0

# printed family -> family of the law: point releases share a recipe, a mixture its dense parent's data
FAMILIES = {"LLaMA-3.1": "LLaMA-3", "LLaMA-3.2": "LLaMA-3", "Mixtral": "Mistral"}

FINETUNED = ("aqlm", "vptq", "efficientqat", "quip#")

# flag -> why such a row stays out of inference unless asked for; the first that applies is the reason
EXCLUDED = {
    "undisclosed_tokens": "training tokens not disclosed",
    "unknown_size": "non-embedding parameter count unknown",
    "weight_activation": "activations quantized too",
    "word_level_ppl": "word-level perplexity",
    "duplicate_repeat": "repeats another row",
    "near_duplicate": "near-duplicate variant of another row",
    "below_two_bits": "mixed binarization, nominal bits",
    "vendor_bits": "vendor's bit count",
    "instruct": "instruction-tuned model",
    "low_precision": "perplexities printed to one decimal",
    "suspect": "suspect at the source",
    "no_headroom": "baseline no better than guessing",
    "bits_out_of_range": f"effective bits outside {BITS_RANGE[0]} to {BITS_RANGE[1]}",
}


def uniform_bits(bits, group, symmetric=False):
    """Stored bits per weight of a uniform grid in groups of g: b + (16 + b)/g, symmetric b + 16/g."""
    return bits + (16 + bits * (1 - symmetric)) / group


def read_table(path: str | Path) -> "pd.DataFrame":
    """Read a CSV of losses, one row per model and quantization, and derive what inference needs.

    Needs the columns family, model, method, bits and qid (nats per token) or ppl_fp and ppl_q; sizes, tokens
    and vocabularies that are left out are looked up by model name. Raises BadInput naming column or row.
    """
    path = Path(path)
    return read_rows(read_csv(path), path.name)


def read_rows(text: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """As `read_table`, for a table in memory whose values are texts; `name` is told when something is wrong."""
    _check_columns(text, name)
    frame = _typed(text, name)
    _check_rows(frame, text, name)
    return derive(_look_up_missing(frame))


def read_csv(path: Path, most: int = files.MOST_TABLE, separator: str = ",") -> "pd.DataFrame":
    """A CSV as text, "" where a row ends early; `BadInput` if it is none, or has values or columns without a name.

    With more values in a row than names in the header pandas would take the first ones for the rows' names, and every
    column would hold its neighbour's values.
    """
    import pandas as pd

    if not path.is_file():
        raise BadInput(f"There is no table {path}: give the path of a CSV file.")
    try:
        # as it stands: a name that ends in .gz would have pandas unpack it to any size
        text = pd.read_csv(files.sized(path, most, "table"), dtype=str, keep_default_na=False, sep=separator,
                           compression=None)  # fmt: skip
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as fault:
        raise BadInput(f"{path.name} cannot be read as CSV: {str(fault).splitlines()[0][:120]}.") from None
    if not isinstance(text.index, pd.RangeIndex):
        raise BadInput(f"{path.name} has rows with more values than its header has names: name every column, "
                       "and quote values that hold a comma.")  # fmt: skip
    text.columns = text.columns.astype(str).str.strip()
    if not text.columns.is_unique:
        raise BadInput(f"{path.name} names the column {text.columns[text.columns.duplicated()][0]!r} twice.")
    return text.fillna("")


def derive(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Add every column that cells need to a typed table; a column that is already there is kept as it is.

    QiD = ln(ppl_q / ppl_fp); its total standard error is the paired one, else PROTOCOL_FLOOR, and the
    rounding of the printed perplexities, in quadrature. Excluded rows stay: `default` false, with a reason.
    """
    frame = _with_blanks(frame)
    for name, step in _STEPS.items():
        if name not in frame:
            step(frame)
    return frame


def with_extras(frame: "pd.DataFrame", extras: Collection[str]) -> "pd.DataFrame":
    """A derived table with rows of undisclosed tokens kept, or with unique tokens counted, where `extras` says so."""
    frame = frame.copy()
    if "latent-tokens" in extras:
        # what else speaks against a row, in the order of `EXCLUDED`
        rest = [flag for flag in EXCLUDED if flag != "undisclosed_tokens"]
        held = [set(flags.split(";")) for flags in frame["flags"].fillna("")]
        other = [next((EXCLUDED[flag] for flag in rest if flag in row), "") for row in held]
        undisclosed = frame["train_tokens"].isna()
        frame["default_reason"] = frame["default_reason"].where(~undisclosed, other)
        frame["default"] = frame["default"].where(~undisclosed, [not reason for reason in other])
    if "unique-tokens" in extras and "unique_tokens" in frame:
        unique: Column = frame["unique_tokens"]
        frame["train_tokens"] = unique.where(unique.notna() & frame["train_tokens"].notna(), frame["train_tokens"])
    return frame


def decimals(text: "pd.DataFrame", column: str) -> Column:
    """Decimals to which a source prints a column: the most, up to five, in any of its rows.

    A source prints alike, but spreadsheets drop final zeros (4.10 becomes 4.1), so its longest number speaks.
    """
    digits = text[column].str.extract(r"\.(\d+)$")[0].fillna("").str.len()
    source = text["source"] if "source" in text else text[column].str.slice(0, 0)
    return digits.groupby(source).transform("max").clip(0, 5)


def _check_columns(text: "pd.DataFrame", name: str) -> None:
    missing = [column for column in REQUIRED if column not in text]
    if missing:
        raise BadInput(f"{name} has no column {missing[0]!r}: a table needs {', '.join(REQUIRED)} and a loss.")
    if "qid" not in text and not {"ppl_fp", "ppl_q"} <= set(text):
        raise BadInput(f"{name} has no loss: add the column 'qid' (nats per token), or 'ppl_fp' and 'ppl_q'.")
    if text.empty:
        raise BadInput(f"{name} has a header but no rows.")


def _typed(text: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """Numbers and booleans from text; an empty cell is missing, anything else must be a finite number."""
    import pandas as pd

    frame = text.copy()
    for column in [column for column in text if column in NUMBERS]:
        stripped = text[column].str.strip()
        values: Column = pd.to_numeric(stripped.where(stripped != ""), errors="coerce")
        values = values.astype(float)
        fits = (stripped == "") | values.abs().lt(math.inf) & ((column not in POSITIVE) | (values > 0))
        kind = "positive" if column in POSITIVE else "finite"
        _refuse(name, text, ~fits, column, f"is not a {kind} number; leave the cell empty if it is unknown")
        frame[column] = values
    for column in [column for column in text if column in BOOLEANS]:
        frame[column] = text[column].str.strip().str.casefold().isin(["true", "1", "yes"])
    for column in {"ppl_fp", "ppl_q"} & set(text):
        if f"{column}_decimals" not in text:
            frame[f"{column}_decimals"] = decimals(text, column)
    return frame


def _check_rows(frame: "pd.DataFrame", text: "pd.DataFrame", name: str) -> None:
    for column in ("family", "model", "method"):
        _refuse(name, text, text[column].str.strip() == "", column, "is empty: every row needs it")
    _refuse(name, text, frame["bits"].isna() | (frame["bits"] > 16), "bits", "is not a bit width up to 16")
    for column in {"qid_se", "qid_se_total"} & set(frame):
        _refuse(name, text, frame[column] < 0, column, "is negative")
    if "group_size" in frame:
        bad = (frame["group_size"] < 1) & (frame["group_size"] != -1)
        _refuse(name, text, bad, "group_size", "is neither -1 (one scale per row) nor a number of weights")
    if {"ppl_fp", "ppl_q"} <= set(frame):
        import numpy as np

        printed: Column = np.log(frame["ppl_q"] / frame["ppl_fp"])
        if "qid" not in frame:
            frame["qid"] = printed
        frame["qid"] = frame["qid"].fillna(printed)
        off = (frame["qid"] - printed).abs() > 0.01 * (1 + printed.abs())
        shown = frame.assign(qid=frame["qid"].round(6))
        _refuse(name, shown, off, "qid", "disagrees with ln(ppl_q / ppl_fp): mend one of them")
    shown = text if "qid" in text else frame
    _refuse(name, shown, frame["qid"].isna(), "qid", "is missing, and so is a perplexity")


def _refuse(name: str, table: "pd.DataFrame", bad: Column, column: str, what: str) -> None:
    if bad.any():
        row = int(bad.to_numpy().argmax())
        more = f", and {int(bad.sum()) - 1} more rows likewise" if bad.sum() > 1 else ""
        value = table[column].iloc[row]
        raise BadInput(f"{name}, row {row + 1} (line {row + 2}): {column} = {value!s:.40} {what}{more}.")


def _look_up_missing(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Fill sizes, tokens and vocabularies that a table leaves out, and give known models their known name.

    One name lets a model's rows share an effect with the atlas's; `checkpoint` keeps the name as printed.
    """
    if "family_printed" in frame:  # the atlas itself: what is empty there is not known
        return frame
    known = {model: _models().get(_plain(model), {}) for model in frame["model"].unique()}
    for column in LOOKED_UP:
        found = frame["model"].map(lambda model, column=column: known[model].get(column, math.nan))
        frame[column] = frame[column].fillna(found) if column in frame else found
    if "checkpoint" not in frame:
        frame["checkpoint"] = frame["model"]
    frame["model"] = [known[model].get("model", model) for model in frame["model"]]
    return frame


def _name_method(frame: "pd.DataFrame") -> None:
    frame["method_printed"] = frame["method"]
    activations = frame["notes"].str.contains("imatrix") & ~frame["notes"].str.contains("no imatrix")
    pairs = [methods.canonical(printed) for printed in frame["method"]]
    frame["method"] = [method for method, _ in pairs]
    frame["variant"] = [
        "imatrix" if weighted and method.startswith("llamacpp") else variant
        for (method, variant), weighted in zip(pairs, activations, strict=True)
    ]


def _name_family(frame: "pd.DataFrame") -> None:
    frame["family_printed"] = frame["family"]
    frame["family"] = frame["family"].replace(FAMILIES)


def _with_blanks(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A copy with every column that a short table may leave out, at the value that leaving out means."""
    blank = {"source": "table", "notes": "", "kind": "weight_only", "eval_dataset": "", "duplicate_kind": "",
             "lr_phase": "annealed", "flags": ""}  # fmt: skip
    empty = ("qid_se", "group_size", "ppl_fp", "ppl_q", "ctx_len", "effective_bits", "ppl_fp_decimals",
             "ppl_q_decimals", "lr_fraction", *LOOKED_UP)  # fmt: skip
    frame = frame.copy()
    for column, value in (blank | dict.fromkeys(empty, math.nan)).items():
        if column not in frame:
            frame[column] = value
    if "checkpoint" not in frame:
        frame["checkpoint"] = frame["model"]
    _flag(frame, "ctx_assumed", frame["ctx_len"].isna())
    frame["ctx_len"] = frame["ctx_len"].fillna(CONTEXT)
    return frame


def _name_generation(frame: "pd.DataFrame") -> None:
    pairs = list(zip(frame["method"], frame["variant"], strict=True))
    frame["generation"] = [methods.generation(*pair) for pair in pairs]
    frame["source_method"] = [
        f"{source}|{methods.effect_key(*pair)}" for source, pair in zip(frame["source"], pairs, strict=True)
    ]


def _find_scales(frame: "pd.DataFrame") -> None:
    keys = frame["source_method"].str.rsplit("|", n=1).str[-1]
    groups = frame["group_size"]
    frame["per_channel"] = [
        methods.is_per_channel(*row) for row in zip(frame["method"], frame["variant"], groups, strict=True)
    ]
    uniform = frame["effective_bits"].isna() & keys.isin(list(methods.UNIFORM))
    symmetric = frame["method_printed"].str.casefold().str.endswith("-sym")
    span = groups.where(groups > 0, frame["width"].where(groups == -1))
    stored = uniform_bits(frame["bits"], span, symmetric).round(4)
    frame["effective_bits"] = frame["effective_bits"].where(~uniform, stored)


def _weigh(frame: "pd.DataFrame") -> None:
    """Baseline loss, headroom and the total standard error, all in nats per token."""
    import numpy as np

    baseline = frame["ppl_fp"].fillna(frame.groupby("model")["ppl_fp"].transform("median"))
    _flag(frame, "loss16_assumed", frame["ppl_fp"].isna())
    _flag(frame, "vocab_assumed", frame["vocab_size"].isna())
    loss: Column = np.log(baseline)
    frame["loss16"] = loss.fillna(BASELINE_LOSS)
    frame["headroom"] = np.log(frame["vocab_size"].fillna(VOCABULARY)) - frame["loss16"]
    printed = np.exp(frame["loss16"])
    steps_q, steps_fp = 10.0 ** -frame["ppl_q_decimals"], 10.0 ** -frame["ppl_fp_decimals"]
    rounding: Column = np.hypot(steps_q / (printed * np.exp(frame["qid"])), steps_fp / printed) / math.sqrt(12)
    unprinted = frame["qid_se"].isna() * RATIO_ROUNDING
    rounding = rounding.where(frame["ppl_q"].notna() & frame["ppl_fp"].notna(), unprinted)
    frame["qid_se_total"] = np.hypot(rounding, frame["qid_se"].fillna(PROTOCOL_FLOOR))
    frame["censored"] = frame["qid"] > DIVERGED


def _judge(frame: "pd.DataFrame") -> None:
    """Flags of every row, and from them whether inference takes it by default."""
    printed, notes = frame["method_printed"].str.casefold(), frame["notes"]
    bits = frame["effective_bits"].fillna(frame["bits"])
    model = frame["model"].str.casefold()
    found = {
        "diverged": frame["censored"],
        "undisclosed_tokens": frame["train_tokens"].isna(),
        "unknown_size": frame["n_params_nonembedding"].isna(),
        "weight_activation": frame["kind"] == "weight_activation",
        "word_level_ppl": frame["eval_dataset"].str.contains("lambada"),
        "duplicate_repeat": frame["duplicate_kind"].str.contains("repeat: (?:quoted|same)"),
        "near_duplicate": notes.str.contains("near-duplicate"),
        "below_two_bits": frame["method"].isin(["pb-llm", "billm"]),
        "vendor_bits": frame["method"] == "picollm",
        "instruct": model.str.contains("instruct|neural-chat|-chat") | model.str.endswith("-it"),
        "low_precision": frame["ppl_q"].notna() & (frame["ppl_q_decimals"] <= 1),
        "no_headroom": frame["headroom"] <= 0,
        "bits_out_of_range": ~bits.between(*BITS_RANGE),
        "finetuned_quantizer": frame["method"].isin(FINETUNED) & (printed != "quip#-noft"),
        "bits_nominal": frame["effective_bits"].isna(),
    }
    for flag, rows in found.items():
        _flag(frame, flag, rows)
    held = [set(flags.split(";")) for flags in frame["flags"]]
    frame["default_reason"] = [next((EXCLUDED[flag] for flag in EXCLUDED if flag in row), "") for row in held]
    frame["default"] = frame["default_reason"] == ""


def _flag(frame: "pd.DataFrame", flag: str, rows: Column) -> None:
    joined = (frame["flags"].fillna("") + ";" + flag).str.lstrip(";")
    frame["flags"] = frame["flags"].fillna("").where(~rows, joined)


# the column whose absence asks for a step -> the step, in order
_STEPS = {
    "method_printed": _name_method,
    "family_printed": _name_family,
    "generation": _name_generation,
    "per_channel": _find_scales,
    "qid_se_total": _weigh,
    "default_reason": _judge,
}


def _plain(name: str) -> str:
    """A model's name without what people vary: folder, case, underscores, the hub's prefixes and suffixes."""
    plain = name.strip().casefold().rsplit("/", 1)[-1].replace("_", "-").replace(" ", "-")
    return plain.removeprefix("meta-").removesuffix("-hf")


@cache
def _models() -> dict[str, dict]:
    """Every known model by plain name: the last checkpoints of the suites, then the models of the atlas."""
    import pandas as pd

    known: dict[str, dict] = {}
    for name in suite.names():
        for checkpoint in suite.load(name).checkpoints if name != "tiny" else ():
            facts = {key: getattr(checkpoint, key, math.nan) for key in ("family", *LOOKED_UP)}
            before = known.get(_plain(checkpoint.model))
            if before is None or before["train_tokens"] < facts["train_tokens"]:
                known[_plain(checkpoint.model)] = {"model": checkpoint.model, **facts}
    columns = ["model", "family", *LOOKED_UP]
    atlas = pd.read_csv(bundled.data_dir() / "published_qid.csv", usecols=columns).drop_duplicates("model")
    for row in atlas.to_dict("records"):
        known[_plain(row["model"])] = {column: row[column] for column in columns}
    return known


def lookup_model(name: str) -> dict:
    """Facts of a known model: model, family, n_params, n_params_nonembedding, train_tokens, vocab_size.

    Tokens are NaN where undisclosed. Case, folder and the hub's affixes do not matter. BadInput lists names
    that come close.
    """
    found = _models().get(_plain(name))
    if found:
        return dict(found)
    close = difflib.get_close_matches(_plain(name), _models(), n=4, cutoff=0.5)
    likely = f" Close: {', '.join(_models()[plain]['model'] for plain in close)}." if close else ""
    raise BadInput(f"No model {name!r} is known: give its family, size and tokens instead.{likely}")
