"""Write docs/ladder.md: QiD of the bundled ladder by N, D and bits, and how often it moves the way the laws say.

python docs/make_ladder.py [measurements.nc]
"""

import sys
from pathlib import Path

import numpy as np

from bayesqid import bundled, files, measurements

HERE = Path(__file__).resolve().parent


def frame(path: Path):
    """One row per checkpoint and recipe: N, D, bits, QiD and its standard error."""
    data = files.open_dataset(path)
    qid, error = measurements.qid(data), measurements.qid_se(data)
    rows = qid.rename("qid").to_dataset().assign(se=error, status=data["status"]).to_dataframe().reset_index()
    rows = rows[(rows["recipe"] != "none") & (rows["status"] == 1)].copy()
    return data, rows


def pairs(rows, group: list[str], along: str, sign: int):
    """Adjacent pairs along one coordinate, `group` equal: as expected by > 2 SE, those against, all."""
    with_law, against, count = 0, [], 0
    for _, part in rows.groupby(group):
        part = part.sort_values(along)
        step, error = np.diff(part["qid"]) * sign, np.hypot(part["se"].to_numpy()[1:], part["se"].to_numpy()[:-1])
        with_law += int((step > 2 * error).sum())
        for i in np.flatnonzero(step < -2 * error):
            one, other = part.iloc[i], part.iloc[i + 1]
            against.append(", ".join(f"{row['recipe']} of {name(row)} {row['qid']:.4f}" for row in (one, other)))
        count += step.size
    return with_law, against, count


def name(row) -> str:
    return f"{row['model']} at {row['train_tokens'] / 1e6:.2f}M"


def table(header: list[str], lines: list[list[str]]) -> str:
    out = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(out + ["| " + " | ".join(line) + " |" for line in lines])


def share(result: tuple[int, list[str], int]) -> str:
    good, bad, count = result
    return f"{good}/{count} ({len(bad)} against)" if count else "-"


def text(path: Path) -> str:
    data, rows = frame(path)
    constant = rows[rows["lr_phase"] == "constant"]
    neox = constant[(constant["family"] == "tiny-neox") & (constant["seed"] == 1)]
    parts = [
        "# The bundled ladder, measured",
        "QiD in nats per byte with its paired standard error over documents, by `bayesqid measure` on the CPU in "
        "float32. Made by `python docs/make_ladder.py` from `data/tiny.nc`. The standard error says how well "
        "the loss difference of *these* weights is known on this kind of text; it does not contain what another "
        "training seed would change.",
    ]
    for recipe in data["recipe"].to_numpy():
        one = rows[(rows["recipe"] == recipe)]
        if recipe == "none" or one.empty:
            continue
        lines = []
        for (_, model, phase), part in one.groupby(["family", "model", "lr_phase"], sort=True):
            for _, row in part.sort_values("train_tokens").iterrows():
                lines.append([model, f"{row['n_params_nonembedding'] / 1e3:.1f}k", f"{row['train_tokens'] / 1e6:.2f}M",
                              phase, f"{row['qid']:.4f} ({row['se']:.4f})"])  # fmt: skip
        parts += [f"## {recipe}", table(["model", "N", "D", "learning rate", "QiD (SE)"], lines)]
    lines, contrary = [], {"fall with D": [], "rise with N": [], "rise with bits": []}
    for recipe, one in constant.groupby("recipe"):
        part = neox[neox["recipe"] == recipe]
        part = part.assign(level=np.round(np.log2(part["train_tokens"] / 1e6)))
        close = part[np.abs(np.log2(part["train_tokens"] / 1e6) - part["level"]) < 0.1]
        along_tokens = pairs(one, ["model"], "train_tokens", +1)
        along_size = pairs(close, ["level"], "n_params_nonembedding", -1)
        contrary["fall with D"] += along_tokens[1]
        contrary["rise with N"] += along_size[1]
        lines.append([recipe, share(along_tokens), share(along_size)])
    parts += [
        "## Does it move as the laws say?",
        "Adjacent pairs whose QiD moves by more than two standard errors of the difference: with more tokens (all "
        "constant-rate models), and with more parameters at equal tokens (tiny-neox, seed 1). In brackets, pairs that "
        "move the other way by as much.",
        table(["recipe", "rises with D", "falls with N"], lines),
    ]
    lines = []
    for method in ("rtn", "gptq"):
        grid = rows[rows["recipe"].isin([f"{method}-w{b}" for b in (2, 3, 4)])].assign(
            width=lambda r: r["recipe"].str.extract(r"-w(\d)")[0].astype(int))  # fmt: skip
        along_bits = pairs(grid, ["checkpoint"], "width", -1)
        contrary["rise with bits"] += along_bits[1]
        lines.append([f"{method}, 2 > 3 > 4 bits", share(along_bits)])
    parts.append(table(["recipes", "falls with bits"], lines))
    parts.append("Pairs that move against the laws by more than two standard errors:")
    for title, found in contrary.items():
        parts.append(f"- {title}: {len(found)}\n" + "\n".join(f"  - {line}" for line in found))
    parts.append(
        "Tokens and bits move QiD as the laws say. Size hardly does on this ladder: below a million parameters, at "
        "equal tokens, nearly as many pairs rise as fall."
    )
    failed = data["status"].to_dataframe().query("status == 2")
    parts.append(f"Failed cells: {len(failed)}." if len(failed) else "No cell failed.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else bundled.data_dir() / "tiny.nc"
    files.write_text(HERE / "ladder.md", text(source))
