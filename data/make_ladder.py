"""Make data/ladder.nc and the tables of data/ladder.md: the controlled ladder's finished runs, from data/ladder/*.json.

python data/make_ladder.py     after models/ladder/train.py has finished more runs
"""

import json
from pathlib import Path

import numpy as np
import xarray as xr

from bayesqid import cells, files

HERE = Path(__file__).resolve().parent
RUNS = HERE / "ladder"
OUTPUT = HERE / "ladder.nc"
# what is kept of a checkpoint besides its cells
FACTS = ("weight_sha256", "file_sha256", "epochs", "heldout_nats")
PAGE = HERE / "ladder.md"
# nats: pairs of QiDs are compared where both are above it
RESOLVED = 0.02
KINDS = dict.fromkeys((*cells.NUMBERS, *cells.VALUES), float) | dict.fromkeys((*cells.FLAGS, "censored"), bool)


def column(name: str, value: object, size: int) -> np.ndarray:
    """Return a column of `size` cells from its stored form: one value for all, or one each; null is NaN."""
    values = value if isinstance(value, list) else [value] * size
    return np.array([np.nan if one is None else one for one in values], dtype=KINDS.get(name, str))


def read(path: Path) -> dict:
    """Return a run's result."""
    return json.loads(path.read_text(encoding="utf-8"))


def of_run(path: Path) -> tuple[xr.Dataset, dict[str, dict]]:
    """Return one run's cells, and by checkpoint what is kept besides."""
    result = read(path)
    stored, run = result["cells"], result["run"]
    size = len(stored["qid"])
    columns = {name: column(name, value, size) for name, value in stored.items()}
    source = {"name": f"{RUNS.name}/{path.name}", "sha256": files.sha256_file(path), "command": result["command"]}
    facts = {
        f"{run['family']}/{run['name']}@{revision}": {"seed": run["seed"]} | {name: one[name] for name in FACTS}
        for revision, one in result["checkpoints"].items()
    }
    return cells.build(columns, {}, [source]), facts


def joined(folder: Path = RUNS) -> xr.Dataset:
    """Return the cells of every result in a folder, in the order of their names."""
    parts = [of_run(path) for path in sorted(folder.glob("*.json"))]
    facts = {name: one for _, some in parts for name, one in some.items()}
    return cells.join([part for part, _ in parts]).assign_attrs(checkpoints=json.dumps(facts))


def write(data: xr.Dataset, path: Path = OUTPUT) -> None:
    """Write cells compressed, texts of one length each: a fifth of the space of texts of any length."""
    plain = data.map(lambda one: one, keep_attrs=True).drop_encoding()
    texts = {name: plain[name].astype(str) for name in plain.variables if plain[name].dtype == object}
    how = {name: {"zlib": True} | ({"dtype": "S1"} if name in texts else {}) for name in plain.variables}
    files.write_aside(path, lambda aside: plain.assign_coords(texts).to_netcdf(aside, engine="h5netcdf", encoding=how))


def composition(results: list[dict]) -> str:
    """Return the table of runs: what there is of each, and what it cost."""
    lines = ["| run | N | schedule | seed | checkpoints | tokens | cells | tokens/s | cells/min |", "|" + "---|" * 9]
    total = [0, 0]
    for found in results:
        run, cost, tokens = found["run"], found["cost"], [one["train_tokens"] for one in found["checkpoints"].values()]
        size, count = found["cells"]["n_params_nonembedding"], len(found["cells"]["qid"])
        total = [total[0] + len(tokens), total[1] + count]
        lines.append(
            f"| {run['name']} | {size:,.0f} | {run['schedule']} | {run['seed']} | {len(tokens)} "
            f"| {min(tokens) / 1e6:.1f}M-{max(tokens) / 1e6:.1f}M | {count} "
            f"| {cost['tokens_per_second']:,} | {cost['cells_per_minute']:.0f} |"
        )
    return "\n".join([*lines, f"| all | | | | {total[0]} | | {total[1]:,} | | |"])


def ratios(found: dict) -> dict[float, tuple[float, int]]:
    """Return by million tokens the geometric mean of QiD cooled over undecayed, and over how many recipes.

    Of recipes of 2 and 3 bits for which both are above `RESOLVED`; other draws of the calibration text do not count.
    """
    chosen = [place for place, name in enumerate(found["recipes"])
              if ("w2" in name or "w3" in name) and not name.endswith(("-s1", "-s2"))]  # fmt: skip
    made = {}
    for revision, cooled in found["checkpoints"].items():
        partner = found["checkpoints"].get(revision.removesuffix("-cooldown"))
        if partner is None or partner is cooled:
            continue
        pairs = np.array([(cooled["qid"][place], partner["qid"][place]) for place in chosen])
        pairs = pairs[(pairs > RESOLVED).all(1)]
        if len(pairs):
            logs = np.log(pairs)
            made[cooled["train_tokens"] / 1e6] = (float(np.exp((logs[:, 0] - logs[:, 1]).mean())), len(pairs))
    return made


def phases(results: list[dict]) -> str:
    """Return the table of QiD cooled over undecayed at the same tokens, by run."""
    by_run = {found["run"]["name"]: ratios(found) for found in results if found["run"]["schedule"] == "constant"}
    counts = sorted({tokens for one in by_run.values() for tokens in one})
    lines = ["| run | " + " | ".join(f"{tokens:.1f}M" for tokens in counts) + " |", "|" + "---|" * (1 + len(counts))]
    for name, one in by_run.items():
        shown = (f"{one[tokens][0]:.2f} ({one[tokens][1]})" if tokens in one else "" for tokens in counts)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def page(text: str, results: list[dict]) -> str:
    """Return the data sheet with its tables made anew."""
    for mark, made in (("composition", composition(results)), ("phases", phases(results))):
        head, rest = text.split(f"<!-- {mark} -->\n")
        text = f"{head}<!-- {mark} -->\n{made}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


if __name__ == "__main__":
    write(joined())
    files.write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), [read(path) for path in sorted(RUNS.glob("*.json"))]))
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e3:.0f} kB")
