"""A posterior file as flat draws, and the law evaluated with them at any target."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import xarray as xr

from bayesqid import bundled, cells, files, laws, methods
from bayesqid.errors import BadInput

SCHEMA = "bayesqid-posterior/1"
BUNDLED = "posterior.nc"
# what an answer reads of a posterior
GROUPS = ("posterior", "prior", "constant_data", "cells")
ATTRS = ("law", "model", "checks")
IDENTIFIED = 0.2


@dataclass(frozen=True)
class Target:
    """What is asked about: a model (family None: a new one), its N and D, and the recipe as the law sees it."""

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


@dataclass(frozen=True)
class Posterior:
    """Draws of one posterior file: `sample` has one dim `draw` of all chains, `tree` the rest."""

    tree: xr.DataTree
    sample: xr.Dataset
    path: str
    sha256: str
    origin: str

    @property
    def law(self) -> laws.Law:
        """The law that was fitted."""
        return laws.get(self.tree.attrs["law"])

    @property
    def checks(self) -> dict[str, bool]:
        """Named checks of the run."""
        return json.loads(self.tree.attrs["checks"])

    @property
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


def locate(path: str | None) -> tuple[Path, str]:
    """The posterior to use and its origin: the named file, else ./posterior.nc, else the bundled one."""
    if path is not None:
        return Path(path), "file"
    here = Path("posterior.nc")
    return (here, "file") if here.is_file() else (bundled.data_dir() / BUNDLED, "bundled")


def read(path: str | None = None) -> Posterior:
    """Read a posterior; `BadInput` if a named file is missing, corrupt or of another schema."""
    where, origin = locate(path)
    tree = files.open_tree(where)
    if tree.attrs.get("schema") != SCHEMA:
        found = tree.attrs.get("schema")
        raise BadInput(f"{where} has schema {found!r}, not {SCHEMA}: give a file that `bayesqid sample` wrote.")
    absent = [name for name in GROUPS if name not in tree.children] + [name for name in ATTRS if name not in tree.attrs]
    if absent:
        raise BadInput(f"{where} lacks {absent[0]}: sample it again.")
    try:
        whole = _whole(tree)
    except (KeyError, ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise BadInput(f"{where} is damaged: its law, draws or cells do not fit together; sample it again.")
    return Posterior(tree, flatten(tree["posterior"].to_dataset()), str(where), files.sha256_file(where), origin)


def _whole(tree: xr.DataTree) -> bool:
    """Whether the draws are finite numbers under the law's own labels, and the cells usable; netCDF has no checksum."""
    law, sample = laws.get(tree.attrs["law"]), tree["posterior"].to_dataset()
    cells.check(tree["cells"].to_dataset())
    labels = {"term": law.term_names, "covariate_name": [c.name for c in law.covariates],
              "effect": [e.name for e in law.effects]}  # fmt: skip
    fit = all(list(sample[dim].values) == list(names) for dim, names in labels.items())
    finite = all(np.isfinite(values.to_numpy().astype(float)).all() for values in sample.data_vars.values())
    return fit and finite and isinstance(json.loads(tree.attrs["checks"]), dict)


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


def columns(targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """Targets as the columns that `laws.factor` reads."""
    return {
        "n_params_nonembedding": np.array([t.params for t in targets], dtype=float),
        "train_tokens": np.array([t.tokens for t in targets], dtype=float),
        "effective_bits": np.array([t.effective_bits for t in targets], dtype=float),
        "per_channel": np.array([t.per_channel for t in targets]),
        "eval_dataset": np.array([t.eval_dataset for t in targets]),
        "ctx_len": np.array([t.context for t in targets], dtype=float),
        "lr_phase": np.array([t.lr_phase for t in targets]),
    }


def family_terms(posterior: Posterior, family: str | None, rng: np.random.Generator) -> np.ndarray:
    """Terms of a family at the pivot, shape (draw, term); a new family is drawn from the population.

    A new family's slopes deviate from the population's about the median centre of the fitted families, because
    that is how the fitted families' do.
    """
    sample = posterior.sample
    if family is not None:
        return sample["theta"].sel(family=family).transpose("draw", "term").to_numpy()
    mu, sd = (sample[name].transpose("draw", "term").to_numpy() for name in ("mu", "sd"))
    own = sd * rng.normal(size=mu.shape)
    if posterior.tree.attrs["model"] == "hierarchical":
        center = posterior.tree["constant_data"]
        slot = {term.factor: number for number, term in enumerate(posterior.law.terms)}
        own[:, slot["1"]] += own[:, slot["-x_N"]] * np.median(center["center_x_N"])
        own[:, slot["1"]] -= own[:, slot["x_D"]] * np.median(center["center_x_D"])
    return mu + own


def _effect(posterior: Posterior, name: str, level: str, rng: np.random.Generator) -> np.ndarray:
    """Draws of one effect at one level; an unseen level is drawn from its population."""
    effect = posterior.sample[name]
    by = next(e.by for e in posterior.law.effects if e.name == name)
    if level in effect[by].values:
        return effect.sel({by: level}).to_numpy()
    return posterior.sample["spread"].sel(effect=name).to_numpy() * rng.normal(size=posterior.size)


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
    sample, law = posterior.sample, posterior.law
    lam = sample["lam"].to_numpy()[:, None]
    data = columns(targets)
    factors = {term.factor: laws.FACTORS[term.factor](data) for term in law.terms if term.factor != "-x_P"}
    factors["-x_P"] = -laws.bit_scale(data["effective_bits"], lam)
    families = {family: family_terms(posterior, family, rng) for family in dict.fromkeys(t.family for t in targets)}
    theta = np.stack([families[t.family] for t in targets], axis=1)
    out = np.zeros(theta.shape[:2])
    for number, term in enumerate(law.terms):
        out = out + theta[:, :, number] * factors[term.factor]
    for covariate in law.covariates:
        beta = sample["covariate"].sel(covariate_name=covariate.name).to_numpy()[:, None]
        out = out + beta * laws.factor(covariate.factor, data, 0.0)
    for by, level_of in (("generation", methods.generation), ("quantizer", str)):
        for effect in (e for e in law.effects if e.by == by):
            levels = [level_of(t.method) for t in targets]
            drawn = {level: _effect(posterior, effect.name, level, rng) for level in dict.fromkeys(levels)}
            out = out + np.stack([drawn[level] for level in levels], axis=1) * factors[effect.factor]
    return out


def spread_of(posterior: Posterior, by: str) -> np.ndarray:
    """Draws of the standard deviation of all effects of a coordinate at the level of one cell, shape (draw,)."""
    names = [effect.name for effect in posterior.law.effects if effect.by == by]
    return np.sqrt((posterior.sample["spread"].sel(effect=names) ** 2).sum("effect").to_numpy())


def nearest_headroom(posterior: Posterior, params: float) -> float:
    """Median ln(vocabulary) - loss of the tenth of the fitted cells that are nearest in ln N."""
    cells = posterior.cells
    distance = np.abs(np.log(cells["n_params_nonembedding"].to_numpy() / params))
    near = np.argsort(distance, kind="stable")[: max(1, distance.size // 10)]
    return float(np.median(cells["headroom"].to_numpy()[near]))
