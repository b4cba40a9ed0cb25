"""The commands as functions: `bayesqid.project(...)` for `bayesqid project`, with a Dataset for what is printed.

A posterior is given as a path, as what `sample` returned, as what `open_posterior` read, or not at all: then it is
./posterior.nc, else the bundled one. Arguments are named as the options are. What a user can mend raises
`bayesqid.errors.BadInput` with one sentence. Intervals are equal-tailed; N counts non-embedding parameters, D training
tokens, QiD and losses are in nats per token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from bayesqid.answers.draws import Posterior

    Given = str | Path | Posterior | xr.DataTree | None


def open_posterior(posterior: "Given" = None, brief: bool = False) -> "Posterior":
    """The posterior as answers read it, opened once for many questions.

    `brief` leaves the values per draw and cell in the file, which `report` and sensitivities read.
    """
    from bayesqid.answers import draws

    if isinstance(posterior, draws.Posterior):
        return posterior
    if posterior is None or isinstance(posterior, str | Path):
        return draws.read(None if posterior is None else str(posterior), brief)
    from bayesqid.answers import average

    return average.of_tree(posterior, "in memory")


def _known(model_name: str | None) -> dict | None:
    if model_name is None:
        return None
    from bayesqid.importers import tables

    return tables.lookup_model(model_name)


def project(
    posterior: "Given" = None, *, tokens: float | None = None, tokens_range: str | tuple[float, float] | None = None,
    points: int | None = None, params: float | None = None, model_name: str | None = None, bits: float | None = None,
    recipes: str | None = None, targets: str | Path | None = None, method: str = "gptq", family: str | None = None,
    new_family: bool = False, population: bool = False, band: str = "new", lr_phase: str = "annealed",
    loss_law: str | None = None,
) -> "xr.Dataset":  # fmt: skip
    """QiD of sizes x bits x tokens with its credible bands, dim `target`: see `bayesqid.answers.project.project`."""
    from bayesqid.answers import asking
    from bayesqid.answers import project as answer

    found = open_posterior(posterior, brief=True)
    wanted = asking.asked(
        found, targets, _known, tokens=tokens, tokens_range=tokens_range, points=points, params=params,
        known=_known(model_name), bits=bits, recipes=recipes, method=method, family=family, new_family=new_family,
        population=population, lr_phase=lr_phase,
    )  # fmt: skip
    return answer.project(found, wanted, band, loss_law)


def choose(
    posterior: "Given" = None, *, params: float | None = None, model_name: str | None = None,
    checkpoint: str | None = None, tokens: float | None = None, tolerance: float | str | None = None,
    confidence: float | None = None, recipes: str | None = None, memory: str | None = None,
    loss_law: str | None = None, landscape: "str | Path | xr.Dataset | None" = None, family: str | None = None,
    new_family: bool = False, lr_phase: str | None = None,
) -> "xr.Dataset":  # fmt: skip
    """Recipes from the cheapest on, dim `recipe`, the choice in `attrs["choice"]`: see `bayesqid.answers.choose`."""
    from bayesqid.answers import choose as answer

    if isinstance(landscape, str | Path):
        from bayesqid.importers import sources

        landscape = sources.read_cells(str(landscape))
    return answer.choose(open_posterior(posterior, brief=True), params, _known(model_name), tokens, tolerance,
                         confidence, recipes, family, new_family, lr_phase, checkpoint, memory, loss_law,
                         landscape)  # fmt: skip


def fraction(
    posterior: "Given" = None, *, increase: "str | float | Sequence[float] | None" = None,
    params: "str | float | Sequence[float] | None" = None, model_name: str | None = None, tokens: float | None = None,
    bits: float = 4, block: float = 32, granularity: str | None = None,
    at: "str | float | Sequence[float] | None" = None, method: str | None = None, assignment: str | None = None,
    family: str | None = None, new_family: bool = False, band: str = "new", lr_phase: str = "annealed",
) -> "xr.Dataset":  # fmt: skip
    """Largest share that may be quantized, dim `target`: see `bayesqid.answers.fraction.fraction`."""
    from bayesqid.answers import fraction as answer

    return answer.fraction(open_posterior(posterior, brief=True), increase, params, _known(model_name), tokens, bits,
                           block, granularity, at, method, assignment, family, new_family, band, lr_phase)  # fmt: skip


def tokens(
    posterior: "Given" = None, *, params: float | None = None, model_name: str | None = None,
    bits: Sequence[float] | None = None, threshold: Sequence[float] | None = None, method: str = "gptq",
    family: str | None = None, new_family: bool = False, band: str = "new", lr_phase: str = "annealed",
) -> "xr.Dataset":  # fmt: skip
    """Training tokens at which QiD reaches a threshold, dim `target`: see `bayesqid.answers.tokens.tokens`."""
    from bayesqid.answers import tokens as answer

    return answer.tokens(open_posterior(posterior, brief=True), params, _known(model_name), bits, threshold, method,
                         family, new_family, band, lr_phase)  # fmt: skip


def level(
    posterior: "Given" = None, *, qid: Sequence[str] = (), measurements: str | Path | None = None,
    checkpoint: str | None = None, params: float | None = None, model_name: str | None = None, method: str = "gptq",
    family: str | None = None, new_family: bool = False, lr_phase: str | None = None,
    tokens_prior: str | tuple[float, float] = "1e9:1e16",
) -> "xr.Dataset":  # fmt: skip
    """Training tokens and training level of one model from its QiDs: see `bayesqid.answers.level.level`."""
    from bayesqid.answers import level as answer
    from bayesqid.answers import observed

    bounds = observed.parse_tokens_prior(tokens_prior) if isinstance(tokens_prior, str) else tokens_prior
    cells = None
    if measurements is not None:
        from bayesqid.importers import sources

        cells = sources.read_cells(str(measurements))
    asked = observed.question(qid, cells, checkpoint, params, _known(model_name), family, new_family)
    found = open_posterior(posterior, brief=True)
    whose, _ = observed.family_of(asked, found.families)
    return answer.level(found, asked.params, asked.qids, method, whose, bounds, lr_phase)


def drivers(
    posterior: "Given" = None, *, tokens: tuple[float, float] | None = None, family: str | None = None,
    suite: Sequence[str] | None = None,
) -> "xr.Dataset":  # fmt: skip
    """What tokens and learning-rate decay do to QiD, dim `effect`: see `bayesqid.answers.drivers.drivers`."""
    from bayesqid.answers import drivers as answer

    return answer.drivers(open_posterior(posterior, brief=True), tokens, family, suite)


def next_measurements(
    posterior: "Given" = None, *, suite: str = "pythia", budget: str | int = "8",
    candidates: str | None = None, per: str = "hour", tokens: float = 1e14, params: float | None = None,
    model_name: str | None = None, bits: float | None = None, recipes: str | None = None, method: str = "gptq",
    family: str | None = None, new_family: bool = False, lr_phase: str = "annealed", error: float | None = None,
    flops: float = 2e13,
) -> "xr.Dataset":  # fmt: skip
    """What to measure next, dim `pick`: see `bayesqid.answers.next.next_`."""
    from bayesqid.answers import next as answer

    return answer.next_(open_posterior(posterior, brief=True), suite, str(budget), candidates, tokens, params,
                        _known(model_name), bits, recipes, method, family, new_family, lr_phase, per, error,
                        flops)  # fmt: skip


def replicate(posterior: "Given" = None, *, paper: str) -> "xr.Dataset":
    """What a paper prints beside a posterior, dim `claim`: see `bayesqid.answers.replicate.replicate`."""
    from bayesqid.answers import replicate as answer

    return answer.replicate(open_posterior(posterior, brief=True), paper)


def score(posterior: "Given" = None, *, data: "str | xr.Dataset") -> "xr.Dataset":
    """Predictions against cells that were not fitted: see `bayesqid.answers.score.score`."""
    from bayesqid.answers import score as answer
    from bayesqid.importers import sources

    return answer.score(open_posterior(posterior, brief=True),
                        sources.read_cells(data) if isinstance(data, str) else data)  # fmt: skip


def sample(
    data: Sequence["str | xr.Dataset"] = ("atlas",), *, law: str = "boxcox", model: str = "hierarchical",
    drivers: str = "both", extra: Sequence[str] = (), engine: str = "nuts", prior: Mapping | None = None,
    seed: int = 0, chains: int = 4, draws: int = 800, tune: int = 600,
) -> "xr.DataTree":  # fmt: skip
    """Posterior of a law from measurement files, tables, bundled names or cells: see `bayesqid.inference.sample`.

    `prior` holds what a TOML file of priors would. The checks stand in `attrs["checks"]`.
    """
    from bayesqid import cells, laws
    from bayesqid.importers import sources
    from bayesqid.inference import sample as inference

    chosen = laws.variant(law, drivers, extra)
    if prior is not None:
        chosen = laws.with_priors(chosen, dict(prior))
    parts = [sources.read_cells(one, chosen.extras) if isinstance(one, str) else one for one in data]
    return inference.sample(cells.join(parts), chosen, model, engine, seed, chains, draws, tune)


def simulate(
    law: str = "boxcox", *, settings: Sequence[str] = (), published: str | None = None, families: int = 6,
    tokens: int = 5, sizes: int = 2, seed: int = 0,
) -> "xr.Dataset":  # fmt: skip
    """Cells of a law with known parameters, dim `cell`, the truth in `attrs["truth"]`: see `inference.simulate`."""
    from bayesqid import laws
    from bayesqid.inference import simulate as inference

    return inference.make(laws.get(law), settings, published, families, tokens, sizes, seed)


def compare(
    data: Sequence["str | xr.Dataset"] = ("atlas",), *, laws: Sequence[str] | None = None,
    models: Sequence[str] = ("hierarchical",), splits: Sequence[str] | None = None, seed: int = 0,
) -> "tuple[xr.Dataset, dict[str, xr.DataTree]]":  # fmt: skip
    """Laws by what they predict of data left out, and their posteriors: see `bayesqid.inference.compare.compare`."""
    from bayesqid import cells
    from bayesqid import laws as table
    from bayesqid.importers import sources
    from bayesqid.inference import compare as inference

    parts = [sources.read_cells(one) if isinstance(one, str) else one for one in data]
    wanted = [inference.law_of(name) for name in laws or table.PLAIN]
    return inference.compare(cells.check(cells.join(parts)), wanted, models, splits, None, seed)
