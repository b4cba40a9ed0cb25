"""An honest contest: what the loss landscape, (N, D, P) and a random forest predict of cells that were left out.

    python benchmarks/landscape_contest.py FILE [--jobs 2]      refits, resumable; FILE: measured with --landscape
    python benchmarks/landscape_contest.py FILE --report        Markdown tables, into docs/landscape.md too

Left out in turn: every size (sizes within 10 % are one), every architecture (family), every format (quantizer with its
number format) and every bit width. Contestants are laws fitted by the fast engine, the second-order Taylor value as it
is, and a random forest. One line per fold and contestant goes to results/landscape_contest.jsonl.

The forest (scikit-learn) follows Xu et al. 2024, arXiv 2410.12119, whose full list of features we do not know: ln N,
loss before quantization, SQNR, the format one-hot, and second-order features of the landscape. 500 trees, leaves of at
least three cells, a third of the features at each split; the target is ln max(QiD, standard error), diverged cells at
what was measured. Its point is the mean of the trees, its predictive distribution that of the training cells in the
leaves, weighted as in a quantile regression forest (Meinshausen 2006).
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import refit
import xarray as xr
from resumable import load, put, run

from bayesqid import features, files, laws, likelihood
from bayesqid.answers import baselines, score
from bayesqid.importers import sources
from bayesqid.inference import splits

RESULTS = Path(__file__).parent / "results" / "landscape_contest.jsonl"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "landscape.md"
LANDSCAPE, BOXCOX = laws.get("landscape"), laws.get("boxcox")
# sizes closer than this ratio are one
ONE_SIZE = 1.1
TREES, LEAF, SHARE = 500, 3, 1 / 3
KEPT = {"error": "ln_error", "crps": "crps", "pit": "pit"}
MASSES = (0.5, 0.9)
SCORES = ("error", "crps", "bias", "in50", "in90")


def plus(law: laws.Law, *more: tuple[str, str, float, float]) -> laws.Law:
    """The law with more covariates: name, factor, mean and standard deviation of the prior."""
    added = tuple(laws.Covariate(name, factor, mean, sd, name) for name, factor, mean, sd in more)
    return replace(law, covariates=(*law.covariates, *added))


def less(law: laws.Law, *names: str) -> laws.Law:
    """The law without the terms and effects of these names."""
    return replace(law, terms=tuple(t for t in law.terms if t.name not in names),
                   effects=tuple(e for e in law.effects if e.name not in names))  # fmt: skip


SHRUNK = tuple(effect.name for effect in LANDSCAPE.shrunk)
TOKENS = ("tokens", "x_D", 0.0, 0.25)
# name -> (law, what it is); laws stand here, the forest and the Taylor value below
CONTEST: dict[str, tuple[laws.Law | None, str]] = {
    "landscape": (LANDSCAPE, "the law `landscape`"),
    "boxcox": (BOXCOX, "the default law of N, D and P"),
    "forest": (None, "random forest"),
    "taylor": (None, "second-order Taylor value, nothing fitted"),
    "core": (less(LANDSCAPE, *SHRUNK), "`landscape` without the features under shrinkage"),
    "two": (plus(less(LANDSCAPE, "taylor", *SHRUNK), ("sqnr", "sqnr", -1.0, 1.0), ("baseline", "baseline", 0.0, 1.0)),
            "SQNR and loss before quantization alone"),
    "without two": (less(LANDSCAPE, "sqnr", "baseline_loss"), "`landscape` without these two"),
    "landscape + tokens": (plus(LANDSCAPE, TOKENS), "`landscape` with training tokens"),
    "boxcox + taylor": (plus(BOXCOX, ("taylor", "ln taylor", 0.0, 1.0)), "`boxcox` with the second-order value"),
    "boxcox + flatness": (plus(BOXCOX, ("flatness", "flatness", 0.0, 1.0)), "`boxcox` with the checkpoint's flatness"),
}  # fmt: skip
MAIN = ("landscape", "boxcox", "forest", "taylor")
NO_SPREAD = ("taylor",)


def law_of(name: str) -> laws.Law:
    """A contestant's law, findable under its name as a posterior's law has to be."""
    law = CONTEST[name][0]
    assert law is not None
    named = replace(law, name=f"contest {name}")
    laws.LAWS[named.name] = named
    return named


@cache
def cells_of(path: str) -> xr.Dataset:
    """Cells of the file whose loss landscape is known; those of other recipes are left out."""
    cells = sources.read_cells(path)
    known = np.all([np.isfinite(cells[name].to_numpy()) for name in LANDSCAPE.features], axis=0)
    return cells.isel(cell=known)


def size_of(cells: xr.Dataset) -> np.ndarray:
    """Sizes as text, those within a ratio of `ONE_SIZE` of the next smaller one under the name of the smallest."""
    params = cells["n_params_nonembedding"].to_numpy()
    sizes = np.unique(params)
    first = np.concatenate([[True], sizes[1:] / sizes[:-1] > ONE_SIZE])
    group = sizes[first][np.cumsum(first) - 1]
    return np.array([f"{value / 1e3:.0f}k" for value in group[np.searchsorted(sizes, params)]])


SPLITS: dict[str, tuple[Callable[[xr.Dataset], np.ndarray], str]] = {
    "size": (size_of, "every size"),
    "architecture": (lambda cells: cells["family"].to_numpy().astype(str), "every architecture"),
    "format": (lambda cells: cells["quantizer"].to_numpy().astype(str), "every method with its number format"),
    "width": (splits.width_of, "every bit width"),
}


def design(cells: xr.Dataset, formats: list[str]) -> np.ndarray:
    """What the forest sees of cells: numbers, then one column per format that it was trained on."""
    columns = {str(name): cells[name].to_numpy() for name in cells.coords}
    names = [name for name in features.FEATURES if name != "baseline"]
    numbers = [np.log(columns["n_params_nonembedding"]), columns["loss16"],
               *(features.standard(name, columns) for name in names)]  # fmt: skip
    one_hot = np.equal.outer(columns["quantizer"].astype(str), np.array(formats)).astype(float)
    return np.column_stack([*numbers, one_hot])


def forest(train: xr.Dataset, test: xr.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of ln QiD, (cell,), and quantiles of it at `baselines.PROBABILITIES`, (cell, quantile)."""
    from sklearn.ensemble import RandomForestRegressor

    formats = sorted(set(train["quantizer"].to_numpy().astype(str)))
    known, answer = design(train, formats), np.log(np.maximum(train["qid"].to_numpy(), train["qid_se"].to_numpy()))
    asked = design(test, formats)
    trees = RandomForestRegressor(TREES, min_samples_leaf=LEAF, max_features=SHARE, random_state=seed % 2**32)
    trees.fit(known, answer)
    weights = np.zeros((len(asked), len(known)))
    for here, there in zip(trees.apply(known).T, trees.apply(asked).T, strict=True):
        same = there[:, None] == here
        weights += same / same.sum(axis=1, keepdims=True)
    order = np.argsort(answer)
    total = np.cumsum(weights[:, order] / len(trees.estimators_), axis=1)
    place = np.stack([np.searchsorted(row, baselines.PROBABILITIES).clip(max=len(answer) - 1) for row in total])
    return trees.predict(asked), answer[order][place]


def taylor(test: xr.Dataset) -> np.ndarray:
    """QiD by the second-order value under the ceiling of the model, (cell, 1)."""
    raw = np.maximum(test["taylor"].to_numpy(), features.LEAST_TAYLOR)
    return likelihood.saturate(raw, test["headroom"].to_numpy())[:, None]


def predicted(name: str, train: xr.Dataset, test: xr.Dataset, seed: int) -> dict:
    """Scores of a contestant row by row, and the effective draws of a law."""
    if CONTEST[name][0] is not None:
        posterior, ess = refit.fitted(train, law_of(name), seed=seed)
        frame = score.frame(posterior, test)
        return {short: frame[long].to_numpy() for short, long in KEPT.items()} | {"ess": round(ess)}
    point, ensemble = (None, taylor(test)) if name == "taylor" else forest(train, test, seed)
    rows = score.rows(ensemble if point is None else np.exp(ensemble), test)
    if point is not None:
        rows["ln_error"] = np.where(np.isfinite(rows["ln_error"]), point - np.log(test["qid"].to_numpy().clip(1e-9)),
                                    np.nan)  # fmt: skip
    return {short: rows[long] for short, long in KEPT.items()}


def one(path: str, split: str, fold: str, name: str, seed: int) -> dict:
    """One line of results: a fold predicted by a contestant; cells that diverged are trained on and not predicted."""
    cells = cells_of(path)
    held = SPLITS[split][0](cells) == fold
    test = cells.isel(cell=held & ~cells["censored"].to_numpy())
    found = predicted(name, cells.isel(cell=~held), test, seed)
    rows = {short: [None if not np.isfinite(x) else round(float(x), 5) for x in found[short]] for short in KEPT}
    return {"split": split, "fold": fold, "name": name, "n": test.sizes["cell"], "ess": found.get("ess"), **rows}


def tasks(path: str, names: list[str], chosen: list[str]) -> list[tuple]:
    """Everything to run: the function of a line, its key, seed and arguments."""
    data = files.sha256_file(Path(path))[:8]
    folds = {split: np.unique(SPLITS[split][0](cells_of(path))) for split in chosen}
    return [(one, f"{data} {split} | {fold} | {name}", 1, path, split, str(fold), name)
            for split in chosen if len(folds[split]) > 1 for fold in folds[split] for name in names]  # fmt: skip


def number(values: list) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def of_fold(line: dict) -> dict[str, float]:
    """The scores of one fold: median |ln error|, mean CRPS of ln QiD, bias, shares in the 50 and 90 % intervals."""
    error, crps, pit = (number(line[key]) for key in KEPT)
    known = np.isfinite(error)
    inside = {f"in{mass * 100:.0f}": float(np.mean(np.abs(pit[np.isfinite(pit)] - 0.5) <= mass / 2)) for mass in MASSES}
    if line["name"] in NO_SPREAD:
        inside = dict.fromkeys(inside, float("nan"))
    if not known.any():
        return {"error": float("nan"), "crps": float("nan"), "bias": float("nan"), **inside}
    return {"error": float(np.median(np.abs(error[known]))), "crps": float(crps[known].mean()),
            "bias": float(error[known].mean()), **inside}  # fmt: skip


def mean_and_error(values: np.ndarray) -> str:
    """Mean over folds and its standard error sd / sqrt(F), folds weighed alike."""
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    error = f" ± {values.std(ddof=1) / np.sqrt(values.size):.2f}" if values.size > 1 else ""
    return f"{values.mean():.2f}{error}"


def table(lines: list[dict], split: str, names: tuple[str, ...]) -> str:
    """Markdown of one split: mean over folds and standard error over folds, and CRPS less that of `landscape`."""
    by = {(line["fold"], line["name"]): of_fold(line) for line in lines if line["split"] == split and "error" in line}
    folds = sorted({fold for fold, _ in by})
    rows = sum(line["n"] for line in lines if line["split"] == split and line["name"] == "landscape")
    out = [f"**Left out: {SPLITS[split][1]}** ({len(folds)} folds, {rows} cells: {', '.join(folds)}).", "",
           "| prediction | median abs. ln error | CRPS | bias | in 50 % | in 90 % | CRPS less landscape's | won |",
           "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in names:
        if not all((fold, name) in by for fold in folds):
            continue
        own = {key: np.array([by[fold, name][key] for fold in folds]) for key in SCORES}
        gap = own["crps"] - [by[fold, "landscape"]["crps"] for fold in folds]
        rest = "| |" if name == "landscape" else f"{mean_and_error(gap)} | {(gap < 0).sum()} of {len(folds)} |"
        said = " | ".join(mean_and_error(own[key]) for key in own)
        out.append(f"| {f'**{name}**' if name == 'landscape' else name} | {said} | {rest}")
    return "\n".join(out)


def report(lines: list[dict], data: str) -> str:
    """All tables: the contest, then the variants by which the claims are judged."""
    own = [line for line in lines if line["config"].startswith(data)]
    failed = [line["config"] for line in own if "failed" in line]
    few = [line for line in own if (line.get("ess") or 100) < 100]
    out = ["Mean over folds ± its standard error over folds. Folds are few: the true error may be up to 2.4 times as "
           "large with 5 of them, 4.4 times with 3, and anything with 2 (95 %, normal folds)."]  # fmt: skip
    chosen = [split for split in SPLITS if any(line.get("split") == split for line in own)]
    out += [table(own, split, MAIN) for split in chosen]
    out.append("Variants:\n\n" + "\n".join(f"- *{name}*: {CONTEST[name][1]}" for name in CONTEST if name not in MAIN))
    out += [table(own, split, ("landscape", *(name for name in CONTEST if name not in MAIN))) for split in chosen]
    out.append(f"{len(failed)} fits broke down; {len(few)} of {len(own)} have under 100 effective draws.")
    return "\n\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="measurements with their loss landscape")
    parser.add_argument("--contestant", nargs="*", default=list(CONTEST), choices=list(CONTEST))
    parser.add_argument("--split", nargs="*", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    data = files.sha256_file(Path(args.file))[:8]
    lines = load(args.results) if args.report else run(args.results, tasks(args.file, args.contestant, args.split),
                                                       args.jobs)  # fmt: skip
    text = report(lines, data)
    print(text)
    if args.report:
        put(PAGE, "contest", text)


if __name__ == "__main__":
    main()
