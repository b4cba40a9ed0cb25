"""Next measurements: do the checkpoints that `next` picks narrow a projection more than a random choice?

python benchmarks/next.py                    run what is missing, then print the table
python benchmarks/next.py --worlds 3 --jobs 1
python benchmarks/next.py --report           only the table, also into docs/next.md

One line a world. Parameters are drawn from the priors but for what `WORLD` sets; five families are measured as
published tables are, each at one count of tokens, and a sixth at four sizes after the same training. Candidates are 7
sizes x 12 counts of tokens of the sixth family under six recipes, with true deviations of their own. Eight checkpoints
are picked from the posterior of the base data, measured, and everything is refitted by the fast engine; so are random
ones, with the same numbers of recipes, and random ones that cost the same GPU-hours. In worlds `curved` the truth and
the refits have bends, of which the posterior that picks knows nothing.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import xarray as xr
from resumable import put, run, seeds

from bayesqid import cells as cells_module
from bayesqid import laws, methods, suite
from bayesqid.answers import asking, draws, measurable
from bayesqid.answers import next as answer
from bayesqid.inference import problem as problems
from bayesqid.inference import sample, simulate

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "next.jsonl", HERE.parent / "docs" / "next.md"
CONFIGS = ("boxcox", "curved")
WORLDS, DRAWS, PICKS = 24, 1000, 8
WORLD = ("log_k=-1.3", "alpha=0.4", "beta=0.4", "gamma=5.4", "lam=0.3", "sd_log_k=0.3", "sd_alpha=0.1", "sd_beta=0.1",
         "sd_gamma=0.5", "spread_checkpoint_level=0.3", "spread_source_level=0.25", "tau=0.3")  # fmt: skip
FAMILIES = {"A": (1e11, 1.0), "B": (3e11, 6.0), "C": (1e12, 3.0), "D": (2e12, 7.0), "E": (8e12, 8.0)}
SIZES = (1.2e6, 1.9e7, 8.5e7, 3e8, 1.2e9, 2.5e9, 1.1e10)
TOKENS = tuple(np.geomspace(4e9, 3e11, 12))
BASE = ("rtn-w3", "rtn-w4-g128", "gptq-w3", "gptq-w4-g128", "gptq-w2-g128")
RECIPES = ("rtn-w2", "rtn-w3", "rtn-w4", "gptq-w2", "gptq-w3", "gptq-w4")
ARMS = ("greedy", "random", "random, same hours", "greedy per checkpoint", "random, all recipes")
# standard error of a QiD, nats, and its part in proportion to QiD
ERROR = (0.002, 0.02)


def rows_of(family: str, n: float, d: float, recipes, source) -> list[tuple]:
    """Cells of one checkpoint: family, N, D, target form of the recipe, source."""
    kinds = [asking.target_of(text, 0.0, "", family=family, params=n, tokens=d) for text in recipes]
    return [(family, n, d, kind, source(kind)) for kind in kinds]


def template(rng: np.random.Generator) -> xr.Dataset:
    """Empty cells of the base data and of all candidates; sources tell the two apart."""
    rows: list[tuple] = []
    for family, (tokens, largest) in FAMILIES.items():
        for n in np.geomspace(largest * 1e8, largest * 1e10, 4):
            rows += rows_of(family, n, tokens, BASE, lambda kind: f"paper {rng.integers(3)}")
    for n in SIZES[2:6]:
        rows += rows_of("F", n, TOKENS[-1], BASE[1::2], lambda kind: "cards")
    for n in SIZES:
        for d in TOKENS:
            rows += rows_of("F", n, d, RECIPES, lambda kind: "measured: made")
    family, n, d, kind, source = zip(*rows, strict=True)
    size, group = len(rows), [-1 if k.per_channel else 128 for k in kind]
    params, tokens = np.array(n), np.array(d)
    loss16 = 1.7 + (4e8 / params) ** 0.3 * 0.6 + (2e10 / tokens) ** 0.3
    # what a paper prints of a checkpoint and what is measured of it are two checkpoints of one size and training here
    name = [f"{f}-{a:.3g}@{b:.3g}{'' if s == 'measured: made' else ' printed'}"
            for f, a, b, s in zip(family, n, d, source, strict=True)]  # fmt: skip
    columns = {
        "family": family, "model": [f"{f}-{a:.3g}" for f, a in zip(family, n, strict=True)], "checkpoint": name,
        "lr_phase": ["annealed"] * size, "method": [k.method for k in kind], "variant": [""] * size,
        "generation": [methods.generation(k.method) for k in kind], "eval_dataset": ["wikitext2"] * size,
        "source": source, "n_params": params, "n_params_nonembedding": params, "train_tokens": tokens,
        "lr_fraction": np.zeros(size), "vocab_size": np.full(size, 50304.0), "bits": [k.bits for k in kind],
        "group_size": group, "effective_bits": [k.effective_bits for k in kind], "ctx_len": np.full(size, 2048.0),
        "loss16": loss16, "headroom": math.log(50304.0) - loss16, "per_channel": [k.per_channel for k in kind],
        "qid": np.full(size, 0.1), "qid_se": np.full(size, 0.01), "censored": np.zeros(size, dtype=bool),
    }  # fmt: skip
    return cells_module.build({key: np.asarray(value) for key, value in columns.items()}, {}, [{"name": "made"}])


def ladder() -> suite.Suite:
    """The candidates as a suite."""
    checkpoints = tuple(
        suite.Checkpoint("F", f"F-{n:.3g}", f"made/F-{n:.3g}", f"{d:.3g}", int(n), int(n), int(d), "annealed", 0.0,
                         50304)
        for n in SIZES for d in TOKENS
    )  # fmt: skip
    text = suite.Text("", "", 2048)
    return suite.Suite("made", "", checkpoints, RECIPES, text, Path("made.toml"))


def observed(problem: problems.Problem, b: np.ndarray, natural, rng: np.random.Generator) -> xr.Dataset:
    """QiDs of all cells, with the errors of `ERROR`."""
    exact = simulate.observe(problem, b, natural, rng, np.full(problem.cells.sizes["cell"], 1e-9))
    error = np.hypot(ERROR[0], ERROR[1] * exact["qid"].to_numpy())
    seen = exact["qid"] + error * rng.normal(size=error.size)
    return exact.assign(qid=seen, qid_se=("cell", error))


def fitted(cells: xr.Dataset, law: str, seed: int) -> draws.Posterior:
    """Posterior by the fast engine."""
    tree = sample.sample(cells, laws.get(law), engine="laplace", seed=seed, chains=1, draws=DRAWS)
    return draws.Posterior(tree, draws.flatten(tree["posterior"].to_dataset()), "", "", "")


def at_random(rng: np.random.Generator, like: list[int], most: float, hours: dict[str, tuple]) -> list[tuple]:
    """Random checkpoints with random recipes, as many as the entries of `like` say.

    With finite `most` any number of checkpoints, those that still fit into so many hours in a random order.
    """
    out, names = [], list(rng.permutation(list(hours)))
    while names and (len(out) < len(like) or math.isfinite(most)):
        name = names.pop()
        count = like[len(out)] if math.isinf(most) else int(rng.choice(like))
        chosen = rng.choice(len(RECIPES), count, replace=False)
        price = hours[name][0] + hours[name][1][chosen].sum()
        if price <= most:
            most -= price
            out.append((name, [RECIPES[r] for r in chosen]))
    return out


def world(config: str, seed: int) -> dict:
    """Standard deviation and error of the target's ln QiD before and after each arm's measurements."""
    rng = np.random.default_rng(seed)
    whole = problems.build(template(rng), laws.get(config), "hierarchical")
    b, natural = simulate.with_settings(whole, simulate.parse_settings(WORLD), rng)
    cells = observed(whole, b, natural, rng)
    truth = draws.flatten(simulate.truth(whole, b, natural, rng))
    made = cells["source"].to_numpy() == "measured: made"
    base = cells.isel(cell=np.flatnonzero(~made))
    target = asking.target_of(None, 4, "gptq", family="F", params=70e9, tokens=1e14)
    plan, law = ladder(), config
    picker = fitted(base, "boxcox", seed)
    before = picker if law == "boxcox" else fitted(base, law, seed)
    true = draws.log_law(draws.Posterior(before.tree, truth, "", "", ""), [target], rng)[0, 0]

    rows, _ = measurable.usable(picker, plan)
    first, each = measurable.hours(plan, rows, RECIPES, measurable.COST["flops"])
    hours = {row.first.id.removeprefix("F/"): (first[i], each[i]) for i, row in enumerate(rows)}
    arms: dict[str, list[tuple]] = {}
    predicted: dict[str, dict] = {}
    for name, per in (("greedy", "hour"), ("greedy per checkpoint", "checkpoint")):
        found = answer.next_(picker, plan, str(PICKS), tokens=1e14, bits=4, per=per, error=ERROR[0])
        arms[name] = [(row["checkpoint"].removeprefix("F/"), row["recipes"]) for row in answer.rows(found)]
        predicted[name] = {k: float(v[-1] / v[0]) for k, v in
                           zip(found["scenario"].values.tolist(), found["sd"].to_numpy(), strict=True)}  # fmt: skip
    like = [len(recipes) for _, recipes in arms["greedy"]]
    cost = {name: float(sum(hours[c][0] + sum(hours[c][1][RECIPES.index(r)] for r in rs) for c, rs in arms[name]))
            for name in arms}  # fmt: skip
    arms["random"] = at_random(rng, like, math.inf, hours)
    arms["random, same hours"] = at_random(rng, like, cost["greedy"], hours)
    arms["random, all recipes"] = at_random(rng, [len(RECIPES)] * PICKS, math.inf, hours)

    def narrowed(posterior: draws.Posterior) -> dict[str, float]:
        eta = draws.log_law(posterior, [target], np.random.default_rng(seed))[:, 0]
        return {"sd": float(eta.std()), "error": float(eta.mean() - true),
                "checks": bool(all(posterior.checks.values()))}  # fmt: skip

    kinds = {text: asking.target_of(text, 0.0, "", family="F", params=1.0, tokens=1.0) for text in RECIPES}
    out = {"nothing": narrowed(before)}
    for name in ARMS:
        wanted = {(c, kinds[r].method, kinds[r].effective_bits) for c, rs in arms[name] for r in rs}
        columns = (cells[key].to_numpy().tolist() for key in ("checkpoint", "quantizer", "effective_bits"))
        keys = zip(*columns, strict=True)
        keep = np.array([(c.removeprefix("F/"), q, p) in wanted for c, q, p in keys]) & made
        assert keep.sum() == len(wanted), (keep.sum(), len(wanted))
        spent = sum(hours[c][0] + sum(hours[c][1][RECIPES.index(r)] for r in rs) for c, rs in arms[name])
        out[name] = narrowed(fitted(cells.isel(cell=np.flatnonzero(~made | keep)), law, seed)) | {
            "checkpoints": len(arms[name]), "measurements": int(keep.sum()), "hours": float(spent)}  # fmt: skip
    return {"arms": out, "predicted": predicted}


def mean_of(values) -> tuple[float, float]:
    """Mean and its standard error."""
    values = np.asarray(list(values), dtype=float)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size))


def report(lines: list[dict]) -> str:
    """Markdown: the arms, the paired differences, and what was predicted."""
    out = ["| worlds | arm | checkpoints | measurements | GPU-hours | sd after / before | root mean square error |",
           "|---|---|---|---|---|---|---|"]  # fmt: skip
    pairs = ["", "| worlds | ln(sd of the first / sd of the second) | mean +- SE | first narrower in |",
             "|---|---|---|---|"]  # fmt: skip
    told = ["", "| worlds | arm | sd after / before: predicted, realised | ln(realised / predicted), mean +- SE |",
            "|---|---|---|---|"]  # fmt: skip
    for config in CONFIGS:
        good = [line for line in lines if line["config"] == config and "arms" in line]
        if len(good) < 2:
            continue

        def sd(line: dict, arm: str) -> float:
            return line["arms"][arm]["sd"]

        for arm in ("nothing", *ARMS):
            ratio = np.exp(mean_of(math.log(sd(g, arm) / sd(g, "nothing")) for g in good)[0])
            error = math.sqrt(np.mean([g["arms"][arm]["error"] ** 2 for g in good]))
            effort = [np.mean([g["arms"][arm].get(key, 0) for g in good])
                      for key in ("checkpoints", "measurements", "hours")]  # fmt: skip
            out.append(f"| {config}, {len(good)} | {arm} | {effort[0]:.1f} | {effort[1]:.1f} | {effort[2]:.2f} | "
                       f"{ratio:.3f} | {error:.2f} |")  # fmt: skip
        for first, second in (("greedy", "random"), ("greedy", "random, same hours"),
                              ("greedy per checkpoint", "random, all recipes")):  # fmt: skip
            each = [math.log(sd(g, first) / sd(g, second)) for g in good]
            mean, error = mean_of(each)
            pairs.append(f"| {config} | {first} / {second} | {mean:.3f} +- {error:.3f} | "
                         f"{sum(e < 0 for e in each)} of {len(each)} |")  # fmt: skip
        for arm in ("greedy", "greedy per checkpoint"):
            scenario = "fitted" if config == "boxcox" else "bent"
            wanted = [g["predicted"][arm][scenario] for g in good]
            real = [sd(g, arm) / sd(g, "nothing") for g in good]
            mean, error = mean_of(np.log(real) - np.log(wanted))
            told.append(f"| {config} | {arm} | {np.mean(wanted):.3f} ({scenario}), {np.mean(real):.3f} | "
                        f"{mean:.3f} +- {error:.3f} |")  # fmt: skip
    broken, unsure = sum("failed" in line for line in lines), [
        not all(arm["checks"] for arm in line["arms"].values()) for line in lines if "arms" in line]  # fmt: skip
    versions = ", ".join(sorted({line["code"] for line in lines}))
    return "\n".join([*out, *pairs, *told, "",
                      f"{broken} worlds broke down; in {sum(unsure)} some refit failed the engine's own check. "
                      f"Code of the refits: {versions}."])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=WORLDS, help="worlds per configuration")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--report", action="store_true", help="run nothing; write the table into docs/next.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    names = [] if options.report else [name for name in CONFIGS if options.only in name]
    tasks = [(world, name, seed, name) for name in names for seed in seeds(f"next {name}", options.worlds)]
    lines = run(options.results, tasks, options.jobs)
    print(report(lines))
    if options.report:
        put(PAGE, "next", report(lines))


if __name__ == "__main__":
    main()
