"""Budget: the size and bits whose quantized model has the lowest loss in a given memory.

A recipe of P effective bits leaves room for N = 8 M / P parameters in M bytes; trained on D tokens and quantized they
lose L16(N, D) + QiD(N, D, P) nats per token. Fewer bits allow a larger model, which starts lower and loses more.
"""

import json
import textwrap
from dataclasses import replace

import numpy as np
import xarray as xr

from bayesqid.answers import asking, candidates, loss_laws, project, record, wording
from bayesqid.answers.draws import Posterior
from bayesqid.errors import BadInput

# any size serves to ask for the recipes: their effective bits are those of a large model's layer
_ANY_SIZE = 1e9
# stands for the one model that is to be trained: what makes it deviate is the same whatever its size
_PLANNED = "to be trained"


def budget(
    posterior: Posterior,
    memory: str,
    tokens: float | None,
    loss_law: str,
    recipes: str | None = None,
    family: str | None = None,
    new_family: bool = False,
    lr_phase: str = "annealed",
    seed: int = project.SEED,
) -> xr.Dataset:
    """Quantized loss L16 + QiD in nats per token of the largest model that fits, dim `recipe`, lowest mean first.

    `params` solves bytes = memory for each recipe, embeddings not counted. `expected`: mean of the loss over draws of
    both laws; attribute `choice` is its lowest. `p_best` is the share of draws in which a recipe is the best of all,
    `p_best_bits` that of all recipes of its bits. `BadInput` for memory, tokens, loss law or recipes of no use.
    """
    room = candidates.memory_bytes(memory)
    if tokens is None:
        raise BadInput("The training tokens are needed: give --tokens, e.g. 15e12.")
    law = loss_laws.read(loss_law)
    texts = candidates.names(recipes)
    asked = candidates.targets(posterior, texts, tokens, params=_ANY_SIZE, family=family, new_family=new_family,
                               lr_phase=lr_phase)  # fmt: skip
    sizes = np.array([8 * room / t.effective_bits for t in asked])
    low, high = asking.LIMITS["params"]
    if not (low <= sizes.min() and sizes.max() <= high):
        raise BadInput(f"--memory {memory} holds {sizes.max():.3g} parameters: give room for {low:g} to {high:g}.")
    targets = [replace(t, params=float(n), checkpoint=_PLANNED) for t, n in zip(asked, sizes, strict=True)]
    qid, _ = project.qid_draws(posterior, targets, "new", seed)
    # a stream of its own: which recipes are asked about must not change the draws of the loss law
    rng = np.random.default_rng([seed, 1])
    loss16 = loss_laws.draws(law, sizes.tolist(), [tokens] * sizes.size, posterior.size, rng)
    loss = loss16 + qid
    won = np.bincount(np.argmin(loss, axis=1), minlength=len(texts)) / posterior.size
    widths = np.array([float(t.bits or t.effective_bits) for t in targets])
    values = {name: np.quantile(loss, q, axis=0) for name, q in project.quantile_names("").items()}
    values |= {
        "expected": loss.mean(axis=0), "p_best": won,
        "p_best_bits": np.array([won[widths == width].sum() for width in widths]),
        "loss16_median": np.median(loss16, axis=0), "qid_median": np.median(qid, axis=0), "params": sizes,
        "bits": widths, "effective_bits": np.array([t.effective_bits for t in targets]),
        "fitted": candidates.fitted(posterior, targets),
    }  # fmt: skip
    order = np.argsort(values["expected"], kind="stable")
    values = {name: value[order] for name, value in values.items()}
    first = targets[order[0]]
    far = project.extrapolation(posterior, first)
    outside = far["n_ratio"] > 1 or far["d_ratio"] > 1 or far["p_outside"]
    assumptions = {
        "lr_phase": first.lr_phase, "text": f"{first.eval_dataset}, context {first.context:g}",
        "params": "non-embedding parameters; embeddings are not counted in the memory",
        "loss_law": law.citation or law.name, "loss_note": law.note, "loss_uncertainty": loss_laws.uncertainty(law),
        "criterion": "lowest mean of L16 + QiD over the draws",
        "quantizers": candidates.unfitted_words(targets, candidates.fitted(posterior, targets)),
    }  # fmt: skip
    attrs = record.attrs(posterior, project.verdict(posterior, [first.family], outside), assumptions) | {
        "band": "new", "choice": texts[order[0]], "memory": room, "tokens": first.tokens, "loss_law": law.name,
        "family": first.of, "draws": posterior.size, "extrapolation": json.dumps(far),
    }  # fmt: skip
    return xr.Dataset({name: ("recipe", value) for name, value in values.items()},
                      {"recipe": [texts[i] for i in order]}, attrs)  # fmt: skip


def as_json(answer: xr.Dataset) -> dict:
    """The answer as one object of the `--json` contract, `curve` from the lowest expected loss up."""
    told = record.decoded(answer.attrs)
    plain = {name: answer[name].values.tolist() for name in ("recipe", *answer.data_vars)}
    told["extrapolation"] = json.loads(told["extrapolation"])
    return told | {"curve": [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]}


def as_text(answer: xr.Dataset, everything: bool = False) -> str:
    """The answer for a terminal of 80 columns: the best recipe of each width; all recipes with `everything`."""
    told = as_json(answer)
    curve, takes = told["curve"], told["assumptions"]
    best, widths = curve[0], dict.fromkeys(row["bits"] for row in curve)
    tops = {width: next(row["recipe"] for row in curve if row["bits"] == width) for width in widths}
    shown = [row for row in curve if everything or row["recipe"] == tops[row["bits"]]]
    family = "a new family" if told["family"] == "new" else f"family {told['family']}"
    lines = [*wording.opening(told), *textwrap.wrap(
        f"Choice: {wording.count_text(best['params'])} parameters under {best['recipe']} "
        f"({best['effective_bits']:.3g} bits) have the lowest expected loss, {best['expected']:.4g} nats per token; "
        f"best of all in {best['p_best']:.0%} of the draws, its bits in {best['p_best_bits']:.0%}.", 80)]  # fmt: skip
    lines += textwrap.wrap(
        f"{candidates.size_text(told['memory'])} GB (1e9 bytes) of weights without embeddings, "
        f"{wording.count_text(told['tokens'])} tokens, {family}; loss law {told['loss_law']}; band 'new', "
        f"equal-tailed; law {told['law']}, model {told['model']}; learning rate {takes['lr_phase']}.", 80)  # fmt: skip
    lines += ["", f"{'recipe':<21}{'bits':>5}{'params':>8}{'L16':>7}{'QiD':>8}{'loss':>7}{'90 % interval':>15}"
              f"{'P(bits)':>9}"]  # fmt: skip
    for row in shown:
        interval = f"{row['lower90']:.2f} - {row['upper90']:.2f}"
        lines.append(
            f"{row['recipe'] + ('' if row['fitted'] else ' *'):<21}{row['effective_bits']:>5.3g}"
            f"{wording.count_text(row['params']):>8}{row['loss16_median']:>7.3f}{wording.short(row['qid_median']):>8}"
            f"{row['expected']:>7.3f}{interval:>15}{row['p_best_bits']:>9.0%}"
        )
    words = ["L16 and QiD are medians, the loss is the mean. P(bits): share of the draws in which some recipe of those "
             "bits is best."]  # fmt: skip
    if len(shown) < len(curve):
        words.append(f"The best recipe of each width; --all shows the other {len(curve) - len(shown)}.")
    if not all(row["fitted"] for row in shown):
        words.append(f"* {takes['quantizers']}.")
    note = takes["loss_note"]
    words.append(f"L16: {takes['loss_law']}{'; ' if note else ''}{note}. {takes['loss_uncertainty']}")
    return "\n".join([*lines, "", *(line for text in words for line in textwrap.wrap(text, 80))])
