"""A posterior file as flat draws, and the law evaluated with them at any target."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bayesqid import bundled, cells, files, laws, methods
from bayesqid import quantized_share as part
from bayesqid.errors import BadInput

SCHEMA = "bayesqid-posterior/1"
BUNDLED = "posterior.nc"
# what an answer reads of a posterior
GROUPS = ("posterior", "prior", "constant_data", "cells")
ATTRS = ("law", "model", "checks")
# over what every law's draws are, besides chain and draw
OVER = {"mu": ("term",), "sd": ("term",), "theta": ("term", "family"), "covariate": ("covariate_name",),
        "spread": ("effect",), "tau": ("generation",), "lam": ()}  # fmt: skip
CENTERS = {"center_x_N", "center_x_D"}
# what only reports and sensitivity read
PER_CELL = ("log_likelihood", "posterior_predictive", "observed_data", "sample_stats")
IDENTIFIED = 0.2
# weights that share a scale where a question does not say
USUAL_GROUP = 128


@dataclass(frozen=True)
class Target:
    """What is asked about: a model (family None: a new one), its N and D, and the recipe as the law sees it.

    `population` (with family None): no family is drawn, the terms are the population's mean.
    `checkpoint` and `source_method` name levels: a fitted one's own deviation is used, targets that name the same
    new one share its draw. Without a name a checkpoint is told by family, N and D, and every target has a source of
    its own.
    `qid_se`, `vocab_size`, `loss16`, `headroom` are those of a measurement; None: as of the fitted models of its size.
    `features`: what was measured of its loss landscape, by column of cells, for a law that reads it (`Law.features`),
    and which part of the weights is quantized and in what blocks (`part.PLAIN`, group_size), if not all.
    """

    family: str | None
    params: float
    tokens: float
    effective_bits: float
    method: str
    per_channel: bool = False
    bits: float | None = None
    lr_phase: str = "annealed"
    eval_dataset: str = "wikitext2"
    context: float = laws.REFERENCE_CONTEXT
    checkpoint: str | None = None
    source_method: str | None = None
    qid_se: float | None = None
    vocab_size: float | None = None
    loss16: float | None = None
    headroom: float | None = None
    population: bool = False
    features: Mapping[str, Any] | None = None

    @property
    def share(self) -> float:
        """Share of the weights that is quantized."""
        return float((self.features or {}).get("quantized_fraction", 1.0))

    @property
    def of(self) -> str:
        """Name of the family as tables and rows show it: a fitted one, "new" or "population"."""
        return self.family or ("population" if self.population else "new")


@dataclass(frozen=True)
class Posterior:
    """Draws of one posterior file: `sample` has one dim `draw` of all chains, `tree` the rest."""

    tree: xr.DataTree
    sample: xr.Dataset
    path: str
    sha256: str
    origin: str

    @cached_property
    def law(self) -> laws.Law:
        """The law that was fitted."""
        return law_of(self.tree)

    @property
    def checks(self) -> dict[str, bool]:
        """Named checks of the run."""
        return json.loads(self.tree.attrs["checks"])

    @cached_property
    def cells(self) -> xr.Dataset:
        """The cells that were fitted."""
        return self.tree["cells"].to_dataset()

    @property
    def families(self) -> list[str]:
        """Fitted families."""
        return [str(name) for name in self.sample["family"].values]

    @property
    def size(self) -> int:
        """Number of draws."""
        return self.sample.sizes["draw"]


def law_of(tree: xr.DataTree) -> laws.Law:
    """The law, with its drivers and extras, of a posterior file."""
    extras = [extra for extra in tree.attrs.get("extras", "").split(",") if extra]
    return laws.variant(tree.attrs["law"], tree.attrs.get("drivers", "both"), extras)


def locate(path: str | None) -> tuple[Path, str]:
    """The posterior to use and its origin: the named file, else ./posterior.nc, else the bundled one."""
    if path is not None:
        return Path(path), "file"
    here = Path("posterior.nc")
    return (here, "file") if here.is_file() else (bundled.data_dir() / BUNDLED, "bundled")


def read(path: str | None = None, brief: bool = False) -> Posterior:
    """Read a posterior; `BadInput` if a named file is missing, corrupt or of another schema.

    `brief`: without the groups that hold values per draw and cell, most of a file, which few answers read.
    """
    where, origin = locate(path)
    tree = files.open_tree(where, PER_CELL if brief else ())
    if (found := files.schema_of(tree)) != SCHEMA:
        raise BadInput(f"{where} has schema {found!r}, not {SCHEMA}: give a file that `bayesqid sample` wrote.")
    absent = [name for name in GROUPS if name not in tree.children] + [name for name in ATTRS if name not in tree.attrs]
    if absent:
        raise BadInput(f"{where} lacks {absent[0]}: sample it again.")
    try:
        whole = _whole(tree)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        whole = False
    if not whole:
        raise BadInput(f"{where} is damaged: its law, draws or cells do not fit together; sample it again.")
    return Posterior(tree, flatten(tree["posterior"].to_dataset()), str(where), files.sha256_file(where), origin)


def _whole(tree: xr.DataTree) -> bool:
    """Whether the draws are finite numbers under the law's own labels, and the cells usable; netCDF has no checksum."""
    law, sample = law_of(tree), tree["posterior"].to_dataset()
    fitted = cells.check(cells.from_file(tree["cells"].to_dataset(), {"name": "The cells in the posterior"}))
    labels = {"term": law.term_names, "covariate_name": [c.name for c in law.covariates],
              "effect": [e.name for e in law.effects]}  # fmt: skip
    fit = all(list(sample[dim].values) == list(names) for dim, names in labels.items())
    fit &= set(sample.data_vars) >= set(OVER) and {"mu", "sd"} <= set(tree["prior"].data_vars)
    fit &= {effect.name for effect in law.effects} <= set(sample.data_vars)
    fit &= _laid_out(sample, law) and _laid_out(tree["prior"].to_dataset(), law)
    known = tree["constant_data"].to_dataset()
    fit &= set(known.data_vars) >= CENTERS and all(known.variables[name].dims == ("family",) for name in CENTERS)
    fit &= all(np.isfinite(known.variables[name].values.astype(float)).all() for name in CENTERS)
    fit &= known.sizes["family"] == sample.sizes["family"]
    fit &= set(sample["family"].values) <= set(fitted["family"].values)
    fit &= all(isinstance(tree.attrs.get(name, ""), str) for name in (*ATTRS, "drivers", "extras"))
    finite = all(np.isfinite(values.to_numpy().astype(float)).all() for values in sample.data_vars.values())
    return fit and finite and isinstance(json.loads(tree.attrs["checks"]), dict)


def _laid_out(group: xr.Dataset, law: laws.Law) -> bool:
    """Whether a group holds numbers over the dims of the law's own, each with labels that are texts and unique."""
    over = OVER | {effect.name: (effect.by,) for effect in law.effects}
    held, labelled = group.variables, [name for name in group.dims if name not in ("chain", "draw")]
    fit = all(set(held[name].dims) == {"chain", "draw", *dims} for name, dims in over.items() if name in held)
    fit &= all(group.sizes.values()) and all(index.is_unique for index in group.indexes.values())
    fit &= all(held[name].dtype.kind in "biuf" for name in held if name not in group.coords)
    return fit and all(name in group.coords and held[name].dtype.kind in "OUT" for name in labelled)


def flatten(sample: xr.Dataset) -> xr.Dataset:
    """Chains laid end to end: dims (chain, draw, ...) to (draw, ...), double precision."""
    flat = sample.stack(all=("chain", "draw")).drop_vars(["all", "chain", "draw"]).rename(all="draw")
    return flat.transpose("draw", ...).astype(float)


def contraction(posterior: Posterior, name: str, term: str, family: str | None = None) -> float:
    """1 - var(posterior) / var(prior) of a population mean (`mu`), a spread (`sd`) or a family's term (`theta`).

    Under 0.2 the value is the prior's.
    """
    where = {"term": term} if family is None else {"term": term, "family": family}
    before = float(posterior.tree["prior"].to_dataset()[name].sel(where).astype(float).var())
    return 1 - float(posterior.sample[name].sel(where).var()) / before if before > 0 else 0.0


def require_family(posterior: Posterior, family: str) -> str:
    """The fitted family of that name whatever its case; `BadInput` lists what is known."""
    by_case = {name.casefold(): name for name in posterior.families}
    if family.casefold() in by_case:
        return by_case[family.casefold()]
    close = get_close_matches(family.casefold(), by_case, 1)
    hint = f" (did you mean {by_case[close[0]]}?)" if close else ""
    raise BadInput(
        f"Family {family!r} is not in this posterior{hint}: fitted are {', '.join(posterior.families)}; "
        "ask for any other with --new-family."
    )


def require_method(posterior: Posterior, method: str) -> str:
    """The effect key of a quantizer known to the posterior or to the table of methods."""
    key = methods.effect_key(*methods.canonical(method))
    if key in posterior.sample["quantizer"].values or methods.generation(key) != "unknown":
        return key
    known = ", ".join(map(str, posterior.sample["quantizer"].values))
    raise BadInput(f"The quantizer {method!r} is not known: fitted are {known}.")


def columns(posterior: Posterior | None, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """Targets as the columns that `laws.factor` reads; vocabulary and loss not given, or of no use, are NaN.

    `BadInput` where the law reads the loss landscape and a target does not say it.
    """
    out = {
        "n_params_nonembedding": np.array([t.params for t in targets], dtype=float),
        "train_tokens": np.array([t.tokens for t in targets], dtype=float),
        "effective_bits": np.array([t.effective_bits for t in targets], dtype=float),
        "per_channel": np.array([t.per_channel for t in targets]),
        "eval_dataset": np.array([t.eval_dataset for t in targets]),
        "ctx_len": np.array([t.context for t in targets], dtype=float),
        "lr_phase": np.array([t.lr_phase for t in targets]),
    }
    used = {c.factor for c in posterior.law.covariates} if posterior is not None else set()
    for name, factor in (("vocab_size", "ln V"), ("loss16", "ln loss")):
        known = [getattr(t, name) for t in targets]
        left = {t.params for t, value in zip(targets, known, strict=True) if value is None}
        usual = {size: nearest(posterior, size, name) if posterior and factor in used else np.nan for size in left}
        out[name] = np.array([usual[t.params] if value is None else value
                              for t, value in zip(targets, known, strict=True)], dtype=float)  # fmt: skip
    if posterior is None:
        return out
    for name, plain in {**part.PLAIN, "group_size": USUAL_GROUP}.items():
        out[name] = np.array([(t.features or {}).get(name, plain) for t in targets])
    if not posterior.law.mixed and any(t.share < 1 for t in targets):
        raise BadInput(f"Law {posterior.law.name} takes all weights as quantized and cannot tell of a part: give a "
                       "posterior from `bayesqid sample --law mixed`.")  # fmt: skip
    return out | landscape(posterior, targets)


def landscape(posterior: Posterior, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """Columns of the targets' loss landscape that the law reads; empty for a law that reads none."""
    for target in targets if posterior.law.features else ():
        if target.features is None or not all(name in target.features for name in posterior.law.features):
            raise BadInput(
                f"Law {posterior.law.name} predicts from a measured loss landscape, which parameters, tokens and bits "
                "do not tell: ask with `bayesqid choose --landscape`, or give a posterior of another law."
            )
    return {name: np.array([(t.features or {})[name] for t in targets], dtype=float)
            for name in posterior.law.features}  # fmt: skip


def typical(posterior: Posterior, family: str | None, method: str) -> Target:
    """A target in the middle of the fitted cells of a family, None: of all, its loss landscape included."""
    cells = posterior.cells
    own = cells if family is None else cells.isel(cell=np.flatnonzero(cells["family"].to_numpy() == family))
    middle = {name: float(own[name].median()) for name in
              ("n_params_nonembedding", "train_tokens", "effective_bits", *posterior.law.features)}  # fmt: skip
    params, tokens, bits = list(middle.values())[:3]
    return Target(family, params, tokens, bits, method, features={k: middle[k] for k in posterior.law.features})


def family_terms(posterior: Posterior, family: str | None, rng: np.random.Generator | None) -> np.ndarray:
    """Terms of a family at the pivot, shape (draw, term); a new family is drawn from the population.

    Without `rng` a new family's terms are the population's mean.

    A new family's slopes deviate from the population's about the median centre of the fitted families, because
    that is how the fitted families' do.
    """
    sample = posterior.sample
    if family is not None:
        return sample["theta"].sel(family=family).transpose("draw", "term").to_numpy()
    mu, sd = (sample[name].transpose("draw", "term").to_numpy() for name in ("mu", "sd"))
    if rng is None:
        return mu
    own = sd * rng.normal(size=mu.shape)
    if posterior.tree.attrs["model"] == "hierarchical":
        center = posterior.tree["constant_data"]
        slot = {term.factor: number for number, term in enumerate(posterior.law.terms)}
        for factor, name, sign in (("-x_N", "center_x_N", 1), ("x_D", "center_x_D", -1)):
            if factor in slot:
                own[:, slot["1"]] += sign * own[:, slot[factor]] * np.median(center[name])
    return mu + own


def deviations(posterior: Posterior, by: str, level: Any, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Factor -> draws of the deviation of one level of a coordinate, at the pivot; an unseen level's are drawn.

    Without `rng` an unseen level does not deviate, nor does the level None at all.
    """
    own = [effect for effect in posterior.law.effects if effect.by == by]
    if isinstance(level, str) and level in posterior.sample[by].values:
        return {effect.factor: posterior.sample[effect.name].sel({by: level}).to_numpy() for effect in own}
    if rng is None or level is None:
        return {effect.factor: np.zeros(posterior.size) for effect in own}
    spread = posterior.sample["spread"]
    drawn = {e.factor: spread.sel(effect=e.name).to_numpy() * rng.normal(size=posterior.size) for e in own}
    # slopes turn about the centre of the data, as those of the fitted levels do
    for factor, center, sign in (("-x_N", "overall_x_N", 1), ("x_D", "overall_x_D", -1)):
        if factor in drawn:
            drawn["1"] = drawn["1"] + sign * drawn[factor] * float(posterior.tree["constant_data"].to_dataset()[center])
    return drawn


# coordinate -> level of a target, of the effects that belong to the law of a recipe
RECIPE_LEVELS = {
    "generation": lambda t: methods.generation(t.method),
    "quantizer": lambda t: t.method,
    "width": lambda t: str(laws.width(t.effective_bits)),
    "family_generation": lambda t: None if t.population else f"{t.family} | {methods.generation(t.method)}",
    "everything": lambda t: laws.EVERYTHING,
}


def effects(
    posterior: Posterior, by: str, levels: Sequence, factors: dict[str, np.ndarray], rng: np.random.Generator | None
) -> np.ndarray:
    """Sum of all effects of a coordinate at every target's level, shape (draw, target); equal levels share draws."""
    out = np.zeros((posterior.size, len(levels)))
    if all(effect.by != by for effect in posterior.law.effects):
        return out
    drawn = {level: deviations(posterior, by, level, rng) for level in dict.fromkeys(levels)}
    for effect in posterior.law.effects:
        if effect.by == by:
            values = np.stack([drawn[level][effect.factor] for level in levels], axis=1)
            out = out + values * factors.get(effect.factor, 1.0)
    return out


def scatter(posterior: Posterior, generation: str, rng: np.random.Generator) -> np.ndarray:
    """Draws of tau of a generation; of an unseen one, that of a fitted generation picked at random per draw."""
    tau = posterior.sample["tau"]
    if generation in tau["generation"].values:
        return tau.sel(generation=generation).to_numpy()
    pick = rng.integers(tau.sizes["generation"], size=posterior.size)
    return tau.transpose("draw", "generation").to_numpy()[np.arange(posterior.size), pick]


def log_law(posterior: Posterior, targets: Sequence[Target], rng: np.random.Generator) -> np.ndarray:
    """Draws of ln QiD of the law at each target, with quantizer effects and covariates, shape (draw, target).

    No checkpoint, source or residual scatter is in it: those are what distinguishes the band `new` from `mean`.
    All targets of one new family share its draw, all recipes of one unseen quantizer share theirs.
    """
    return sum(log_law_parts(posterior, targets, rng).values(), np.zeros((posterior.size, len(targets))))


def log_law_parts(
    posterior: Posterior, targets: Sequence[Target], rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """What `log_law` is the sum of, each (draw, target); without `rng` nothing unseen deviates.

    With f the factors of the terms at the median lam and mu the population's terms:
    `family`: theta f of a fitted family, (theta - mu) f of a new one. `law`: mu f where the family is new, what lam
    adds as it leaves its median, the covariates and the coefficients under shrinkage. `phase`: covariates of
    learning-rate decay. `quantizer`: effects of generation, method and bit width.
    """
    sample, law = posterior.sample, posterior.law
    lam = sample["lam"].to_numpy()[:, None]
    data = columns(posterior, targets)
    names = {item.factor for item in (*law.terms, *law.effects)} - {"-x_P"}
    factors = {name: laws.FACTORS[name](data) for name in names}
    middle = factors | {"-x_P": -laws.bit_scale(data["effective_bits"], np.median(lam))}
    factors["-x_P"] = -laws.bit_scale(data["effective_bits"], lam)
    asked = dict.fromkeys((t.family, t.population) for t in targets)
    terms = {key: family_terms(posterior, key[0], None if key[1] else rng) for key in asked}
    base = {key: 0.0 if key[0] else family_terms(posterior, None, None) for key in asked}
    theta = np.stack([terms[t.family, t.population] for t in targets], axis=1)
    common = np.stack([base[t.family, t.population] + np.zeros_like(theta[:, 0]) for t in targets], axis=1)
    parts = {name: np.zeros(theta.shape[:2]) for name in ("family", "law", "phase", "quantizer")}
    for number, term in enumerate(law.terms):
        whole, shared = theta[:, :, number], common[:, :, number]
        parts["family"] += (whole - shared) * middle[term.factor]
        parts["law"] += shared * middle[term.factor] + whole * (factors[term.factor] - middle[term.factor])
    for covariate in law.covariates:
        beta = sample["covariate"].sel(covariate_name=covariate.name).to_numpy()[:, None]
        of = "phase" if covariate.factor.startswith("undecayed") else "law"
        parts[of] += beta * laws.factor(covariate.factor, data, 0.0)
    for by, level_of in RECIPE_LEVELS.items():
        of = "law" if by == "everything" else "quantizer"
        parts[of] += effects(posterior, by, [level_of(t) for t in targets], factors, rng)
    return parts


def spread_of(posterior: Posterior, by: str) -> np.ndarray:
    """Draws of the standard deviation of all effects of a coordinate at the level of one cell, shape (draw,)."""
    names = [effect.name for effect in posterior.law.effects if effect.by == by]
    return np.sqrt((posterior.sample["spread"].sel(effect=names) ** 2).sum("effect").to_numpy())


def nearest(posterior: Posterior, params: float, name: str) -> float:
    """Median of a coordinate over the tenth of the fitted cells with it that are nearest in ln N; NaN if none has."""
    values = posterior.cells[name].to_numpy()
    known = ~np.isnan(values)
    if not known.any():
        return np.nan
    distance = np.abs(np.log(posterior.cells["n_params_nonembedding"].to_numpy()[known] / params))
    near = np.argsort(distance, kind="stable")[: max(1, distance.size // 10)]
    return float(np.median(values[known][near]))


def nearest_headroom(posterior: Posterior, params: float) -> float:
    """Median ln(vocabulary) - loss of the fitted cells that are nearest in ln N."""
    return nearest(posterior, params, "headroom")
