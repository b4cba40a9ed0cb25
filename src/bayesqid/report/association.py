"""What goes with what over families: their levels and tokens exponents with vocabulary and training tokens."""

import numpy as np

from bayesqid.answers import asking, draws, drivers, identification
from bayesqid.answers.draws import Posterior, Target
from bayesqid.report.blocks import Column, Table

FEWEST = 3
BITS = 3.0
NOTHING = 1e-9
YEARS = "Release years stand neither in the cells nor in the posterior: no correlation with them is told."


def centres(posterior: Posterior) -> dict[str, np.ndarray]:
    """Means of ln N, ln D and ln V (vocabulary) over the checkpoints of each family, each (family,)."""
    cells = posterior.cells
    first = np.unique(cells["checkpoint"].to_numpy().astype(str), return_index=True)[1]
    own = cells.isel(cell=first)
    family = own["family"].to_numpy().astype(str)
    columns = {"params": "n_params_nonembedding", "tokens": "train_tokens", "vocabulary": "vocab_size"}
    return {name: np.array([_mean_log(own[column].to_numpy()[family == f]) for f in posterior.families])
            for name, column in columns.items()}  # fmt: skip


def _mean_log(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.log(known).mean()) if known.size else np.nan


def levels(posterior: Posterior, at: dict[str, np.ndarray]) -> np.ndarray:
    """How far ln QiD of each family lies from the population's law at the centre of its data, (draw, family)."""
    method = draws.require_method(posterior, asking.DEFAULT_METHOD)
    targets = [
        Target(family=family, params=float(np.exp(n)), tokens=float(np.exp(d)), effective_bits=BITS, method=method,
               population=family is None)
        for own, n, d in zip(posterior.families, at["params"], at["tokens"], strict=True) for family in (own, None)
    ]  # fmt: skip
    value = sum(draws.log_law_parts(posterior, targets, None).values(), np.zeros((posterior.size, len(targets))))
    return value[:, ::2] - value[:, 1::2]


def rows(posterior: Posterior) -> list[dict]:
    """Correlation over families of levels and betas with ln V and ln D, as posterior median and 90 % interval.

    None for independent and pooled families, which have no deviation, and where fewer than three families differ.
    """
    if posterior.tree.attrs["model"] != "hierarchical" or len(posterior.families) < FEWEST:
        return []
    at = centres(posterior)
    quantities = {"level": levels(posterior, at)} if np.isfinite(at["tokens"]).all() else {}
    name = identification.tokens_term(posterior)
    if name is not None:
        quantities[name] = posterior.sample["theta"].sel(term=name).transpose("draw", "family").to_numpy()
    found = []
    for quantity, values in quantities.items():
        for other in ("vocabulary", "tokens"):
            known = np.isfinite(at[other])
            if known.sum() >= FEWEST and at[other][known].std() > NOTHING:
                r = correlation(values[:, known], at[other][known])
                low, median, high = np.quantile(r, [0.05, 0.5, 0.95])
                found.append({"quantity": quantity, "with": other, "families": int(known.sum()),
                              "median": float(median), "lower90": float(low), "upper90": float(high)})  # fmt: skip
    return found


def correlation(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Pearson correlation of each draw's values (draw, family) with x (family,), shape (draw,)."""
    left = values - values.mean(axis=1, keepdims=True)
    right = x - x.mean()
    return (left @ right) / np.maximum(np.sqrt((left**2).sum(axis=1) * (right**2).sum()), NOTHING**2)


def by_chance(families: int) -> float:
    """|r| that one in ten independent normal pairs of so many points exceeds, t / sqrt(t^2 + n - 2)."""
    from scipy.special import stdtrit

    found = float(stdtrit(families - 2, 0.95))
    return found / np.sqrt(found**2 + families - 2)


def two(value: float) -> str:
    """A correlation to two decimals."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def table(found: list[dict]) -> Table:
    """Correlations over families."""
    names = {"level": "level of the family", "vocabulary": "ln of the vocabulary", "tokens": "ln of training tokens"}
    columns = (
        Column("of", lambda row: names.get(row["quantity"]) or str(row["quantity"]), number=False),
        Column("with", lambda row: names[row["with"]], number=False),
        Column("families", lambda row: str(row["families"])),
        Column("median correlation", lambda row: two(row["median"])),
        Column("90 % ETI", lambda row: f"{two(row['lower90'])} to {two(row['upper90'])}"),
    )
    least = min(row["families"] for row in found)
    note = (
        "Level: how far ln QiD of a family lies from the population's law at the centre of its data, at 3 bits. "
        f"Over {least} families that have nothing to do with each other one correlation in ten exceeds "
        f"{by_chance(least):.2f} in size. {YEARS}"
    )
    return Table("association", "What goes with what over families", columns, found, note)


def together(posterior: Posterior) -> list[str]:
    """Whether families of more tokens have larger vocabularies, as a sentence; empty where that cannot be said."""
    at: dict[str, np.ndarray] = centres(posterior)
    known = np.isfinite(at["vocabulary"]) & np.isfinite(at["tokens"])
    x, y = at["vocabulary"][known], at["tokens"][known]
    if known.sum() < FEWEST or x.std() < NOTHING or y.std() < NOTHING:
        return []
    r = float(np.corrcoef(x, y)[0, 1])
    return [f"Over {known.sum()} families the vocabulary and the training tokens, both as logarithms, correlate at "
            f"{two(r)}."]  # fmt: skip


def tokens_or_decay(posterior: Posterior) -> list[str]:
    """Whether the data tell the effect of tokens from that of learning-rate decay, and why, as one paragraph."""
    if posterior.tree.attrs["model"] == "independent" or not np.isfinite(centres(posterior)["tokens"]).all():
        return []
    # the smallest suite: what measuring suites would add is not told here
    found = drivers.drivers(posterior, suite=("tiny",))
    told = drivers.as_json(found)
    says = drivers.VERDICTS[told["verdict"]].partition(": ")[2]
    if told["verdict"] == "checks failed":
        return []
    return [" ".join([f"{says[:1].upper()}{says[1:]}.", *told["findings"]])]
