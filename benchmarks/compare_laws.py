"""Laws compared on the published atlas, as the Markdown tables of docs/compare.md.

Finished fits are kept in --folder, so that an interrupted run goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

from bayesqid import cells as cells_module
from bayesqid import files, laws
from bayesqid.answers import asking, average, wording
from bayesqid.importers import sources
from bayesqid.inference import compare, scores


def score_table(out: dict) -> str:
    """Per split a row per law: difference to the best, its standard and Monte Carlo errors, the stacking weight."""
    lines = ["| split | folds | law | difference | s.e. | MC error | weight |", "|---|---|---|---|---|---|---|"]
    for entry in out["splits"].values():
        rows = sorted(entry["candidates"].items(), key=lambda item: -item[1]["lpd"])
        for number, (label, one) in enumerate(rows):
            first = [entry["title"], str(entry["folds"])] if number == 0 else ["", ""]
            cut = "" if entry["cut"] is None or number else f" (from {entry['cut']:.3g})"
            lines.append(
                f"| {first[0]}{cut} | {first[1]} | {label} | {one['difference']:.1f} | "
                f"{one['standard_error']:.1f} | {one['monte_carlo_error']:.2f} | {one['weight']:.2f} |"
            )
    return "\n".join(lines)


def projection_table(out: dict) -> str:
    """Per law and mixture the projected QiD of every target: median and equal-tailed 90 % band."""
    lines = ["| law | parameters | tokens | bits | median | 90 % band, equal-tailed | P(QiD > 0.2) |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    mixtures = {f"mixture, {name}": one["rows"] for name, one in out["mixtures"].items()}
    for label, rows in (out["components"] | mixtures).items():
        lines += [
            f"| {label} | {wording.count_text(row['params'])} | {wording.count_text(row['tokens'])} | "
            f"{row['bits']:g} | {row['median']:.3g} | {row['lower90']:.3g} to {row['upper90']:.3g} | "
            f"{row['p_gt_0.2']:.0%} |"
            for row in rows
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["atlas"])
    parser.add_argument("--laws", default=",".join(laws.PLAIN))
    parser.add_argument("--models", default="hierarchical")
    parser.add_argument("--splits", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("comparison"))
    options = parser.parse_args()
    cells = cells_module.check(cells_module.join([sources.read_cells(name) for name in options.data]))
    wanted = [compare.law_of(name) for name in options.laws.split(",")]
    names = options.splits.split(",") if options.splits else None
    found, trees = compare.compare(cells, wanted, options.models.split(","), names, {}, options.seed, options.folder)
    files.write_netcdf(found, options.folder / "comparison.nc")
    posteriors = {name: average.of_tree(tree, name) for name, tree in trees.items()}
    targets = asking.targets(next(iter(posteriors.values())), 1e14, 70e9, bits=4.0)
    averages = {name: average.average(posteriors, weights, targets) for name, weights in scores.weights(found).items()}
    out = scores.as_json(found)
    print(f"{out['data']['cells']} cells; checks: {json.dumps(out['checks'])}; not possible: {out['not_possible']}\n")
    print(score_table(out), projection_table(average.as_json(averages)), sep="\n\n")


if __name__ == "__main__":
    main()
