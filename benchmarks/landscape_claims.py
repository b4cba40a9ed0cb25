"""The claims of Xu et al. 2024, arXiv 2410.12119, and a rival one, each answered with figures from a measured ladder.

    python benchmarks/landscape_claims.py FILE            FILE: measured with --landscape; prints Markdown
    python benchmarks/landscape_claims.py FILE --report   into docs/landscape.md too

Claims on prediction read the lines that landscape_contest.py left in results/landscape_contest.jsonl for this file.
A claim is "yes" from a probability of 0.95 on, "no" up to 0.05, else "unclear". Runs of training (models) are the
units: checkpoints of one run, and recipes of one checkpoint, are not independent.
"""

import argparse
from pathlib import Path

import landscape_contest as contest
import numpy as np
import refit
import xarray as xr
from resumable import load, put
from scipy import stats

from bayesqid import files

SURE = 0.95
RESAMPLES = 4000
UNDECAYED = ("constant", "decaying")
WIDTHS = (2, 3, 4)
# checkpoints below which a format says nothing of its gain
FEWEST = 5


def verdict(probability: float) -> str:
    return "yes" if probability >= SURE else "no" if probability <= 1 - SURE else "unclear"


def clustered(x: np.ndarray, y: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Least squares of y on x, standard errors robust to clusters (CR1), and degrees of freedom G - 1."""
    inverse = np.linalg.inv(x.T @ x)
    slopes = inverse @ x.T @ y
    scores = x * (y - x @ slopes)[:, None]
    names = np.unique(cluster)
    sums = np.stack([scores[cluster == name].sum(axis=0) for name in names])
    groups, (rows, columns) = names.size, x.shape
    factor = groups / (groups - 1) * (rows - 1) / (rows - columns)
    return slopes, np.sqrt(np.diag(factor * inverse @ sums.T @ sums @ inverse)), groups - 1


def checkpoints(cells: xr.Dataset) -> xr.Dataset:
    """One cell of every checkpoint, with the curvature of rounding to 3 bits at one size of error, curvature x SQNR."""
    first = np.unique(cells["checkpoint"].to_numpy().astype(str), return_index=True)[1]
    unit = cells["curvature"] * 10 ** (cells["sqnr_db"] / 10)
    mean = unit.groupby(cells["checkpoint"]).median()
    own = cells.isel(cell=np.sort(first))
    return own.assign_coords(unit_curvature=("cell", mean.sel(checkpoint=own["checkpoint"].to_numpy()).to_numpy()))


MEASURES = {"flatness_r": "rise along random directions", "hessian_trace": "trace of the Hessian",
            "unit_curvature": "curvature along rounding errors of one size"}  # fmt: skip


def flatter(cells: xr.Dataset) -> tuple[str, str]:
    """Trend of ln curvature in ln N, at equal tokens and at equal loss, with an intercept for each family and decay.

    Checkpoints whose curvature is not above zero, hardly trained ones, are left out.
    """
    one = checkpoints(cells)
    family = one["family"].to_numpy().astype(str)
    dummies = np.equal.outer(family, np.unique(family)).astype(float)
    n, d = np.log(one["n_params_nonembedding"].to_numpy()), np.log(one["train_tokens"].to_numpy())
    phase = np.isin(one["lr_phase"].to_numpy().astype(str), UNDECAYED).astype(float)
    loss, cluster = np.log(one["loss16"].to_numpy()), one["model"].to_numpy().astype(str)
    said, answers = [], []
    for given, other in (("tokens", d), ("loss", loss)):
        for name, words in MEASURES.items():
            value = one[name].to_numpy()
            keep = value > 0
            x = np.column_stack([dummies, n, other, phase])[keep]
            x = x[:, np.ptp(x, axis=0) + np.abs(x).sum(axis=0) > 0]
            slopes, errors, freedom = clustered(x, np.log(value[keep]), cluster[keep])
            at = dummies.shape[1] - (dummies[keep].sum(axis=0) == 0).sum()
            low, high = slopes[at] + errors[at] * stats.t.ppf([0.05, 0.95], freedom)
            p = float(stats.t.cdf(-slopes[at] / errors[at], freedom))
            said.append(f"{words} at equal {given}: slope {slopes[at]:+.2f} in ln N (90 %: {low:+.2f} to {high:+.2f}), "
                        f"P(flatter) {p:.2f}, {int(keep.sum())} checkpoints of {freedom + 1} runs")  # fmt: skip
            answers.append((given, verdict(p)))
    told = {given: {answer for g, answer in answers if g == given} for given in ("tokens", "loss")}
    words = [f"at equal {given} {answer.pop() if len(answer) == 1 else 'unclear'}" for given, answer in told.items()]
    return "; ".join(words), "; ".join(said)


def compared(lines: list[dict], split: str, name: str, other: str) -> tuple[float, float, int, float]:
    """Mean over folds of the CRPS of `name` less that of `other`, its standard error, folds, and P(less than zero)."""
    by = {(line["fold"], line["name"]): contest.of_fold(line)["crps"] for line in lines if line.get("split") == split}
    folds = sorted({fold for fold, who in by if who == name})
    gap = np.array([by[fold, name] - by[fold, other] for fold in folds])
    gap = gap[np.isfinite(gap)]
    error = gap.std(ddof=1) / np.sqrt(gap.size)
    return float(gap.mean()), float(error), gap.size, float(stats.t.cdf(-gap.mean() / error, gap.size - 1))


def carried(lines: list[dict], cells: xr.Dataset) -> tuple[str, str]:
    """Whether two features predict as well as all, and whether all lose by going without the two."""
    said, sure = [], []
    for split in ("size", "architecture"):
        more, error, folds, p = compared(lines, split, "two", "landscape")
        rest, rest_error, _, q = compared(lines, split, "without two", "landscape")
        core, core_error, _, _ = compared(lines, split, "core", "landscape")
        said.append(f"left-out {split} ({folds} folds), CRPS against all features: these two alone {more:+.2f} ± "
                    f"{error:.2f}, all but these two {rest:+.2f} ± {rest_error:.2f}, second-order value alone "
                    f"{core:+.2f} ± {core_error:.2f}")  # fmt: skip
        sure += [p, q]
    # they carry it if alone they do not lose and without them something is lost
    alone, without = (np.array(sure)[start::2] for start in (0, 1))
    if (1 - alone >= SURE).all():
        return "no", "; ".join(said)
    return ("yes" if (alone > 0.5).all() and (1 - without >= SURE).all() else "unclear"), "; ".join(said)


def gains(cells: xr.Dataset) -> xr.Dataset:
    """ln QiD of rounding less that of GPTQ on one grid, by cell of GPTQ where both are above three standard errors."""
    key = [f"{c} | {b:g} | {g:g}" for c, b, g in zip(cells["checkpoint"].to_numpy(), cells["bits"].to_numpy(),
                                                     cells["group_size"].to_numpy(), strict=True)]  # fmt: skip
    style = np.char.replace(np.char.replace(cells["quantizer"].to_numpy().astype(str), "gptq", ""), "rtn", "")
    keys = np.array([f"{one} | {s}" for one, s in zip(key, style, strict=True)])
    known = (cells["qid"] > 3 * cells["qid_se"]).to_numpy() & ~cells["censored"].to_numpy()
    method = cells["method"].to_numpy().astype(str)
    nearest = {k: i for i, k in enumerate(keys) if method[i] == "rtn" and known[i]}
    own = [i for i, k in enumerate(keys) if method[i] == "gptq" and known[i] and k in nearest]
    found = cells.isel(cell=own)
    ratio = np.log(cells["qid"].to_numpy()[[nearest[keys[i]] for i in own]] / found["qid"].to_numpy())
    return found.assign_coords(gain=("cell", ratio), style=("cell", style[own].astype(object)))


def monotone(cells: xr.Dataset) -> tuple[str, str]:
    """Mean gain of GPTQ at 2, 3 and 4 bits over checkpoints that have it at all three, by resampling whole runs.

    With three widths and no difference at all the gain would be monotone with probability 1/3.
    """
    said, answers, rng = [], [], np.random.default_rng(0)
    found = gains(cells)
    styles = zip(found["style"].to_numpy().astype(str), found["group_size"].to_numpy(), strict=True)
    for style, group in sorted(set(styles)):
        same = (found["style"] == style) & (found["group_size"] == group) & np.isin(found["bits"], WIDTHS)
        own = found.isel(cell=np.flatnonzero(same))
        wide = {name: part for name, part in own.groupby("checkpoint") if part.sizes["cell"] == len(WIDTHS)}
        if len(wide) < FEWEST:
            continue
        runs = {name: str(part["model"].to_numpy()[0]) for name, part in wide.items()}
        values = np.array([part.sortby("bits")["gain"].to_numpy() for part in wide.values()])
        names = np.unique(list(runs.values()))
        of = np.searchsorted(names, list(runs.values()))
        sums = np.stack([np.append(values[of == k].sum(axis=0), (of == k).sum()) for k in range(names.size)])
        drawn = sums[rng.integers(names.size, size=(RESAMPLES, names.size))].sum(axis=1)
        means = drawn[:, :-1] / drawn[:, -1:]
        turns = float((np.sign(np.diff(means, axis=1)).prod(axis=1) < 0).mean())
        peak = float((means[:, 1] > means[:, [0, 2]].max(axis=1)).mean())
        bounds = np.exp([values.mean(axis=0), *np.quantile(means, [0.05, 0.95], axis=0)])
        each = ", ".join(f"{m:.2f} times at {w} bits ({low:.2f} to {high:.2f})"
                         for w, m, low, high in zip(WIDTHS, *bounds, strict=True))  # fmt: skip
        name = style.strip("-") or "int"
        said.append(f"{name}, group {group:g}: rounding costs {each}; P(not monotone) {turns:.2f}, P(most "
                    f"at 3 bits) {peak:.2f}, {len(wide)} checkpoints of {names.size} runs")  # fmt: skip
        answers.append(verdict(turns))
    if not answers:
        return "unclear", "no format has GPTQ and rounding at these widths"
    return answers[0] if len(set(answers)) == 1 else "unclear", "; ".join(said) + " (90 %, resampling runs)"


def transfers(lines: list[dict], cells: xr.Dataset) -> tuple[str, str]:
    """Whether an unseen architecture is predicted as well as an unseen size, with intervals that hold."""
    said, good = [], []
    for name in ("landscape", "forest", "boxcox"):
        by = {split: [contest.of_fold(line) for line in lines if line.get("split") == split and line["name"] == name]
              for split in ("architecture", "size")}  # fmt: skip
        new, old = (np.array([fold["error"] for fold in by[split]]) for split in ("architecture", "size"))
        least = min(fold["in90"] for fold in by["architecture"])
        said.append(f"{name}: median abs. ln error {new.mean():.2f} ({new.min():.2f} to {new.max():.2f} over "
                    f"{new.size} architectures) against {old.mean():.2f} for unseen sizes, at least {least:.0%} inside "
                    "90 %")  # fmt: skip
        good.append(new.max() <= 1.5 * old.mean() and least >= 0.8)
    return f"{'yes' if good[0] else 'no'} (landscape), {'yes' if good[1] else 'no'} (forest)", "; ".join(said)


def coefficient(cells: xr.Dataset, name: str, variable: str, label: str) -> np.ndarray:
    """Draws of a coefficient of a contestant fitted to all cells."""
    posterior, _ = refit.fitted(cells, contest.law_of(name), seed=1, size=2000)
    dim = "covariate_name" if variable == "covariate" else "term"
    return posterior.sample[variable].sel({dim: label}).to_numpy()


# contestant -> where its tokens exponent stands among the draws
EXPONENTS = {"boxcox": ("mu", "beta"), "boxcox + taylor": ("mu", "beta"), "boxcox + flatness": ("mu", "beta"),
             "landscape + tokens": ("covariate", "tokens")}  # fmt: skip
LITTLE = 0.2


def curvature_or_tokens(lines: list[dict], cells: xr.Dataset) -> tuple[str, str]:
    """The tokens exponent with and without what was measured of the landscape.

    The claim is that next to nothing is left of it: less than a fifth of what it is without the landscape.
    """
    said, left = [], {}
    # the landscape is that of rounding: only there it is the landscape of what was done to the weights
    rounded = cells.isel(cell=(cells["method"] == "rtn").to_numpy())
    for words, own in (("all cells", cells), ("rounding alone", rounded)):
        found = {name: coefficient(own, name, *where) for name, where in EXPONENTS.items()}
        alone, beside = np.abs(found["boxcox"]).mean(), found["landscape + tokens"]
        left[words] = float((np.abs(beside) < LITTLE * alone).mean())
        said += [f"{words}: " + ", ".join(
            f"{name} {d.mean():+.2f} ({np.quantile(d, 0.05):+.2f} to {np.quantile(d, 0.95):+.2f})"
            for name, d in found.items()) + f", P(less than a fifth left) {left[words]:.2f}"]  # fmt: skip
    gap, error, folds, _ = compared(lines, "size", "landscape + tokens", "landscape")
    text = "tokens exponent (90 %, equal-tailed), " + "; ".join(said)
    text += f"; left-out size, CRPS with tokens less without: {gap:+.3f} ± {error:.3f} ({folds} folds)"
    return "; ".join(f"{words} {verdict(p)}" for words, p in left.items()), text


def report(path: str, lines: list[dict]) -> str:
    """The table of claims as Markdown."""
    cells = contest.cells_of(path)
    rows = {
        "larger models are flatter": flatter(cells),
        "SQNR and loss before quantization carry the prediction": carried(lines, cells),
        "GPTQ's gain is not monotone in bits": monotone(cells),
        "prediction transfers to unseen families (architectures)": transfers(lines, cells),
        "rival: curvature, not tokens, explains the rise of QiD in training": curvature_or_tokens(lines, cells),
    }
    said = [f"| {claim} | {answer} | {figures} |" for claim, (answer, figures) in rows.items()]
    return "\n".join(["| claim | here | figures |", "|---|---|---|", *said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="measurements with their loss landscape")
    parser.add_argument("--results", type=Path, default=contest.RESULTS)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    data = files.sha256_file(Path(args.file))[:8]
    lines = [line for line in load(args.results) if line["config"].startswith(data) and "error" in line]
    text = report(args.file, lines)
    print(text)
    if args.report:
        put(contest.PAGE, "claims", text)


if __name__ == "__main__":
    main()
