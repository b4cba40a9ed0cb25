"""Fraction: how much of a model may be quantized before its perplexity rises by a tolerated per cent."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from bayesqid import likelihood, recipe
from bayesqid import quantized_share as part
from bayesqid.answers import asking, candidates, draws, mixing, project, record, wording
from bayesqid.answers.draws import Posterior, Target
from bayesqid.errors import BadInput

INCREASES, PARAMS = (5.0, 10.0, 20.0), (1e9, 7e9, 70e9)
BITS, BLOCK = 4.0, 32
# per cent: ten-fold perplexity, at which a model counts as diverged
MOST_INCREASE = 900.0
MOST_BLOCK, MOST_ROWS = 1_000_000, 1000
BANDS = ("mean", "new")
VERDICTS = wording.VERDICTS | {
    "extrapolation": "extrapolation: sizes, tokens, bits or shares lie outside the range of the data, believe the law "
    "before you believe the interval",
    "not identified": "not identified: the data do not inform how QiD falls with the quantized share, the interval is "
    "the prior's",
}


def numbers(values: str | float | Sequence[float] | None, name: str, default: Sequence[float]) -> tuple[float, ...]:
    """Numbers of an option, written with commas or given as such, each once and in their order."""
    if values is None:
        return tuple(default)
    several = values.split(",") if isinstance(values, str) else values if isinstance(values, Sequence) else (values,)
    try:
        found = tuple(dict.fromkeys(float(value) for value in several))
    except (ValueError, TypeError):
        raise BadInput(f"--{name} is {values!r:.60}: give numbers with commas between them.") from None
    if not found:
        raise BadInput(f"--{name} is empty: give at least one number.")
    return found


def granularities(asked: str | None) -> tuple[str, ...]:
    """The granularities asked for, both where none is; `l` and `m` are short for layer and matmul."""
    if asked is None:
        return tuple(part.GRANULARITIES)
    if asked.casefold() not in ("l", "m", *part.GRANULARITIES):
        raise BadInput(f"--granularity is {asked!r:.40}: give l (whole layers) or m (single matrices).")
    return tuple(name for name in part.GRANULARITIES if name[0] == asked.casefold()[0])


def checked(values: Sequence[float], name: str, low: float, high: float, what: str) -> tuple[float, ...]:
    """The same numbers if each is above `low` and up to `high`, else `BadInput`."""
    for value in values:
        if not (math.isfinite(value) and low < value <= high):
            raise BadInput(f"--{name} is {value:g}: give {what} above {low:g} and up to {high:g}.")
    return tuple(values)


def fraction(
    posterior: Posterior,
    increase: str | float | Sequence[float] | None = None,
    params: str | float | Sequence[float] | None = None,
    known: Mapping | None = None,
    tokens: float | None = None,
    bits: float = BITS,
    block: float = BLOCK,
    granularity: str | None = None,
    at: str | float | Sequence[float] | None = None,
    method: str | None = None,
    assignment: str | None = None,
    family: str | None = None,
    new_family: bool = False,
    band: str = "new",
    lr_phase: str = "annealed",
    seed: int = project.SEED,
) -> xr.Dataset:
    """Largest quantized share Qr at a rise of perplexity in per cent, by granularity, size and rise: dim `target`.

    With the average bits per weight that it makes, `p_all`, the probability that all may be quantized, and `law_1`, the
    paper's. Shares `at` instead ask for the rise: dim `asked`. Attribute `claims`: `mixing.claims`. Defaults: 5, 10 and
    20 %; 1B, 7B and 70B; the median tokens of the fitted cells; 4 bits in blocks of 32; both granularities; the
    commonest fitted method and assignment; a new family. Quantiles are equal-tailed. `BadInput` for a posterior of
    another law and for what is no rise, size, block, share, method or family.
    """
    if not posterior.law.mixed:
        raise BadInput(f"This posterior's law {posterior.law.name} takes all weights as quantized: give one from "
                       "`bayesqid sample --law mixed`.")  # fmt: skip
    if band not in BANDS:
        raise BadInput(f"There is no band {band!r} here: choose one of {', '.join(BANDS)}.")
    if params is not None and known is not None:
        raise BadInput("--params and --model-name both set the size: give one of them.")
    rises = checked(numbers(increase, "increase", INCREASES), "increase", 0.0, MOST_INCREASE, "per cent")
    wanted = [known["n_params_nonembedding"]] if known else numbers(params, "params", PARAMS)
    sizes = tuple(asking.positive("params", size) for size in wanted)
    shares = tuple(part.checked(share, "--at") for share in numbers(at, "at", ())) if at is not None else ()
    kinds = granularities(granularity)
    if len(kinds) * len(sizes) * max(len(rises), len(shares)) > MOST_ROWS:
        raise BadInput(f"More than {MOST_ROWS} answers are asked for: give fewer sizes or numbers.")
    checked((bits,), "bits", 0.0, part.FULL_BITS, "bits of the low-precision format")
    if block != int(checked((block,), "block", 0.0, MOST_BLOCK, "weights that share a scale")[0]):
        raise BadInput(f"--block is {block:g}: give a whole number of weights.")
    chosen = mixing.usual(posterior, "assignment", part.ASSIGNMENTS[0]) if assignment is None else assignment
    if chosen not in part.ASSIGNMENTS and assignment is not None:
        raise BadInput(f"--assignment is {chosen!r:.40}: choose one of {', '.join(part.ASSIGNMENTS)}.")
    key = draws.require_method(posterior, method or mixing.usual(posterior, "quantizer", "rtn"))
    scale_bits = recipe.FORMATS["mxint" if "-mx" in key else "int"].scale_bits
    named = asking.family_asked(posterior, family, new_family, False)
    if known and family is None and not new_family and known["family"] in posterior.families:
        named = known["family"]
    count = draws.typical(posterior, named, key).tokens if tokens is None else asking.positive("tokens", tokens)
    targets = candidates.filled(posterior, [
        Target(named, size, count, bits + scale_bits / block, key, bits=bits, lr_phase=asking.phase_asked(lr_phase))
        for size in sizes
    ])  # fmt: skip
    effective = targets[0].effective_bits
    headroom = np.array([t.headroom for t in targets])
    found = {kind: mixing.line(posterior, targets, kind, chosen, block, band, seed) for kind in kinds}
    beyond = project.beyond(posterior, targets)
    values, coords = _largest(found, sizes, rises, headroom, effective, mixing.published()["law1"]["rows"])
    reach = _reach(posterior)
    repeats = len(kinds), len(rises)
    # shares are held against those that the data have; sizes, tokens and bits as everywhere
    middle = zip(coords["granularity"], values["median"], strict=True)
    values["q_outside"] = np.array([not reach[kind][0] <= q <= reach[kind][1] for kind, q in middle])
    values |= {name: np.tile(np.repeat(value, repeats[1]), repeats[0]) for name, value in beyond.items()}
    told = mixing.claims(posterior, bits, scale_bits, chosen)
    ratios = np.maximum(values["n_ratio"], values["d_ratio"])
    outside = bool(((ratios > 1) | values["p_outside"] | values["q_outside"]).any())
    attrs = record.attrs(posterior, _verdict(posterior, told, outside), _assumptions(targets, chosen, block)) | {
        "band": band, "excluded": posterior.cells.attrs["excluded"], "claims": json.dumps(told),
        "p_no_gain": json.dumps({kind: float((k <= 0).mean()) for kind, (_, k) in found.items()}),
    }  # fmt: skip
    data = {name: ("target", value) for name, value in values.items()}
    labels = {name: ("target", value) for name, value in coords.items()}
    if shares:
        more, where = _rises(found, sizes, shares, headroom)
        data |= {f"rise_{name}": ("asked", value) for name, value in more.items()}
        labels |= {f"asked_{name}": ("asked", value) for name, value in where.items()}
    labels |= {"family": targets[0].of, "method": key, "effective_bits": effective}
    return xr.Dataset(data, labels, attrs)


def _largest(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], sizes: Sequence[float], rises: Sequence[float],
    headroom: np.ndarray, effective: float, printed: Sequence[Mapping[str, float]],
) -> tuple[dict[str, np.ndarray], dict[str, list]]:  # fmt: skip
    """Values and coordinates by granularity, size and rise, each (target,)."""
    limit = np.log1p(np.array(rises) / 100)
    top = headroom[:, None]
    with np.errstate(divide="ignore"):
        level = np.log(likelihood.unsaturate(np.minimum(limit, top), top))
    q = np.concatenate([mixing.largest(a[..., None], k[..., None], level).reshape(len(a), -1)
                        for a, k in found.values()], axis=1)  # fmt: skip
    rows = [(kind, size, rise) for kind in found for size in sizes for rise in rises]
    values = project.quantiles(q, "") | {"p_all": (q == 1).mean(axis=0)}
    # more of the weights at few bits is fewer bits: the quantiles of the average bits run the other way
    values |= {f"bits_{name}": part.average_bits(np.quantile(q, 1 - at, axis=0), effective)
               for name, at in project.quantile_names("").items()}  # fmt: skip
    values["law_1"] = np.array([mixing.by_law_1(size, rise / 100, printed) if kind == "matmul" else math.nan
                                for kind, size, rise in rows])  # fmt: skip
    kind, size, rise = (list(column) for column in zip(*rows, strict=True))
    return values, {"granularity": kind, "params": size, "increase": rise}


def _rises(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], sizes: Sequence[float], shares: Sequence[float],
    headroom: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, list]]:  # fmt: skip
    """Quantiles of the rise of perplexity in per cent by granularity, size and share; without any quantized, zero."""
    some = np.array(shares) > 0
    power = np.log(np.where(some, shares, 1.0))
    raw = [np.exp(np.minimum(a[..., None] + k[..., None] * power, 50.0)) * some for a, k in found.values()]
    seen = [100 * np.expm1(likelihood.saturate(value, headroom[:, None])).reshape(len(value), -1) for value in raw]
    rows = [(kind, size, share) for kind in found for size in sizes for share in shares]
    kind, size, share = (list(column) for column in zip(*rows, strict=True))
    return project.quantiles(np.concatenate(seen, axis=1), ""), {"granularity": kind, "params": size, "share": share}


def _reach(posterior: Posterior) -> dict[str, tuple[float, float]]:
    """Least and largest share that the fitted cells have, by granularity; plain recipes belong to both."""
    cells = posterior.cells
    columns = {str(name): cells[name].to_numpy() for name in cells.coords}
    share, kind = part.column(columns, "quantized_fraction"), part.column(columns, "granularity").astype(str)
    own = {name: share[(kind == name) | (share == 1)] for name in part.GRANULARITIES}
    return {name: (float(values.min()), float(values.max())) if values.size else (math.nan, math.nan)
            for name, values in own.items()}  # fmt: skip


def _verdict(posterior: Posterior, told: Sequence[Mapping], outside: bool) -> str:
    if not all(posterior.checks.values()):
        return "checks failed"
    if told[0]["contraction"] < draws.IDENTIFIED:
        return "not identified"
    return "extrapolation" if outside else "ok"


def _assumptions(targets: Sequence[Target], chosen: str, block: float) -> dict[str, str]:
    first = targets[0]
    return project.assumptions(targets) | {
        "recipe": f"{first.method}, {first.bits:g} bits in blocks of {block:g}, {first.effective_bits:.4g} with "
        "scales, the rest of the linear layers at 16",
        "assignment": chosen or "unknown", "tokens": wording.count_text(first.tokens),
    }  # fmt: skip


def rows(answer: xr.Dataset, dim: str) -> list[dict]:
    """The answer's rows along `target` or `asked` as plain values, None where there is no number."""
    names = [str(name) for name in (*answer.coords, *answer.data_vars) if answer[name].dims == (dim,)]
    table = zip(*(answer[name].values.tolist() for name in names), strict=True)
    return [{name.removeprefix("asked_").removeprefix("rise_"): None if value != value else value
             for name, value in zip(names, values, strict=True)} for values in table]  # fmt: skip


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract."""
    told = record.decoded(answer.attrs)
    told |= {name: json.loads(told[name]) for name in ("claims", "p_no_gain")}
    told |= {name: answer[name].item() for name in ("family", "method", "effective_bits")}
    told |= {"rows": rows(answer, "target")}
    return told | ({"asked": rows(answer, "asked")} if "asked" in answer.sizes else {})


def _share(value: float) -> str:
    return "1" if value == 1 else f"{min(value, 0.999):.3f}" if value > 0.99 else f"{value:.2f}"


def as_text(answer: xr.Dataset) -> str:
    """The answer as tables for a terminal of 80 columns, verdict first."""
    told = as_json(answer)
    takes = told["assumptions"]
    family = "a new family" if told["family"] == "new" else f"family {told['family']}"
    lines = [
        *wording.opening(told, VERDICTS),
        *textwrap.wrap(
            f"Largest share Qr of the weights of the linear layers that may be quantized, by the rise of perplexity; "
            f"{family}; {takes['recipe']}; chosen: {takes['assignment']}; trained on {takes['tokens']} tokens; band "
            f"{told['band']!r}, equal-tailed; law {told['law']}, model {told['model']}.", 80),
    ]  # fmt: skip
    for kind in dict.fromkeys(row["granularity"] for row in told["rows"]):
        lines += ["", f"Chosen by {part.GRANULARITIES[kind]}:",
                  f"{'params':>8}{'rise':>5} {'Qr':>7}{'50 % interval':>15}{'90 % interval':>15}{'all':>5}{'bits':>5}"
                  f"{'90 %':>12}{'Law 1':>7}"]  # fmt: skip
        for row in (row for row in told["rows"] if row["granularity"] == kind):
            inner, outer = (f"{_share(row[f'lower{mass}'])} - {_share(row[f'upper{mass}'])}" for mass in (50, 90))
            law = "-" if row["law_1"] is None else _share(row["law_1"])
            size = wording.count_text(row["params"]) + ("*" if _outside(row) else "")
            few, many = (f"{row[f'bits_{end}90']:.3g}" for end in ("lower", "upper"))
            lines.append(f"{size:>8}{row['increase']:>4.3g}% {_share(row['median']):>7}{inner:>15}{outer:>15}"
                         f"{row['p_all']:>5.0%}{row['bits_median']:>5.3g}{few + ' - ' + many:>12}{law:>7}")  # fmt: skip
    if "asked" in told:
        lines += ["", "Rise of perplexity in per cent at a share:",
                  f"{'params':>7}{'by':>8}{'Qr':>7}{'median':>9}{'50 % interval':>18}{'90 % interval':>18}"]
        for row in told["asked"]:
            inner, outer = (f"{wording.short(row[f'lower{m}'])} - {wording.short(row[f'upper{m}'])}" for m in (50, 90))
            lines.append(f"{wording.count_text(row['params']):>7}{row['granularity']:>8}{_share(row['share']):>7}"
                         f"{wording.short(row['median']):>9}{inner:>18}{outer:>18}")  # fmt: skip
    lines += ["", *sentences(told["claims"]), "", *textwrap.wrap(_footnote(told), 80)]
    return "\n".join(lines)


def _outside(row: Mapping) -> bool:
    """Whether a row is asked for outside the range of the data."""
    return row["n_ratio"] > 1 or row["d_ratio"] > 1 or row["p_outside"] or row["q_outside"]


def sentences(claims: Sequence[Mapping]) -> list[str]:
    """What the data say of the paper's claims, wrapped at 80 columns."""
    words = {
        "size": "Larger models tolerate more (QiD of ten-fold parameters at a share of 0.9)",
        "granularity": "Finer granularity tolerates more (QiD of single matrices against whole layers there)",
        "block": "Smaller blocks tolerate more (QiD of half the block there)",
    }
    out = []
    for claim in claims:
        if claim["claim"] in words:
            least, middle, most = (f"{math.exp(-claim[name]):.3g}" for name in ("upper90", "median", "lower90"))
            silent = "; the data say next to nothing of it" if claim["contraction"] < draws.IDENTIFIED else ""
            sure = ">0.999" if claim["probability"] > 0.999 else f"{claim['probability']:.3g}"
            out += textwrap.wrap(
                f"{words[claim['claim']]}: probability {sure}, {claim['prior']:.2g} before the "
                f"data; ratio {middle}, 90 % interval {least} - {most}{silent}.", 80)  # fmt: skip
    return out


def _footnote(told: Mapping) -> str:
    most = max(told["p_no_gain"].values())
    no_gain = f" In up to {most:.0%} of the draws leaving weights out does not help: there Qr is 0 or 1." \
        if most >= 0.005 else ""  # fmt: skip
    beyond = " *: outside the range of the data in size, tokens, bits or share." \
        if any(_outside(row) for row in told["rows"]) else ""  # fmt: skip
    return (
        "all: probability that all weights may be quantized. bits: average over the linear layers, the rest at 16. Law "
        f"1: Cao et al. 2024 with the printed constants, for Qwen-1.5 and single matrices.{no_gain}{beyond}"
    )
