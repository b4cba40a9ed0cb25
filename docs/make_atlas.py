"""Draw docs/atlas.svg and put into docs/atlas.md what other priors of the source effect would change.

python docs/make_atlas.py      seconds; nothing is sampled: the bundled posterior is reweighted
"""

import re
from pathlib import Path

import numpy as np

from bayesqid import bundled, files
from bayesqid.answers import asking, draws, project, sensitivity, wording
from bayesqid.answers.draws import Posterior
from bayesqid.answers.reweighting import k_limit, weighted_quantile
from bayesqid.importers import atlas as published
from bayesqid.report import atlas as figure

HERE = Path(__file__).resolve().parent
EFFECT, SHIPPED, SCALES = "source_level", 0.3, (0.2, 0.1)
TARGETS = ((7e9, 3.0), (70e9, 4.0))
TOKENS = 1e14


def picture() -> bytes:
    """The rows that enter inference, QiD against P, as `bayesqid show atlas --plot` draws them."""
    return figure.draw(published.points(published.select(published.read())), "bits")[0]


def half_normal(value: np.ndarray, scale: float) -> np.ndarray:
    return -0.5 * (value / scale) ** 2 - np.log(scale)


def rows(posterior: Posterior) -> list[str]:
    """One line per prior: spread of the source effect and QiD, medians with 90 % equal-tailed intervals."""
    spread = posterior.sample["spread"].sel(effect=EFFECT).to_numpy()
    targets = [asking.targets(posterior, TOKENS, params, bits=bits)[0] for params, bits in TARGETS]
    values = [spread, *project.qid_draws(posterior, targets, "new")[0].T]
    made = []
    for scale in (SHIPPED, *SCALES):
        ratio = half_normal(spread, scale) - half_normal(spread, SHIPPED)
        weights, effective, k = sensitivity.reweighted(posterior, ratio)
        assert scale == SHIPPED or k < k_limit(weights.size), "the draws do not reach this prior"
        shown = [[wording.short(weighted_quantile(value, weights, q)) for q in (0.5, 0.05, 0.95)] for value in values]
        cells = [f"{middle} ({low} to {high})" for middle, low, high in shown]
        made.append(f"| HalfNormal({scale:g}){', shipped' if scale == SHIPPED else ''} | {' | '.join(cells)} | "
                    f"{effective:.0f} |")  # fmt: skip
    return made


def table(posterior: Posterior) -> str:
    """The table of `rows` with its heading."""
    asked = [f"QiD at {wording.count_text(params)}, {bits:g} bits" for params, bits in TARGETS]
    heading = f"| prior of the spread | spread between sources | {' | '.join(asked)} | draws |"
    return "\n".join([heading, f"|{'---|' * (len(asked) + 3)}", *rows(posterior)])


def filled(text: str, made: str) -> str:
    """The page with the table in its place."""
    return re.sub(r"(<!-- made: priors -->\n).*?(\n<!-- end -->)", lambda m: m[1] + made + m[2], text, flags=re.DOTALL)


if __name__ == "__main__":
    files.write_aside(HERE / "atlas.svg", lambda aside: aside.write_bytes(picture()))
    page = HERE / "atlas.md"
    posterior = draws.read(str(bundled.data_dir() / draws.BUNDLED), brief=False)
    files.write_text(page, filled(page.read_text(encoding="utf-8"), table(posterior)))
