"""Tokens or learning-rate decay: the posterior of both effects, and what tells them apart."""

import json
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr

from bayesqid import suite as suites
from bayesqid.answers import asking, draws, identification, information, pairs, record, separation, wording
from bayesqid.answers.draws import Posterior
from bayesqid.answers.separation import POPULATION, Coefficients, Direction, Points
from bayesqid.errors import BadInput

PARAMS = 1e9
# at |r| = 0.9 the interval of either effect would be 1 / sqrt(1 - r^2) = 2.3 times narrower if the other were known
CORRELATED = 0.9
VERDICTS = {
    "separated": "separated: these data tell the effect of tokens from that of learning-rate decay",
    "not identified": "not identified: these data do not tell the effect of tokens from that of learning-rate decay",
    "tokens only": "tokens only: the fit assumed that learning-rate decay does nothing, so it cannot say which it is",
    "phase only": "phase only: the fit assumed that tokens do nothing, so it cannot say which it is",
    "checks failed": wording.VERDICTS["checks failed"],
} | pairs.VERDICTS
ASSUMED = {"tokens": "tokens only", "phase": "phase only"}
KINDS = ("tokens", "decay")
SHOWN = {"lower90": 0.05, "median": 0.5, "upper90": 0.95}
TABLES = {"effect": "effects", "fitted_family": "fitted", "suite": "suites"}
WRITTEN = ("findings", "collinearity", "tokens_within_share", "pairs")


def parse_tokens(text: str) -> tuple[float, float]:
    """Read `LOW:HIGH`, e.g. `1e11:1e13`; `BadInput` says what is wrong with it."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise BadInput(f"--tokens {text!r} is malformed: write LOW:HIGH, e.g. --tokens 1e11:1e13.") from None


def drivers(
    posterior: Posterior, tokens: tuple[float, float] | None = None, family: str | None = None,
    suite: Sequence[str] | None = None,
) -> xr.Dataset:  # fmt: skip
    """What tokens and what learning-rate decay do to QiD, by the posterior, and whether its data tell the two apart.

    Two log factors of the law at 1e9 parameters, linear in its coefficients, between the token counts given or the
    fewest and the most that were fitted:

        tokens  ln QiD(high, decayed) - ln QiD(low, decayed)      = beta ln(high / low) unless the law bends
        decay   ln QiD(high, decayed) - ln QiD(high, undecayed)   = -(undecayed + undecayed_slope x_D(high))

    Dim `effect`: equal-tailed quantiles of the factor exp(.), prior and posterior; tokens per tenfold, of the
    population and of families with a contraction of at least 0.2; decay at both token counts. `contraction` is of the
    log factor, `own` of a family's deviation from the population. Dims `fitted_family` and `suite`: contrasts
    (`separation.contrasts`), for suites (default: all bundled) also what measuring them would leave
    (`separation.after_measuring`). `correlation_*`: Pearson correlation over draws of the two log factors, and of beta
    with the coefficients of decay.

    Verdict: not identified if the log factor of tokens (of `family`, else of the population) or of decay has a
    contraction under 0.2, if the fitted checkpoints do not vary it (tokens: by 0.1 in ln D beyond what size and phase
    explain), or if the two correlate beyond 0.9. A posterior of `--drivers tokens` or `phase` assumes the
    answer. Matched pairs (`pairs.beside_the_law`) overrule "separated" where they contradict the law. `BadInput`
    for unbelievable tokens, unknown families and suites, independent families if none is named.
    """
    low, high = (asking.positive("tokens", value) for value in (_range(posterior) if tokens is None else tokens))
    if low >= high:
        raise BadInput(f"--tokens runs from {low:g} to {high:g}: give two rising numbers, e.g. 1e11:1e13.")
    named = POPULATION if family is None else draws.require_family(posterior, family)
    if named == POPULATION and posterior.tree.attrs["model"] == "independent":
        raise BadInput("This posterior has independent families, so there is no population: name one with --family.")
    loaded = {name: separation.of_suite(suites.load(name)) for name in dict.fromkeys(suite or suites.names())}
    prior = posterior.tree["prior"].to_dataset()[["mu", "theta", "covariate"]]
    before, after = separation.coefficients(draws.flatten(prior)), separation.coefficients(posterior.sample)

    rows = effects(posterior, before, after, low, high)
    along = separation.directions(posterior, PARAMS, low, high)
    learned = {kind: _contraction(before.log_factor(along[kind], named), after.log_factor(along[kind], named))
               for kind in KINDS if _acts(along[kind])}  # fmt: skip
    both = correlations(posterior, after, along, named)
    points = separation.of_cells(posterior.cells)
    fitted = [{"family": name} | separation.contrasts(points.at(points.family == name)) for name in posterior.families]
    kept, share = separation.inflation(points), _within(posterior)
    told, reasons = _verdict(posterior, learned, kept, both["factors"])
    told = pairs.overruled(told, beside := pairs.beside_the_law(posterior, after, PARAMS, "decay" in learned))
    tables = {"effect": rows, "fitted_family": fitted, "suite": [
        {"name": name} | _suite(posterior, before, seen, low, high) for name, seen in loaded.items()]}  # fmt: skip
    attrs = record.attrs(posterior, told, {"params": "1e9 non-embedding parameters", "decay": "to the end of it"})
    attrs |= {
        "drivers": posterior.law.drivers, "family": named, "tokens_low": low, "tokens_high": high,
        "correlation_limit": CORRELATED, "collinearity": json.dumps(kept), "tokens_within_share": json.dumps(share),
        "findings": json.dumps([*reasons, *_design(points, fitted, kept, share)]),
    } | ({} if beside is None else {"pairs": json.dumps(beside)})  # fmt: skip
    data = {f"{dim}_{key}": (dim, _column([row[key] for row in table]))
            for dim, table in tables.items() if table for key in table[0]}  # fmt: skip
    data |= {f"correlation_{name}": ((), math.nan if value is None else value) for name, value in both.items()}
    return xr.Dataset(data, attrs=attrs)


def _range(posterior: Posterior) -> tuple[float, float]:
    """Fewest and most training tokens that were fitted, or the decade around them where they are all the same."""
    known = posterior.cells["train_tokens"].to_numpy()
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    return (low, high) if high > separation.NEAR * low else (low / math.sqrt(10), low * math.sqrt(10))


def _column(values: list) -> np.ndarray:
    text = any(isinstance(value, str) for value in values)
    return np.array([math.nan if value is None else value for value in values], dtype=object if text else None)


def effects(posterior: Posterior, before: Coefficients, after: Coefficients, low: float, high: float) -> list[dict]:
    """One row per effect that the law has: kind, family, tokens, quantiles before and after, contractions."""
    along = separation.directions(posterior, PARAMS, low, high)
    model, rows = posterior.tree.attrs["model"], []
    if _acts(along["tokens"]):
        per_ten = (along["tokens"][0] / math.log10(high / low), along["tokens"][1] / math.log10(high / low))
        rows = [_row("tokens", high, per_ten, before, after, name, model == "hierarchical")
                for name in (POPULATION, *posterior.families)]  # fmt: skip
        whole, families = rows[:1], [row for row in rows[1:] if row["contraction"] >= draws.IDENTIFIED]
        rows = whole if model == "pooled" else families if model == "independent" else [*whole, *families]
    if _acts(along["decay"]):
        at = {count: separation.directions(posterior, PARAMS, low, count)["decay"] for count in (low, high)}
        rows += [_row("decay", count, one, before, after, POPULATION, False) for count, one in at.items()]
    return rows


def _acts(direction: Direction) -> bool:
    return any(bool(np.abs(part).max(initial=0.0) > 0) for part in direction)


def _row(
    kind: str, tokens: float, direction: Direction, before: Coefficients, after: Coefficients, family: str, pools: bool
) -> dict:
    was, now = before.log_factor(direction, family), after.log_factor(direction, family)
    own = math.nan
    if pools and family != POPULATION:
        own = _contraction(was - before.log_factor(direction), now - after.log_factor(direction))
    return (
        {"kind": kind, "family": family, "tokens": tokens, "contraction": _contraction(was, now), "own": own}
        | {f"prior_{name}": math.exp(np.quantile(was, q)) for name, q in SHOWN.items()}
        | {name: math.exp(np.quantile(now, q)) for name, q in SHOWN.items()}
    )


def _contraction(before: np.ndarray, after: np.ndarray) -> float:
    return 1 - float(after.var() / before.var()) if before.var() > separation.NOTHING else 0.0


def correlations(
    posterior: Posterior, after: Coefficients, along: dict[str, Direction], family: str
) -> dict[str, float | None]:
    """Pearson correlation over draws of the two log factors, and of beta with each coefficient of decay."""
    out = {"factors": _pearson(*(after.log_factor(along[kind], family) for kind in KINDS))}
    name = identification.tokens_term(posterior)
    for number, covariate in enumerate(posterior.law.covariates):
        if name is not None and covariate.factor.startswith("undecayed"):
            beta = after.terms[family][:, posterior.law.term_names.index(name)]
            out[f"beta_{covariate.name}"] = _pearson(beta, after.covariates[:, number])
    return out


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else None


def _verdict(posterior: Posterior, learned: dict[str, float], kept: dict, both: float | None) -> tuple[str, list[str]]:
    # a level known at one D or phase narrows the joint prior too, which is no evidence about either effect
    varies = {"tokens": kept["tokens"]["left_between"] >= identification.VARIES, "decay": kept["decay"]["varies"]}
    reasons = [f"The effect of {kind} is the prior's: its contraction is {value:.2f}, under {draws.IDENTIFIED}."
               for kind, value in learned.items() if value < draws.IDENTIFIED]  # fmt: skip
    reasons += [f"Nothing tells of {kind}: the fitted checkpoints do not vary it apart from size and the other."
                for kind, value in learned.items() if value >= draws.IDENTIFIED and not varies[kind]]  # fmt: skip
    if both is not None and abs(both) > CORRELATED:
        reasons.append(f"The two effects correlate at {both:.2f}, beyond {CORRELATED}: the data tell their sum.")
    told = ASSUMED.get(posterior.law.drivers, "not identified" if reasons else "separated")
    return (told if all(posterior.checks.values()) else "checks failed"), reasons


def _within(posterior: Posterior) -> float | None:
    name = identification.tokens_term(posterior)
    return None if name is None or len(posterior.families) < 2 else information.of_term(posterior, name)["within_share"]


def _design(points: Points, fitted: list[dict], kept: dict, share: float | None) -> list[str]:
    """What the fitted checkpoints can and cannot contrast, in words that follow from the counts."""
    count, undecayed = len(points.tokens), int(points.undecayed.sum())
    spans, pairs = (sum(row[key] for row in fitted) for key in ("tokens_spans", "phase_pairs"))
    out = [f"{undecayed or 'None'} of the {count} fitted checkpoints {_stand(undecayed)} before the end of decay."]
    if undecayed and len(points.tokens) > undecayed:
        out.append(f"Of those after it {pairs or 'none'} {_stand(pairs)} beside one of the same family and size with a "
                   "full learning rate at similar tokens.")  # fmt: skip
    out.append(f"Tokens vary at one size and phase {spans} times." if spans else
               "In no family do tokens vary at one size and phase.")  # fmt: skip
    if share is not None:
        out.append(f"Of the information about the population's tokens exponent {share:.0%} lies within families; "
                   "between them tokens come with another tokenizer, architecture, data and year.")  # fmt: skip
    for kind, others, what in (("tokens", "phases", "ln D"), ("decay", "tokens", "the phase")):
        if kept[kind]["vif"] is not None:
            out.append(f"Families, sizes and {others} leave {kept[kind]['left_sd']:.2g} (root mean square) of {what} "
                       f"unexplained: variance inflation factor {kept[kind]['vif']:.3g}.")  # fmt: skip
    return out


def _stand(count: int) -> str:
    return "stand" if count > 1 else "stands"


def _suite(posterior: Posterior, before: Coefficients, points: Points, low: float, high: float) -> dict:
    """Contrasts of one suite, and the contractions and correlation now and once it is measured."""
    found = separation.after_measuring(posterior, points, PARAMS, low, high)
    along, row = separation.directions(posterior, PARAMS, low, high), separation.contrasts(points)
    row |= {"family": found["family"], "used": found["used"]}
    # a family that is not fitted has the prior of any that is
    like = found["family"] if found["family"] in posterior.families else posterior.families[0]
    prior = {kind: float(before.log_factor(along[kind], like).var()) for kind in KINDS}
    for when in ("before", "after"):
        row |= {f"{kind}_contraction_{when}": 1 - found[when][kind] / prior[kind]
                if prior[kind] > separation.NOTHING else None for kind in KINDS}  # fmt: skip
        row[f"correlation_{when}"] = found[when]["correlation"]
    for kind in KINDS:
        now = found["before"][kind]
        row[f"{kind}_variance_left"] = found["after"][kind] / now if now > separation.NOTHING else None
    told = all((row[f"{kind}_contraction_after"] or 0.0) >= draws.IDENTIFIED for kind in KINDS)
    told = told and abs(row["correlation_after"] or 0.0) <= CORRELATED
    return row | {"parts": "no" if not told else "yes" if row["phase_pairs"] else "by the law"}


def as_json(found: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract: attributes, `correlation`, `effects`, `fitted`, `suites`."""
    told = record.decoded({str(name): value for name, value in found.attrs.items()})
    told |= {name: json.loads(told[name]) for name in WRITTEN if name in told}
    values = {str(name): found[name] for name in found}
    told["correlation"] = {name.removeprefix("correlation_"): _plain(value.item())
                           for name, value in values.items() if value.dims == ()}  # fmt: skip
    for dim, table in TABLES.items():
        own = {name.removeprefix(f"{dim}_"): value.to_numpy() for name, value in values.items() if value.dims == (dim,)}
        told[table] = [{key: _plain(column[i]) for key, column in own.items()} for i in range(found.sizes.get(dim, 0))]
    return told


def _plain(value):
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(found: xr.Dataset) -> str:
    """The answer for a terminal of 80 columns, verdict first."""
    told = as_json(found)
    low, high = (wording.count_text(told[name]) for name in ("tokens_low", "tokens_high"))
    lines = [*wording.opening(told, VERDICTS), *textwrap.wrap(
        f"Factors by which QiD multiplies, medians and equal-tailed 90 % intervals; law {told['law']}, model "
        f"{told['model']}.", 80), "", f"{'':<24}{'prior':>21}{'posterior':>22}{'contr.':>7}{'own':>6}"]  # fmt: skip
    for row in told["effects"]:
        label = (f"10 x tokens, {row['family']}" if row["kind"] == "tokens" else
                 f"decay at {wording.count_text(row['tokens'])} tokens")  # fmt: skip
        spans = [f"{_two(row[k + 'median'])} ({_two(row[k + 'lower90'])} - {_two(row[k + 'upper90'])})"
                 for k in ("prior_", "")]  # fmt: skip
        lines.append(f"{label[:23]:<24}{spans[0]:>21} {spans[1]:>21}{_reads(row['contraction']):>7}"
                     f"{'' if row['own'] is None else _reads(row['own']):>6}".rstrip())  # fmt: skip
    if (both := told["correlation"]["factors"]) is not None:
        lines += ["", *textwrap.wrap(f"Correlation of the log factors of tokens, {low} to {high}, and of decay at "
                                     f"{high}: {both:+.2f} ({told['family']}).", 80)]  # fmt: skip
    lines += [*(["", *pairs.lines(told["pairs"])] if "pairs" in told else []), "", "What these data hold:"]
    for sentence in told["findings"]:
        lines += textwrap.wrap(sentence, 80, initial_indent="- ", subsequent_indent="  ")
    heads = f"{'':<14}{'checkpoints':>12}{'sizes':>7}{'tokens':>8}{'spans':>7}{'pairs':>7}{'replicates':>12}"
    lines += ["", heads, *(_counts(row["family"], row) for row in told["fitted"])]
    lines += ["", "What measuring a suite would add:", "", heads]
    lines += [*(_counts(row["name"], row) for row in told["suites"]), "",
              f"{'contraction of':<14}{'tokens':>16}{'decay':>17}{'correlation':>18}{'parts them':>13}",
              *(_added(row) for row in told["suites"])]  # fmt: skip
    lines += ["", *textwrap.wrap(
        f"spans: sizes and phases whose tokens span over {separation.NEAR:g}x; pairs: after and before decay at one "
        "size and similar tokens; replicates: another run at the same point; own: contraction of a family's deviation; "
        "by the law: without a pair, only if its line in ln D and its likeness of families hold. One effect of decay "
        "holds for all families and sizes, as in the law.", 80)]  # fmt: skip
    return "\n".join(lines)


def _two(value: float) -> str:
    return f"{value:.2g}" if value < 99.5 else wording.short(value)


def _reads(contraction: float | None) -> str:
    return "-" if contraction is None else f"{contraction:.2f}" if contraction >= draws.IDENTIFIED else "prior"


def _counts(name: str, row: dict) -> str:
    return (f"{name[:13]:<14}{row['checkpoints']:>12}{row['sizes']:>7}{row['tokens_counts']:>8}{row['tokens_spans']:>7}"
            f"{row['phase_pairs']:>7}{row['replicates']:>12}")  # fmt: skip


def _added(row: dict) -> str:
    moves = [" -> ".join(_reads(row[f"{kind}_contraction_{when}"]) for when in ("before", "after")) for kind in KINDS]
    pair = [row[f"correlation_{when}"] for when in ("before", "after")]
    moved = "-" if None in pair else f"{pair[0]:+.2f} -> {pair[1]:+.2f}"
    return f"{row['name'][:13]:<14}{moves[0]:>16}{moves[1]:>17}{moved:>18}{row['parts']:>13}"
