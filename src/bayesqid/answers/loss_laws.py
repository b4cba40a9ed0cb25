"""Laws of the loss before quantization, L16(N, D) in nats per token: published ones, and a user's own.

QiD is what quantization adds; L16 + QiD is the loss of the quantized model. A loss belongs to the corpus and to the
tokenizer that it was measured with: losses of two laws are not comparable, and L16 + QiD mixes the corpus of the law
with the text on which QiD was measured.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from bayesqid import files
from bayesqid.errors import BadInput


@dataclass(frozen=True)
class LossLaw:
    """A form of `FORMS` with its constants.

    `mean` holds the published values, `sd` their standard deviations: empty when none are published. `correlation`
    is that of the constants' logarithms by pair of names, None when it is not known. `note` says what the law is of.
    """

    name: str
    form: str
    mean: Mapping[str, float]
    sd: Mapping[str, float] = field(default_factory=dict)
    correlation: Mapping[tuple[str, str], float] | None = None
    citation: str = ""
    note: str = ""


def chinchilla(params, tokens, E, A, B, alpha, beta):
    """E + A / N^alpha + B / D^beta."""
    return E + A * params**-alpha + B * tokens**-beta


def ouyang(params, tokens, N_c, D_c, alpha_N, alpha_D):
    """[(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D."""
    return ((N_c / params) ** (alpha_N / alpha_D) + D_c / tokens) ** alpha_D


# form -> (formula of N, D and the constants; names of the constants, all of them positive)
FORMS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "chinchilla": (chinchilla, ("E", "A", "B", "alpha", "beta")),
    "ouyang": (ouyang, ("N_c", "D_c", "alpha_N", "alpha_D")),
}

_ALL_PARAMS = ("fitted on MassiveText with a vocabulary of 32,000; its N counts all parameters, here the non-embedding "
               "ones stand in, which adds up to 0.03 nats at 1B and under 0.01 above 7B")  # fmt: skip

LOSS_LAWS: dict[str, LossLaw] = {
    law.name: law
    for law in (
        LossLaw("ouyang", "ouyang", {"N_c": 4.74e19, "D_c": 7.63e10, "alpha_N": 0.045, "alpha_D": 0.399},
                citation="Ouyang et al. 2024, arXiv 2411.17691, caption of Fig. 7",
                note="fitted on Pythia up to 12B parameters and 0.2T tokens; N counts non-embedding parameters; it has "
                     "no irreducible loss"),
        LossLaw("chinchilla", "chinchilla",
                {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
                {"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02},
                citation="Besiroglu et al. 2024, arXiv 2404.10102, which fits the runs of Hoffmann et al. 2022 again",
                note=_ALL_PARAMS),
        LossLaw("hoffmann", "chinchilla",
                {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
                citation="Hoffmann et al. 2022, arXiv 2203.15556, approach 3, unrounded as quoted in arXiv 2404.10102",
                note=f"{_ALL_PARAMS}; the replication (chinchilla) finds that these constants do not fit their own "
                     "runs and that the intervals given for their exponents are far too narrow"),
    )
}  # fmt: skip

LARGEST = 1e30


def uncertainty(law: LossLaw) -> str:
    """What is known of the constants' uncertainty, as a sentence."""
    if not law.sd:
        return "No uncertainty of its constants is published: the spread of the loss is that of QiD alone."
    if law.correlation is None:
        return ("Its constants are drawn from their standard errors as if independent, their correlations not being "
                "published: the spread of the loss is too wide, by a factor of two to four.")  # fmt: skip
    return "Its constants are drawn from their standard errors and correlations."


def as_json(law: LossLaw) -> dict:
    """The law as plain values: what an answer says of it."""
    pairs = [[one, other, value] for (one, other), value in (law.correlation or {}).items()]
    return {"name": law.name, "form": law.form, "values": dict(law.mean), "sd": dict(law.sd) or None,
            "correlation": pairs or None, "citation": law.citation, "note": law.note,
            "uncertainty": uncertainty(law)}  # fmt: skip


def sentences(said: Mapping) -> list[str]:
    """Lines of 80 columns above a table of losses; `said`: `as_json`."""
    source = "; ".join(text for text in (said["citation"], said["note"]) if text)
    text = (f"Loss after quantization, L16 + QiD, in nats per token; L16 by {said['name']}"
            f"{f' ({source})' if source else ''}. {said['uncertainty']} The ceiling of QiD is that of the fitted "
            "models of that size; the losses of two laws are not comparable.")  # fmt: skip
    return textwrap.wrap(text, 80)


def read(name: str | Path) -> LossLaw:
    """The law of that name, else of a TOML file; `BadInput` where a field cannot be used.

    The file holds `form`, a table `values` with every constant of the form, optionally `sd` with every constant's
    standard deviation (0: exactly known), `correlation` (a list of [name, name, number], of the logarithms),
    `citation` and `note`.
    """
    if str(name) in LOSS_LAWS:
        return LOSS_LAWS[str(name)]
    path = Path(name)
    if not path.is_file():
        close = get_close_matches(str(name), LOSS_LAWS, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise BadInput(f"There is no loss law {str(name)!r}{hint}: give {', '.join(LOSS_LAWS)} or a TOML file.")
    return from_table(files.read_toml(path, "loss law"), path.name)


def from_table(given: Mapping, where: str) -> LossLaw:
    """A law from the fields of a TOML file; `BadInput` names file and field."""
    known = ("form", "values", "sd", "correlation", "citation", "note")
    for key in given:
        if key not in known:
            raise BadInput(f"{where} has the unknown field {key!r}: use {', '.join(known)}.")
    form = given.get("form")
    if not isinstance(form, str) or form not in FORMS:
        raise BadInput(f"{where} has form = {form!r}: choose one of {', '.join(FORMS)}.")
    for key in ("citation", "note"):
        if not isinstance(given.get(key, ""), str):
            raise BadInput(f"{where} has {key} = {given[key]!r}: give a text in quotes.")
    most = dict.fromkeys(FORMS[form][1], LARGEST)
    values = _numbers(given.get("values"), form, f"{where}, [values]", 1 / LARGEST, most)
    sd = {}
    if "sd" in given:
        # wider than this a constant is not known at all, and its logarithm not nearly normal
        sd = _numbers(given["sd"], form, f"{where}, [sd]", 0.0, {key: 2 * value for key, value in values.items()})
    if "correlation" in given and not sd:
        raise BadInput(f"{where} has a correlation but no [sd]: give the standard deviations too.")
    pairs = _pairs(given["correlation"], form, where) if "correlation" in given else None
    return LossLaw(where, form, values, sd, pairs, given.get("citation", ""), given.get("note", ""))


def _real(value: object) -> float:
    """The value as a number; NaN for anything else, which no range holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        return math.nan
    return float(value)


def _numbers(table: object, form: str, where: str, least: float, most: Mapping[str, float]) -> dict[str, float]:
    """Every constant of the form as a number from `least` to `most`; `BadInput` names what is missing or unknown."""
    names = FORMS[form][1]
    if not isinstance(table, Mapping):
        raise BadInput(f"{where} is missing or no table: give {', '.join(names)}.")
    for name in table:
        if name not in names:
            raise BadInput(f"{where} has the unknown constant {name!r}: form {form} has {', '.join(names)}.")
    for name in names:
        value = _real(table.get(name))
        if not least <= value <= most[name]:
            given = f"{table[name]!r:.40}" if name in table else "missing"
            raise BadInput(f"{where}: {name} is {given}: give a number from {least:g} to {most[name]:.3g}.")
    return {name: float(table[name]) for name in names}


def _pairs(rows: object, form: str, where: str) -> dict[tuple[str, str], float]:
    """Correlations by pair of constants, which together must be those of some distribution."""
    names = FORMS[form][1]
    pairs: dict[tuple[str, str], float] = {}
    for row in rows if isinstance(rows, list) else [rows]:
        one, other, given = row if isinstance(row, list) and len(row) == 3 else ("", "", "")
        value = _real(given)
        fits = one in names and other in names and one != other and abs(value) < 1
        if not fits or (one, other) in pairs or (other, one) in pairs:
            raise BadInput(f'{where}: correlation {row!r:.60}: write each pair once, e.g. ["{names[0]}", "{names[1]}", '
                           "0.9], with a number between -1 and 1.")  # fmt: skip
        pairs[one, other] = value
    try:
        np.linalg.cholesky(_matrix(names, pairs))
    except np.linalg.LinAlgError:
        raise BadInput(f"{where}: these correlations contradict each other: mend one of them.") from None
    return pairs


def _matrix(names: Sequence[str], pairs: Mapping[tuple[str, str], float]) -> np.ndarray:
    matrix = np.eye(len(names))
    for (one, other), value in pairs.items():
        i, j = names.index(one), names.index(other)
        matrix[i, j] = matrix[j, i] = value
    return matrix


def constants(law: LossLaw, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`size` draws of each constant, log-normal: median = published value, sd of the logarithm = sd / value.

    So no draw is negative, and the median law is the published one. Without standard deviations every draw is the
    published value. Constants whose correlation is not given are drawn independently, which exaggerates the spread of
    the loss, because a fit trades A against alpha and B against beta. Measured for `chinchilla` with the correlations
    of a design like theirs (103 runs over their range of compute and size; 0.999 and 1.000 for those two pairs): the
    standard deviation of L16 is 0.19 instead of 0.05 at 1B and 1T tokens, 0.10 instead of 0.03 at 7B and 15T, 0.06
    instead of 0.02 at 70B and 100T.
    """
    names = FORMS[law.form][1]
    noise = rng.normal(size=(size, len(names)))
    if law.correlation:
        noise = noise @ np.linalg.cholesky(_matrix(names, law.correlation)).T
    width = np.array([law.sd.get(name, 0.0) / law.mean[name] for name in names])
    drawn = np.array([law.mean[name] for name in names]) * np.exp(width * noise)
    return dict(zip(names, drawn.T, strict=True))


def draws(
    law: LossLaw, params: Sequence[float], tokens: Sequence[float], size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws of L16 in nats per token, shape (draw, target): one set of constants per draw, shared by all targets.

    `params` (N) and `tokens` (D) are raw counts, shape (target,). `BadInput` where the constants give no finite loss.
    """
    own = {name: value[:, None] for name, value in constants(law, size, rng).items()}
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        loss = FORMS[law.form][0](np.asarray(params, dtype=float), np.asarray(tokens, dtype=float), **own)
    if not np.isfinite(loss).all():
        raise BadInput(f"The loss law {law.name} gives no finite loss at these sizes: mend its constants.")
    return loss
