"""The reporting checklist of "(Mis)Fitting: A Survey of Scaling Laws" (arXiv 2502.18969), filled in from a posterior.

The items follow the headings under which the survey's authors list what papers report, in words of this page. What a
posterior file does not hold reads "not recorded".
"""

import json
from collections.abc import Callable

import numpy as np

from bayesqid.answers import identification
from bayesqid.answers.draws import Posterior
from bayesqid.report import words
from bayesqid.report.blocks import Column, Table, share, span
from bayesqid.report.tables import COUNTED

MISSING = "not recorded"


def table(posterior: Posterior) -> Table:
    """One row per item: group, item, answer."""
    rows = [{"group": group, "item": item, "answer": answer(posterior) or MISSING}
            for group, items in ITEMS.items() for item, answer in items.items()]  # fmt: skip
    columns = (
        Column("group", lambda row: row["group"], number=False),
        Column("item", lambda row: row["item"], number=False),
        Column("answer", lambda row: row["answer"], number=False),
    )
    note = (
        "After the headings of the table that the authors of “(Mis)Fitting: A Survey of Scaling Laws” (arXiv "
        "2502.18969) published with it, in our words; filled in from the posterior file alone."
    )
    return Table("checklist", "Reporting checklist for scaling laws", columns, rows, note, grouped=True)


def _missing(posterior: Posterior) -> str:
    return MISSING


def _engine(posterior: Posterior) -> dict:
    return json.loads(posterior.tree.attrs.get("engine", "{}"))


def _distinct(posterior: Posterior, name: str) -> np.ndarray:
    return np.unique(posterior.cells[name].to_numpy().astype(str))


def _range(posterior: Posterior, name: str, show: Callable = COUNTED) -> str:
    values = posterior.cells[name].to_numpy()
    known = values[np.isfinite(values)]
    return f"{show(known.min())} to {show(known.max())}" if known.size else ""


def _counts(posterior: Posterior, name: str) -> str:
    values, counts = np.unique(posterior.cells[name].to_numpy().astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{values[i] or 'not named'} ({counts[i]:,})" for i in order)


def _checkpoints(posterior: Posterior) -> np.ndarray:
    """Index of one cell of every checkpoint."""
    return np.unique(posterior.cells["checkpoint"].to_numpy().astype(str), return_index=True)[1]


def code(posterior: Posterior) -> str:
    """Which program analysed the data and how it was called."""
    made = json.loads(posterior.tree.attrs.get("versions", "{}"))
    command = posterior.tree.attrs.get("command")
    version = f"bayesqid {made['bayesqid']}" if "bayesqid" in made else "bayesqid, version not recorded"
    return version + (f"; {command}" if command else "; command not recorded")


def values(posterior: Posterior) -> str:
    """Where the measured values are."""
    return (f"all {posterior.cells.sizes['cell']:,} fitted cells stand in the posterior file (SHA-256 "
            f"{posterior.sha256}); the predicted ones in data/predictive.csv of this report")  # fmt: skip


def variables(posterior: Posterior) -> str:
    """What goes into the law, in which units."""
    names = {"-x_N": "N, non-embedding parameters", "x_D": "D, training tokens", "-x_P": "P, effective bits per weight",
             "ln V": "V, vocabulary size", "ln loss": "loss before quantization, nats per token"}  # fmt: skip
    used = {item.factor for item in (*posterior.law.terms, *posterior.law.covariates)}
    found = [name for factor, name in names.items() if any(factor.lstrip("-") in one for one in used)]
    return "QiD, nats per token (loss after less loss before quantization); " + "; ".join(found)


def coefficients(posterior: Posterior) -> str:
    """How many coefficients the law has, of which kinds."""
    law, sample = posterior.law, posterior.sample
    lam = 1 if isinstance(law.lam, tuple) else 0
    levels = sum(sample.sizes[effect.by] for effect in law.effects if effect.by in sample.sizes)
    return (
        f"{len(law.terms)} terms{' and the exponent of the bit scale' if lam else ''}, each term with a value for each "
        f"of {len(posterior.families)} families; {len(law.covariates)} covariates; {len(law.effects)} kinds of effects "
        f"with {levels} levels; {sample.sizes['generation']} scatters"
    )


def runs(posterior: Posterior) -> str:
    """How many models and checkpoints."""
    models, checkpoints = len(_distinct(posterior, "model")), len(_distinct(posterior, "checkpoint"))
    return f"{models} models of {len(posterior.families)} families, {checkpoints} checkpoints; by cells: " + _counts(
        posterior, "family")  # fmt: skip


def tokenizer(posterior: Posterior) -> str:
    """Range of the vocabularies."""
    found = _range(posterior, "vocab_size", "{:,.0f}".format)
    return f"vocabularies of {found}; else {MISSING}" if found else ""


def ratio(posterior: Posterior) -> str:
    """Tokens per parameter that the data cover."""
    cells = posterior.cells
    found = cells["train_tokens"].to_numpy() / cells["n_params_nonembedding"].to_numpy()
    known = found[np.isfinite(found)]
    return span(known.min(), known.max()) if known.size else ""


def phases(posterior: Posterior) -> str:
    """Learning-rate phases of the checkpoints, and whether intermediate ones are among them."""
    cells = posterior.cells.isel(cell=_checkpoints(posterior))
    names, counts = np.unique(cells["lr_phase"].to_numpy().astype(str), return_counts=True)
    several = np.unique(cells["model"].to_numpy().astype(str), return_counts=True)[1]
    return (", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
            + f"; {int((several > 1).sum())} models have more than one checkpoint")  # fmt: skip


def points(posterior: Posterior) -> str:
    """How many cells, measured and diverged."""
    gone = int(posterior.cells["censored"].sum())
    return f"{posterior.cells.sizes['cell']:,} cells, {gone:,} of them diverged (only QiD above ln 10 is known)"


def quantizers(posterior: Posterior) -> str:
    """How many quantizers, in which generations and widths."""
    return (f"{len(_distinct(posterior, 'quantizer'))} quantizers; generations {_counts(posterior, 'generation')}; "
            f"{_range(posterior, 'effective_bits', lambda x: f'{x:.3g}')} effective bits")  # fmt: skip


def text(posterior: Posterior) -> str:
    """On which text, with which context QiD was evaluated."""
    return f"{_counts(posterior, 'eval_dataset')}; context {_range(posterior, 'ctx_len', lambda x: f'{x:g}')} tokens"


def errors(posterior: Posterior) -> str:
    """The standard errors of the cells."""
    return f"standard error of each QiD {_range(posterior, 'qid_se', lambda x: f'{x:.2g}')} nats"


def left_out(posterior: Posterior) -> str:
    """How many rows were excluded."""
    counts = json.loads(posterior.cells.attrs.get("excluded", "{}"))
    total = sum(sum(families.values()) for families in counts.values())
    return f"{total:,} rows, for {len(counts)} reasons: table “Rows left out before the fit”" if total else "no row"


def objective(posterior: Posterior) -> str:
    """What is fitted."""
    return (
        f"posterior density: ln QiD scatters around the law ({posterior.law.tails} tails, one scale per generation of "
        "quantizers), QiD is bounded by the loss of a uniform guess, its evaluation error is normal; diverged cells "
        "are censored; priors below"
    )


def algorithm(posterior: Posterior) -> str:
    """How it is fitted."""
    engine = _engine(posterior)
    last = (engine.get("tries") or [{}])[-1]
    if engine.get("engine") == "nuts":
        parts = ["NUTS", *([f"backend {engine['backend']}"] if "backend" in engine else [])]
        parts += [f"target acceptance {last['target_accept']:g}"] if "target_accept" in last else []
        parts += [f"{last['draws']:,} draws a chain"] if "draws" in last else []
        return ", ".join([*parts, f"tries {len(engine['tries'])}"])
    if engine.get("engine") == "laplace":
        return f"Laplace approximation with importance resampling, {engine.get('proposals', 0):,} proposals"
    return engine.get("engine", "")


def seed(posterior: Posterior) -> str:
    """The seed."""
    found = posterior.tree.attrs.get("seed")
    return "" if found is None else f"seed {found}"


def uncertainty(posterior: Posterior) -> str:
    """How uncertainty is told."""
    return f"equal-tailed credible intervals of {posterior.size:,} posterior draws; no bootstrap"


def converged(posterior: Posterior) -> str:
    """What the checks of the run say."""
    failed = words.failed_checks(posterior)
    return f"FAILED: {', '.join(failed)}" if failed else f"all passed: {', '.join(posterior.checks)}"


def validated(posterior: Posterior) -> str:
    """How well the law predicts cells that were left out."""
    found = json.loads(posterior.tree.attrs.get("diagnosis", "{}"))
    row = next((row for row in found.get("groups", []) if row["by"] == "all"), {})
    if row.get("loo_coverage90") is None:
        return ""
    return (f"each cell predicted from all others (importance sampling): {share(row['loo_coverage50'])} inside 50 % "
            f"and {share(row['loo_coverage90'])} inside 90 % equal-tailed intervals; whole models or families left "
            f"out: {MISSING}")  # fmt: skip


def told(posterior: Posterior) -> str:
    """Whether the tokens exponent is identified."""
    return "; ".join(words.tokens_clause(posterior, identification.families(posterior)).splitlines())


ITEMS: dict[str, dict[str, Callable[[Posterior], str]]] = {
    "What is available": {
        "code that trained the models": _missing,
        "code of the analysis": code,
        "checkpoints": _missing,
        "measured values": values,
    },
    "Hypothesis": {
        "form of the law": lambda p: f"{p.law.formula}; model {p.tree.attrs['model']}",
        "purpose": lambda p: "predicting what quantization costs models, tokens and recipes that nobody has measured",
        "variables and units": variables,
        "coefficients": coefficients,
        "number of laws fitted": lambda p: "1 in this file; others tried: " + MISSING,
    },
    "Training of the models": {
        "models": runs,
        "range of parameters": lambda p: _range(p, "n_params_nonembedding"),
        "range of training tokens": lambda p: _range(p, "train_tokens"),
        "tokens per parameter": ratio,
        "training compute": _missing,
        "how parameters are counted": lambda p: "without embeddings",
        "how tokens are counted": lambda p: "as the data give them; bounds and repeated data: " + MISSING,
        "training data": _missing,
        "tokenizer": tokenizer,
        "hyperparameters of training": _missing,
        "learning-rate phase of the checkpoints": phases,
    },
    "Data": {
        "points": points,
        "metric": lambda p: "QiD: loss after quantization less loss before, nats per token, smaller is better",
        "evaluation text": text,
        "quantizers": quantizers,
        "evaluation error": errors,
        "change of the metric before fitting": lambda p: "none; the law is for ln QiD, the error for QiD itself",
        "left out": left_out,
    },
    "Fit": {
        "objective": objective,
        "priors": lambda p: "section “Priors, covariates and effects”",
        "algorithm": algorithm,
        "initial values": _missing,
        "seed": seed,
        "convergence": converged,
        "uncertainty": uncertainty,
        "validation": validated,
        "sensitivity": lambda p: "section “Sensitivity to the priors”",
        "identification of the tokens exponent": told,
    },
}  # fmt: skip
