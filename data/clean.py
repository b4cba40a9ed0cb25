"""Make the atlas from what was collected: `python data/clean.py` writes published_qid.csv, atlas.nc and their README.

raw/published_qid.csv is the base; every data/sources/NAME.csv is a source added later (docs/atlas.md says how). The
same input gives the same bytes. Nothing is dropped: what inference leaves out by default is marked.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bayesqid import files, methods
from bayesqid.errors import BadInput
from bayesqid.importers import check, reproducibility, schema, tables

HERE = Path(__file__).resolve().parent
RAW, CLEAN, NETCDF = HERE / "raw" / "published_qid.csv", HERE / "published_qid.csv", HERE / "atlas.nc"
SHEET, ADDED, README = HERE / "sources.csv", HERE / "sources", HERE / "README.md"

# hidden size: the columns that share a per-channel scale (most matrices of a block are this wide)
WIDTH = {
    "OPT-125M": 768, "OPT-350M": 1024, "OPT-1.3B": 2048, "OPT-2.7B": 2560, "OPT-6.7B": 4096, "OPT-13B": 5120,
    "OPT-30B": 7168, "OPT-66B": 9216, "OPT-175B": 12288,
    "BLOOM-560M": 1024, "BLOOM-1.1B": 1536, "BLOOM-1.7B": 2048, "BLOOM-3B": 2560, "BLOOM-7.1B": 4096,
    "BLOOM-176B": 14336,
    "LLaMA-1-7B": 4096, "LLaMA-1-13B": 5120, "LLaMA-1-30B": 6656, "LLaMA-1-65B": 8192,
    "LLaMA-2-7B": 4096, "LLaMA-2-13B": 5120, "LLaMA-2-70B": 8192,
    "LLaMA-3-8B": 4096, "LLaMA-3-70B": 8192, "Mistral-7B": 4096, "Mixtral-8x7B": 4096,
    "FloatLM-99M": 512, "FloatLM-190M": 768, "FloatLM-390M": 1024, "FloatLM-560M": 1280, "FloatLM-830M": 1536,
    "FloatLM-1.1B": 1792, "FloatLM-1.5B": 2048, "FloatLM-2.4B": 2304, "FloatLM-3.9B": 3072,
}  # fmt: skip

# families whose papers state the end of the schedule: the learning rate falls to a tenth of its peak
LR_FRACTION = {"Pythia": 0.1, "OPT": 0.1}

# a type's own bits stand in for a mix whose file size nobody printed; the true figure is slightly higher
TYPE_BITS = {"llama.cpp:iq4_xs": 4.25, "llama.cpp:iq4_ks": 4.25}

WHOLE_FILE = ("HF ThomasBaruzier", "Picovoice", "ggerganov/llama.cpp", "ikawrakow/ik_llama.cpp")


def suspect(raw: pd.DataFrame) -> pd.Series:
    """Rows that a second reader of the sources would not use; each line is one finding."""
    notes, source, model, dataset = raw.notes, raw.source, raw.model, raw.eval_dataset
    llama3 = source.str.contains("Macaronlin")
    return (
        notes.str.contains("suspected misprint")  # QuIP LLaMA-3-8B C4 and PTB swapped; AWQ OPT-13B C4 12.61
        | notes.str.contains("RTN g128 here is 3-5 times other labs")
        | notes.str.contains("possible misprint")  # LLaMA-1 Q6_0 repeats another row's value
        | (dataset == "ptb_new")  # unstable for LLaMA-type models: 354 and 1693 where others print 18 to 38
        | (llama3 & (model == "LLaMA-3-8B") & (dataset == "c4"))  # protocols mixed within one table
        | (source.str.contains("decoupleQ") & (model == "LLaMA-1-65B") & (raw.ppl_q == "6.05"))
        | (source.str.contains("smoothquant:README") & (model == "LLaMA-2-13B"))  # baseline 4.950 for 4.88
        | (source.str.contains("SpinQuant") & (model == "LLaMA-2-13B"))  # baseline 5.0 for 4.88
    )


def prepare(raw: pd.DataFrame) -> pd.DataFrame:
    """Typed table with what only this table knows: widths, printed digits, corrections and their flags."""
    frame = raw.copy()
    for column in [column for column in raw if column in tables.NUMBERS]:
        frame[column] = pd.to_numeric(raw[column].where(raw[column] != ""))
    for column in ("ppl_fp", "ppl_q"):
        frame[f"{column}_decimals"] = tables.decimals(raw, column)
    coarse = raw["notes"].str.contains("fp 1 decimal|fp given to 1 decimal") & (raw["family"] == "LLaMA-3")
    frame["ppl_fp_decimals"] = frame["ppl_fp_decimals"].mask(coarse, 1)
    frame["width"] = raw["model"].map(WIDTH)
    frame["flags"] = suspect(raw).map({True: "suspect", False: ""})
    printed = raw["method"].str.casefold()
    keys = printed.map(lambda name: methods.effect_key(*methods.canonical(name)))
    frame["effective_bits_printed"] = frame["effective_bits"]
    known_groups = frame["group_size"].notna() & ((frame["group_size"] > 0) | frame["width"].notna())
    recomputed = keys.isin(methods.UNIFORM) & known_groups
    from_type = frame["effective_bits"].isna() & printed.isin(TYPE_BITS)
    frame["effective_bits"] = frame["effective_bits"].mask(recomputed).fillna(printed.map(TYPE_BITS))
    whole = raw["source"].str.startswith(WHOLE_FILE) & ~printed.str.contains("-pure:") & ~from_type
    frame["bits_scope"] = whole.map({True: "whole file", False: "linear weights"})
    frame["lr_phase"] = "annealed"
    frame["lr_fraction"] = raw["family"].map(LR_FRACTION)
    marks = {
        "type_bits": from_type,
        "group_unknown": keys.isin(methods.UNIFORM) & frame["group_size"].isna(),
        "baseline_elsewhere": raw["notes"].str.contains("cross-source|fp taken from|from standard tables"),
        "tokens_upper_bound": raw["tokens_confidence"].str.startswith("medium"),
    }
    for flag, rows in marks.items():
        frame["flags"] = (frame["flags"] + rows.map({True: f";{flag}", False: ""})).str.strip(";")
    return frame


def clean(raw: pd.DataFrame) -> pd.DataFrame:
    """Text table: the raw columns as printed where untouched, then the derived ones to six digits."""
    derived = tables.derive(prepare(raw))
    touched = ("family", "method", "effective_bits", "ctx_len")
    out = derived.copy()
    for column in raw.columns:
        if column not in touched:
            out[column] = raw[column]
    for column in out.columns:
        if out[column].dtype.kind == "f":
            out[column] = [("" if pd.isna(value) else f"{value:.6g}") for value in out[column]]
    return out


def added(text: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """A source added later as the raw table has its rows: sizes and tokens of known models, QiD, context filled in."""
    raw = pd.DataFrame({column: text.get(column, "") for column in columns}, index=text.index)
    for name in raw["model"].unique():
        rows = raw["model"] == name
        try:
            facts = tables.lookup_model(name)
        except BadInput:
            continue
        for column in ("n_params", "n_params_nonembedding", "train_tokens", "vocab_size"):
            known = "" if math.isnan(facts[column]) else f"{facts[column]:.0f}"
            raw.loc[rows & (raw[column] == ""), column] = known
        raw.loc[rows & (raw["tokens_source"] == ""), "tokens_source"] = "as in the rest of the atlas"
        raw.loc[rows, "model"] = facts["model"]
    raw["kind"] = raw["kind"].replace("", "weight_only")
    loss = [math.log(float(q) / float(fp)) if q and fp else float(qid)
            for q, fp, qid in zip(raw["ppl_q"], raw["ppl_fp"], raw["qid"], strict=True)]  # fmt: skip
    raw["qid"] = raw["qid"].where(raw["qid"] != "", [f"{value:.6f}" for value in loss])
    raw["diverged"] = [str(value > tables.DIVERGED) for value in loss]
    return raw


def table() -> pd.DataFrame:
    """The whole atlas as text: the base, then each added source for itself, so that none changes the others' rows."""
    raw = read(RAW)
    parts = [clean(raw)]
    for path in sorted(ADDED.glob("*.csv")):
        problems = check.check(path, HERE)
        if problems:
            raise SystemExit("\n".join([f"{path.name} is not added:", *problems]))
        parts.append(clean(added(read(path), raw.columns)))
    return pd.concat(parts, ignore_index=True)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def netcdf() -> None:
    """Write atlas.nc from published_qid.csv; a file that holds the same is left as it is, whatever wrote it."""
    data = schema.as_dataset(tables.read_table(CLEAN), read(SHEET))
    if NETCDF.is_file() and files.open_dataset(NETCDF).identical(data):
        return
    files.write_aside(NETCDF, lambda aside: data.to_netcdf(aside, engine="h5netcdf", encoding=schema.encoding()))


def spreads() -> str:
    """The table of differences between sources as the datasheet has it."""
    names = {"rtn": "RTN", "calibrated": "calibrated", "optimised": "optimised", "vector": "vector", "all": "all"}
    atlas = tables.read_table(CLEAN)
    lines = ["| quantizers | configurations | rows | sources | shared | own | both | robust |", f"|{'---|' * 8}"]
    for merged in (False, True):
        for name, found in reproducibility.by_class(atlas, merged).items():
            if not merged or name in ("vector", "all"):
                shown = [f"{one.median:.2f} ({one.lower:.2f} to {one.upper:.2f})"
                         for one in (found.shared, found.own, found.both)]  # fmt: skip
                label = names[name] + (", versions merged" if merged else "")
                lines.append(f"| {label} | {found.configurations} | {found.rows} | {found.sources} | "
                             f"{' | '.join(shown)} | {found.robust:.2f} |")  # fmt: skip
    return "\n".join(lines)


def datasheet(text: str) -> str:
    """The datasheet with its generated parts as the data and the schema have them now."""
    parts = {"columns": schema.markdown(), "reproducibility": spreads()}
    for name, part in parts.items():
        text, count = re.subn(rf"(<!-- made: {name} -->\n).*?(\n<!-- end -->)", lambda m, p=part: m[1] + p + m[2], text,
                              flags=re.DOTALL)  # fmt: skip
        assert count == 1, f"README.md has no part {name}"
    return text


if __name__ == "__main__":
    atlas = table()
    files.write_text(CLEAN, atlas.to_csv(index=False, lineterminator="\n"))
    netcdf()
    files.write_text(README, datasheet(README.read_text(encoding="utf-8")))
    print(f"{len(atlas)} rows, {(atlas.default == True).sum()} by default")  # noqa: E712
    print(atlas.loc[~atlas.default, "default_reason"].value_counts().to_string())
