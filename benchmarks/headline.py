"""What the answer at 100T tokens rests on: the same projection under other laws, data, phases and priors.

    python benchmarks/headline.py [--jobs 2]     fits, resumable; some minutes of one core
    python benchmarks/headline.py --report       the tables of docs/headline.md

Each fit (fast engine; the posterior that ships, by NUTS, stands beside) projects a new family at 1B, 7B, 70B and
405B parameters, 2, 3 and 4 bits and 1e14 tokens, band `new`, annealed and at a constant learning rate. One line per fit
goes to results/headline.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from resumable import ROOT, load, put, run

import bayesqid
from bayesqid import bundled
from bayesqid.answers import asking, curves, draws, wording
from bayesqid.answers.project import qid_draws

RESULTS = Path(__file__).parent / "results" / "headline.jsonl"
PAGE = ROOT / "docs" / "headline.md"
TOKENS = 1e14
PHASES = ("annealed", "constant")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DATA = {"atlas": ("atlas",), "atlas + ladder": ("atlas", "ladder")}
LAWS = ("boxcox", "ouyang", "kumar", "per-bit", "curved")
# both scales of the tokens exponent: sd of the population's mean (0.25) and of the spread between families (0.15)
PRIORS = {"": None, "beta prior halved": {"beta": {"sd": 0.125, "spread": 0.075}},
          "beta prior doubled": {"beta": {"sd": 0.5, "spread": 0.3}}}  # fmt: skip
SHIPPED = "posterior that ships (NUTS)"
# (data, law, prior) of every fit, the answer that ships first
FITS = [(data, law, "") for data in DATA for law in LAWS]
FITS += [("atlas", SHIPPED, "")]
FITS += [(data, "boxcox", prior) for data in DATA for prior in PRIORS if prior]


def label(data: str, law: str, prior: str) -> str:
    return ", ".join(filter(None, (data, law, prior)))


def fit(data: str, law: str, prior: str, seed: int) -> dict:
    """One posterior and what it projects: quantiles of QiD (nats per token) by phase, size and bits."""
    if law == SHIPPED:
        return told(bayesqid.open_posterior(bundled.data_dir() / draws.BUNDLED), data, "boxcox", law)
    tree = bayesqid.sample(DATA[data], law=law, prior=PRIORS[prior], seed=seed, engine="laplace")
    return told(bayesqid.open_posterior(tree), data, law, prior)


def told(found: draws.Posterior, data: str, law: str, prior: str) -> dict:
    out: dict = {"data": data, "law": law, "prior": prior, "checks": found.checks, "draws": found.size}
    out["cells"] = found.cells.sizes["cell"]
    if "beta" in found.law.term_names:
        beta = found.sample["mu"].sel(term="beta").to_numpy()
        out["beta"] = [round(float(q), 5) for q in np.quantile(beta, QUANTILES)]
    out["rows"] = [row for phase in PHASES for row in rows(found, phase)]
    return out


def rows(found: draws.Posterior, phase: str) -> list[dict]:
    targets = asking.targets(found, TOKENS, lr_phase=phase)
    quantiles = np.quantile(qid_draws(found, targets, "new")[0], QUANTILES, axis=0)
    return [{"phase": phase, "params": t.params, "bits": t.bits, "qid": [float(f"{q:.5g}") for q in own]}
            for t, own in zip(targets, quantiles.T, strict=True)]  # fmt: skip


def value(line: dict, phase: str, params: float, bits: float) -> list[float]:
    return [row["qid"] for row in line["rows"]
            if (row["phase"], row["params"], row["bits"]) == (phase, params, bits)][0]  # fmt: skip


def shown(qid: list[float]) -> str:
    return f"{qid[2]:.2g} ({qid[0]:.2g} - {qid[4]:.2g})"


def grid_table(line: dict) -> str:
    """Sizes by bits of one fit, with the published line beside."""
    heads = [f"{bits} bits | published" for bits in asking.DEFAULT_BITS]
    out = [f"| parameters | {' | '.join(heads)} |", "|---" * (1 + 2 * len(heads)) + "|"]
    for params in asking.DEFAULT_PARAMS:
        cells = [f"{shown(value(line, 'annealed', params, bits))} | "
                 f"{float(curves.published_qid('ouyang', params, np.array([TOKENS]), bits)[0]):.2g}"
                 for bits in asking.DEFAULT_BITS]  # fmt: skip
        out.append(f"| {wording.count_text(params)} | {' | '.join(cells)} |")
    return "\n".join(out)


def assumption_table(lines: list[dict]) -> str:
    """One row per assumption: QiD at 4 bits by size, and the population's exponent of tokens."""
    sizes = " | ".join(wording.count_text(params) for params in asking.DEFAULT_PARAMS)
    out = [f"| data | law | prior | phase | {sizes} | beta | checks |", "|---" * (6 + len(asking.DEFAULT_PARAMS)) + "|"]
    for line in lines:
        for phase in PHASES if (line["law"], line["prior"]) == ("boxcox", "") else PHASES[:1]:
            each = " | ".join(shown(value(line, phase, params, 4)) for params in asking.DEFAULT_PARAMS)
            beta = shown(line["beta"]) if "beta" in line else ""
            passed = "passed" if all(line["checks"].values()) else "failed: " + ", ".join(
                name for name, good in line["checks"].items() if not good)  # fmt: skip
            prior = line["prior"].removeprefix("beta prior ") or "as is"
            out.append(f"| {line['data']} | {line['law']} | {prior} | {phase} | {each} | {beta} | {passed} |")
    return "\n".join(out)


def found() -> list[dict]:
    """Finished fits in the order of `FITS`."""
    lines = {line["config"]: line for line in load(RESULTS)}
    return [lines[label(*one)] for one in FITS if label(*one) in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        run(RESULTS, [(fit, label(*one), 0, *one) for one in FITS], options.jobs)
    lines = found()
    put(PAGE, "grid", grid_table(lines[0]))
    put(PAGE, "assumptions", assumption_table(lines))
    print(json.dumps({line["config"]: sum(line["checks"].values()) for line in lines}, indent=1))


if __name__ == "__main__":
    main()
