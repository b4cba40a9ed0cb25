"""QiD against tokens: credible bands over a grid, with the fitted cells and the published law beside them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid import laws
from bayesqid.answers import project
from bayesqid.answers.draws import Posterior, Target

POINTS = 41
NEAR_BITS = 0.35
NEAR_PARAMS = 3.0


def grid(posterior: Posterior, tokens: Sequence[float], points: int = POINTS) -> np.ndarray:
    """Tokens from a third of the smallest fitted or asked count to three times the largest, the asked ones included.

    Log-spaced, ascending, shape (points + distinct tokens,) or less where they coincide.
    """
    fitted = posterior.cells["train_tokens"].to_numpy()
    low, high = min(np.nanmin(fitted), *tokens) / 3, max(np.nanmax(fitted), *tokens) * 3
    return np.unique(np.concatenate([np.geomspace(low, high, points), np.asarray(tokens, dtype=float)]))


def tokens_range(posterior: Posterior, family: str | None) -> tuple[float, float]:
    """Smallest and largest training tokens among the fitted cells of a family, of all families for None."""
    cells = posterior.cells
    own = cells["family"].to_numpy() == family if family else np.ones(cells.sizes["cell"], dtype=bool)
    tokens = cells["train_tokens"].to_numpy()[own]
    return float(np.nanmin(tokens)), float(np.nanmax(tokens))


def bands(posterior: Posterior, targets: Sequence[Target], tokens: np.ndarray, band: str = "new") -> xr.Dataset:
    """Equal-tailed quantiles of QiD in nats per token for each target at each count of tokens.

    Dims (panel, tokens), one panel per target, whose own tokens are replaced by the grid. `outside` says that N, D
    or the bits lie outside the fitted range, `p_saturated` how likely the law passes the loss of a uniform guess.
    """
    names = project.quantile_names("")
    values = {name: np.empty((len(targets), tokens.size)) for name in (*names, "p_saturated", "n_ratio", "d_ratio")}
    bits_outside = project.beyond(posterior, targets)["p_outside"]
    for j, count in enumerate(tokens):
        at = [replace(target, tokens=float(count)) for target in targets]
        # each count starts from the same seed and so takes the same random numbers: the curves are smooth
        qid, fullness = project.qid_draws(posterior, at, band)
        for name, value in project.quantiles(qid, "").items():
            values[name][:, j] = value
        values["p_saturated"][:, j] = (fullness > 1).mean(axis=0)
        beyond = project.beyond(posterior, at)
        values["n_ratio"][:, j], values["d_ratio"][:, j] = beyond["n_ratio"], beyond["d_ratio"]
    outside = (values["n_ratio"] > 1) | (values["d_ratio"] > 1) | bits_outside[:, None]
    data = {name: (("panel", "tokens"), value) for name, value in values.items()}
    coords = {
        "tokens": tokens,
        "family": ("panel", [t.of for t in targets]),
        "params": ("panel", [t.params for t in targets]),
        "bits": ("panel", [float(t.bits or t.effective_bits) for t in targets]),
        "effective_bits": ("panel", [t.effective_bits for t in targets]),
        "method": ("panel", [t.method for t in targets]),
        "p_outside": ("panel", bits_outside),
    }
    return xr.Dataset(data | {"outside": (("panel", "tokens"), outside)}, coords, {"band": band, "interval": "eti"})


def near(posterior: Posterior, target: Target) -> xr.Dataset:
    """Fitted cells comparable with a target: bits within 0.35, N within a factor of three, not diverged, any D."""
    cells = posterior.cells
    bits = np.abs(cells["effective_bits"].to_numpy() - target.effective_bits) <= NEAR_BITS
    params = np.abs(np.log(cells["n_params_nonembedding"].to_numpy() / target.params)) <= np.log(NEAR_PARAMS)
    return cells.isel(cell=np.flatnonzero(bits & params & ~cells["censored"].to_numpy()))


def published_qid(name: str, params: float, tokens: np.ndarray, bits: float) -> np.ndarray:
    """QiD in nats per token of a published law as printed, without a ceiling."""
    return laws.qid(params, tokens, bits, **laws.published_constants(name))


def published_slopes() -> list[dict]:
    """Exponents alpha, beta, gamma at 3 bits that the sources print; gamma None for a set that fixes the bits."""
    rows, listed = [], []
    for law in laws.LAWS.values():
        # one source's constants are held by each of the laws that it has given rise to
        if law.published in listed:
            continue
        listed.append(law.published)
        for constants in law.published:
            found = laws.published_constants(law.name, constants)
            gamma = found["gamma"] if found["gamma"] else None
            label = law.name if constants == "unified" else f"{law.name}, {constants} column"
            rows.append({"law": label, "alpha": found["alpha"], "beta": found["beta"], "gamma": gamma,
                         "citation": law.citation})  # fmt: skip
    return rows
