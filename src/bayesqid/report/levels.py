"""Training levels of a few fitted models: the tokens that their own measured QiDs tell, and those disclosed."""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from bayesqid.answers import asking, level, observed
from bayesqid.answers.draws import Posterior
from bayesqid.errors import BadInput
from bayesqid.report import drawing
from bayesqid.report.blocks import Column, Figure, Table, number, rounded
from bayesqid.report.drawing import BLUE, DARK, ORANGE
from bayesqid.report.tables import COUNTED

MODELS, QIDS = 4, 4
# enough for a curve; a level takes a second with a thousand
DRAWS = 300
EVERY = 8
COLORS = {"a new family": BLUE, "its own family": ORANGE}


@dataclass(frozen=True)
class Asked:
    """One fitted checkpoint, the effective bits of some of its cells, and its level asked as each kind of family."""

    checkpoint: str
    family: str
    params: float
    disclosed: float
    bits: tuple[float, ...]
    method: str
    source: str
    answers: dict[str, xr.Dataset]


def picked(posterior: Posterior) -> list[xr.Dataset]:
    """Cells of a few checkpoints: the most measured one of each of the families with most measured cells.

    Of each the cells of one method in one source under one text and context, lowest bits first, four at most.
    """
    cells = posterior.cells
    known = ~cells["censored"].to_numpy().astype(bool) & np.isfinite(cells["train_tokens"].to_numpy())
    seen = cells.isel(cell=np.flatnonzero(known))
    found = []
    for family in _most(seen["family"].to_numpy().astype(str))[:MODELS]:
        own = seen.isel(cell=np.flatnonzero(seen["family"].to_numpy() == family))
        names = own["checkpoint"].to_numpy().astype(str)
        own = own.isel(cell=np.flatnonzero(names == _most(names)[0]))
        found.append(_one_set(own))
    return sorted(found, key=lambda one: (float(one["train_tokens"][0]), str(one["checkpoint"].values[0])))


def _most(names: np.ndarray) -> list[str]:
    """Distinct names, the most frequent first, equal ones in alphabetical order."""
    distinct, counts = np.unique(names, return_counts=True)
    return [str(name) for name in distinct[np.argsort(-counts, kind="stable")]]


def _one_set(own: xr.Dataset) -> xr.Dataset:
    """Cells of one source, method, text and context: those with most distinct bits."""
    columns = [own[name].to_numpy().tolist() for name in ("source_method", "eval_dataset", "ctx_len")]
    groups: dict[tuple, dict[float, int]] = {}
    widths = own["effective_bits"].to_numpy().round(1).tolist()
    for place, (width, *key) in enumerate(zip(widths, *columns, strict=True)):
        groups.setdefault(tuple(key), {}).setdefault(width, place)
    best = max(sorted(groups), key=lambda key: min(len(groups[key]), QIDS))
    return own.isel(cell=[place for _, place in sorted(groups[best].items())][:QIDS])


def prior(posterior: Posterior) -> tuple[float, float]:
    """Bounds of the prior of D: the usual ones, lowered to a hundredth of the fewest fitted tokens."""
    usual = level.TOKENS_PRIOR
    fewest = float(np.nanmin(posterior.cells["train_tokens"].to_numpy()))
    return max(min(usual[0], fewest / 100), asking.LIMITS["tokens"][0]), usual[1]


def levels(posterior: Posterior) -> list[Asked]:
    """The levels of `picked` checkpoints; none for a law without tokens."""
    if "beta" not in posterior.law.term_names:
        return []
    pick = np.linspace(0, posterior.size - 1, min(posterior.size, DRAWS)).round().astype(int)
    few = replace(posterior, sample=posterior.sample.isel(draw=pick))
    out = []
    for cells in picked(posterior):
        qids, facts = observed.from_cells(cells)
        method = str(cells["quantizer"].values[0])
        try:
            answers = {name: level.level(few, facts["params"], qids, method, family, prior(posterior))
                       for name, family in (("a new family", None), ("its own family", facts["family"]))}  # fmt: skip
        except BadInput:
            # no number of tokens explains these QiDs: nothing to draw
            continue
        out.append(Asked(
            facts["checkpoint"], facts["family"], facts["params"], facts["tokens"],
            tuple(float(one) for one in cells["effective_bits"].to_numpy()), method,
            str(cells["source"].values[0]), answers))  # fmt: skip
    return out


def table(asked: list[Asked]) -> Table:
    """What every level says of the tokens, beside the disclosed ones."""
    rows = []
    for one in asked:
        for name, found in one.answers.items():
            tokens = found.sel(quantity="tokens")
            row = {"checkpoint": one.checkpoint, "family": one.family, "asked": name, "params": one.params}
            row |= {"method": one.method, "bits": ", ".join(f"{b:.3g}" for b in one.bits), "source": one.source}
            row |= {key: float(tokens[key]) for key in ("lower90", "lower50", "median", "upper50", "upper90")}
            row |= {"disclosed": one.disclosed, "inside90": row["lower90"] <= one.disclosed <= row["upper90"],
                    "effective_draws": float(found["effective_draws"])}  # fmt: skip
            rows.append(row)
    columns = (
        Column("checkpoint", lambda row: row["checkpoint"], number=False, one_line=True),
        Column("asked as", lambda row: row["asked"], number=False, one_line=True),
        Column("QiDs of", lambda row: f"{row['method']} at {row['bits']} bits", number=False),
        Column("median tokens", lambda row: COUNTED(row["median"])),
        Column("90 % ETI", lambda row: f"{COUNTED(row['lower90'])} to {COUNTED(row['upper90'])}"),
        Column("disclosed", lambda row: COUNTED(row["disclosed"])),
    )
    attrs = next(iter(asked[0].answers.values())).attrs
    low, high = (COUNTED(attrs[name]).replace("e+", "e") for name in ("prior_lower", "prior_upper"))
    note = (
        f"Prior: log-uniform from {low} to {high} tokens. These checkpoints were fitted, but are asked about as new "
        "ones: their QiDs count twice, so this shows how much a level can tell and tests nothing."
    )
    return Table("levels-table", "Training tokens told from QiD", columns, rows, note, grouped=True)


def sentence(rows: list[dict]) -> str:
    """How many of the disclosed tokens lie inside, and how wide the intervals are."""
    new = [row for row in rows if row["asked"] == "a new family"]
    inside = sum(row["inside90"] for row in new)
    wide = sorted(row["upper90"] / row["lower90"] for row in new)
    spans = f"a factor of {number(wide[0])}" + (f" to {number(wide[-1])}" if len(wide) > 1 else "")
    return (
        f"Asked as a new family, {inside} of {len(new)} disclosed token counts lie inside the 90 % equal-tailed "
        f"interval that the QiDs of the model give; the intervals span {spans} from end to end."
    )


def figure(asked: list[Asked]) -> Figure:
    """Posterior densities of the training tokens, one panel per checkpoint."""
    rows = [
        {"checkpoint": one.checkpoint, "label": name, "tokens": count, "density": value, "disclosed": one.disclosed}
        for one in asked for name, found in one.answers.items() for count, value in _curve(found)
    ]  # fmt: skip
    with drawing.style():
        canvas = drawing.canvas_of(10.2, 2.5 * -(-len(asked) // 2) + 0.5)
        grid = canvas.subplots(-(-len(asked) // 2), min(len(asked), 2), sharex=True, squeeze=False)
        axes = iter(grid.flat)
        for one, axis in zip(asked, axes, strict=False):
            for name, found in one.answers.items():
                tokens, density = found["tokens"].to_numpy()[::2], _per_decade(found)[::2]
                axis.fill_between(tokens, density, where=_inside(found)[::2], color=drawing.tint(COLORS[name], 0.3),
                                  linewidth=0, alpha=0.6)  # fmt: skip
                axis.plot(tokens, density, color=COLORS[name], linewidth=1.6)
            axis.axvline(one.disclosed, color=DARK, linewidth=1, linestyle="--")
            axis.set(xscale="log", ylim=(0, None), yticks=[], xlim=(tokens[0], tokens[-1]))
            drawing.plain_log(axis, "x", COUNTED)
            axis.spines["left"].set_visible(False)
            axis.set_title(one.checkpoint, loc="left", fontweight="bold")
        for axis in axes:
            axis.set_visible(False)
        for axis in grid[-1]:
            axis.set_xlabel("training tokens D")
        canvas.legend(handles=[
            *(Line2D([], [], color=color, label=f"asked as {name}") for name, color in COLORS.items()),
            Line2D([], [], color=DARK, linewidth=1, linestyle="--", label="disclosed"),
        ], loc="outside lower center", ncols=3)  # fmt: skip
        svg, png = drawing.rendered(canvas)
    words = "; ".join(f"{one.checkpoint}, disclosed {COUNTED(one.disclosed)}: " + ", ".join(
        f"asked as {name} median {COUNTED(float(found.sel(quantity='tokens')['median']))}"
        for name, found in one.answers.items()) for one in asked)  # fmt: skip
    caption = (
        "Posterior density of the training tokens given a few QiDs of the model, under a prior that is flat on this "
        "axis; shaded: 90 % equal-tailed interval. Dashed: the tokens disclosed. Every model was fitted, so its QiDs "
        f"count twice. From at most {DRAWS} draws."
    )
    alt = f"Densities over tokens on a logarithmic axis. {words}."
    return Figure("levels", "Training level", alt, caption, svg, png, rounded(rows))


def _curve(found: xr.Dataset) -> list[tuple[float, float]]:
    """Points of a density: some sixty inside the 90 % interval, fewer where it is flat."""
    tokens, density, place = found["tokens"].to_numpy(), _per_decade(found), np.arange(found.sizes["tokens"])
    inside = _inside(found)
    keep = (inside & (place % max(1, inside.sum() // 60) == 0)) | (place % EVERY == 0)
    return list(zip(tokens[keep].tolist(), density[keep].tolist(), strict=True))


def _inside(found: xr.Dataset) -> np.ndarray:
    own, tokens = found.sel(quantity="tokens"), found["tokens"].to_numpy()
    return (tokens >= float(own["lower90"])) & (tokens <= float(own["upper90"]))


def _per_decade(found: xr.Dataset) -> np.ndarray:
    return found["density"].to_numpy() * np.log(10)
