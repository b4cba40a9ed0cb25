"""Truth here is brute force: D, shared deviations and scatter drawn from their priors, weighted by what was seen."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from bayesqid import likelihood
from bayesqid.answers import draws, level, level_likelihood, training_level
from bayesqid.answers.observed import Observed
from level_posterior import TERMS, make

PARAMS, PRIOR = 3e9, (1e11, 1e14)
SIZE = 400_000
TAU = {"calibrated": 0.25, "rtn": 0.4}
CHECKPOINT, SOURCE = 0.3, 0.35
BEND = {"x_N^2": 0.01, "x_D^2": 0.03, "x_N x_D": -0.02}
WIDTHS = {"2": (0.3, -0.05, 0.1), "3": (-0.2, 0.1, -0.15), "4": (0.1, 0.05, 0.12)}
SEEN = {"gptq-w4-g128": (0.06, 0.02), "gptq-w2-g128": (1.4, 0.2), "rtn-w3-g128": (0.5, 0.1)}


def eta(text, x):
    """ln QiD of the printed law at ln D = x, groups of 128 with a 16-bit scale."""
    bits = int(text.split("-w")[1][0])
    n, d = math.log(PARAMS / 1e9), x - math.log(1e11)
    return TERMS["log_k"] - TERMS["alpha"] * n + TERMS["beta"] * d - TERMS["gamma"] * math.log((bits + 0.125) / 3)


def curved(text, x):
    n, d = math.log(PARAMS / 1e9), x - math.log(1e11)
    return eta(text, x) + BEND["x_N^2"] * n**2 + BEND["x_D^2"] * d**2 + BEND["x_N x_D"] * n * d


def per_bit(text, x):
    step, alpha, beta = WIDTHS[text.split("-w")[1][0]]
    return eta(text, x) + step - alpha * math.log(PARAMS / 1e9) + beta * (x - math.log(1e11))


def posterior_of(kind):
    numbers = {"tau": TAU, "spread": {"checkpoint_level": CHECKPOINT, "source_level": SOURCE}}
    if kind == "curved":
        names = {"bend_params": "x_N^2", "bend_tokens": "x_D^2", "bend_both": "x_N x_D"}
        numbers |= {"law": "curved", "covariates": {name: BEND[factor] for name, factor in names.items()}}
    if kind == "per-bit":
        effects = {(name, width): values[place] for width, values in WIDTHS.items()
                   for place, name in enumerate(("width_level", "width_alpha", "width_beta"))}  # fmt: skip
        numbers |= {"law": "per-bit", "effects": effects}
    made = make(**numbers)
    if kind == "student-t":
        made.tree.attrs["extras"] = "student-t"
    return made


def weighted(law_value, tails, headroom, seen, asked, rng):
    """Draws of ln D and of the latent QiD at recipes, with the weights of what was seen."""
    x = rng.uniform(*np.log(PRIOR), size=SIZE)
    own, source = CHECKPOINT * rng.normal(size=SIZE), {m: SOURCE * rng.normal(size=SIZE) for m in ("gptq", "rtn")}
    latent = {}
    for text in dict.fromkeys([*seen, *asked]):
        method = text.split("-")[0]
        tau = TAU["rtn" if method == "rtn" else "calibrated"]
        e = t(5).rvs(SIZE, random_state=rng) if tails == "student-t" else rng.normal(size=SIZE)
        raw = np.exp(law_value(text, x) + own + source[method] + tau * e)
        latent[text] = headroom * (1 - np.exp(-raw / headroom))
    log = np.zeros(SIZE)
    for text, (qid, se) in seen.items():
        log += np.log(latent[text] > math.log(10) + 0.0) if qid > math.log(10) else norm.logpdf(qid, latent[text], se)
    weight = np.exp(log - log.max())
    return x, latent, weight / weight.sum()


def assert_share(told, hit, weight, what):
    """A probability within five standard errors of the weighted draws, and 0.003 for their own coarseness."""
    share = (weight * hit).sum()
    error = math.sqrt((weight**2 * (hit - share) ** 2).sum())
    assert abs(told - share) < 5 * error + 0.003, (what, told, share, error)


KINDS = {"plain": (eta, "normal"), "curved": (curved, "normal"), "per-bit": (per_bit, "normal"),
         "student-t": (eta, "student-t")}  # fmt: skip


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "seen",
    [SEEN, {"rtn-w3-g128": SEEN["rtn-w3-g128"]}, {"gptq-w3-g128": (0.01, 0.05)}, {"gptq-w2-g128": (3.0, 0.1)}],
    ids=["three", "another method", "near zero", "diverged"],
)  # fmt: skip
def test_tokens_and_level_are_those_of_weighted_draws_from_the_priors(kind, seen):
    posterior, (law_value, tails) = posterior_of(kind), KINDS[kind]
    headroom = draws.nearest_headroom(posterior, PARAMS)
    qids = [Observed(text, *values) for text, values in seen.items()]
    answer = level.level(posterior, PARAMS, qids, family="F0", tokens_prior=PRIOR)
    asked = [f"gptq-w{bits}-g128" for bits in training_level.BITS]
    x, latent, weight = weighted(law_value, tails, headroom, seen, asked, np.random.default_rng(5))
    assert 1 / (weight**2).sum() > 800
    for name, q in {"lower90": 0.05, "lower50": 0.25, "median": 0.5, "upper50": 0.75, "upper90": 0.95}.items():
        assert_share(q, x < math.log(float(answer[name].sel(quantity="tokens"))), weight, name)
        for text, told in zip(asked, answer[f"level_{name}"].to_numpy(), strict=True):
            assert_share(q, latent[text] < told, weight, (name, text))
    for text, row in zip(asked, answer["p_fully_trained"].to_numpy(), strict=True):
        for limit, told in zip(training_level.THRESHOLDS, row, strict=True):
            assert_share(told, latent[text] > limit, weight, (text, limit))
    assert answer["observed"].to_numpy().tolist() == [text in seen for text in asked]


def test_an_exact_qid_is_the_level_itself_and_shrinks_no_other_width_to_a_point():
    posterior = posterior_of("plain")
    answer = level.level(posterior, PARAMS, [Observed("gptq-w3-g128", 0.3001, 1e-6)], family="F0", tokens_prior=PRIOR)
    three = answer.sel(level_bits=3)
    np.testing.assert_allclose([three["level_lower90"], three["level_upper90"]], 0.3001, atol=4e-6)
    np.testing.assert_allclose(three["p_fully_trained"], [1, 1, 0, 0], atol=1e-9)
    # new scatter of two cells of one method about one shared shift
    two = np.log(answer.sel(level_bits=4)[["level_lower50", "level_upper50"]].to_array().to_numpy())
    assert np.ptp(two) > 1.2 * TAU["calibrated"]


def test_a_level_is_told_by_the_draws_that_expect_the_qids():
    """Of two draws one cannot show such a QiD at 4 bits for any tokens of the prior: it must not count at 2 bits."""
    terms = {"log_k": np.array([-2.0, -9.0]), "gamma": np.array([5.0, 1.0])}
    numbers = {"tau": 0.05, "spread": {"checkpoint_level": 0.05}}
    both, first = make(size=2, terms=terms, **numbers), make(terms={"log_k": -2.0, "gamma": 5.0}, **numbers)
    told = [level.level(one, PARAMS, [Observed(4, 0.1, 0.002)], family="F0", tokens_prior=PRIOR)
            for one in (both, first)]  # fmt: skip
    np.testing.assert_allclose(told[0]["level_median"], told[1]["level_median"], rtol=1e-3)
    np.testing.assert_allclose(told[0]["p_fully_trained"], told[1]["p_fully_trained"], atol=1e-3)


def test_a_qid_that_prediction_rules_out_still_gives_its_own_level():
    posterior = make(tau=0.08)
    for qid in (-0.2, 2.2):
        answer = level.level(posterior, PARAMS, [Observed("rtn-w3-g128", 0.2, 0.005), Observed(4, qid, 0.02)],
                             family="F0", tokens_prior=PRIOR)  # fmt: skip
        assert np.isfinite(answer["p_fully_trained"]).all()
        four = answer.sel(level_bits=4)
        assert float(four["level_median"]) == pytest.approx(max(qid, 0.0), abs=0.05)


def test_smoothing_and_scatter_are_the_convolution_of_normals():
    step, own, sd = np.array([0.05, 0.1]), 0.4, np.array([0.3, 0.9])
    grid = step[:, None] * (np.arange(401) - 200)
    values = norm.pdf(grid, 0.5, own)
    want = norm.pdf(grid, 0.5, np.hypot(own, sd)[:, None])
    np.testing.assert_allclose(level_likelihood.smooth(values, step, sd), want, atol=2e-6)
    wider, extra = training_level.scattered(values, step, sd, "normal")
    np.testing.assert_allclose(wider[:, extra:-extra], want, atol=1e-9)
    np.testing.assert_allclose(wider.sum(axis=1), values.sum(axis=1), rtol=1e-6)
    mixed, extra = training_level.scattered(values, step, sd, "student-t")
    scales, shares = likelihood.TAILS["student-t"]
    want = sum(share * norm.pdf(grid, 0.5, np.hypot(own, scale * sd)[:, None])
               for scale, share in zip(scales, shares, strict=True))  # fmt: skip
    np.testing.assert_allclose(mixed[:, extra:-extra], want, atol=1e-8)


def test_a_normal_density_is_read_exactly_between_points_of_the_grid():
    grid = np.linspace(-3, 3, 41)
    place = np.array([[1.7, 20.25, 38.6]])
    found = level_likelihood.read(norm.pdf(grid)[None], place)
    np.testing.assert_allclose(found, norm.logpdf(np.interp(place, np.arange(41), grid)), atol=1e-12)


def test_masses_keep_their_total_and_their_mean_on_the_grid():
    rng = np.random.default_rng(0)
    position, mass = rng.uniform(0, 30, size=(3, 50)), rng.dirichlet(np.ones(50))
    rows = level_likelihood.deposit(position, mass, 31)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(rows @ np.arange(31), position @ mass)


def test_a_fitted_source_is_known_and_a_new_one_is_not():
    """The fitted source's deviation of 0.5 is taken off; a new one's is integrated."""
    numbers = {"tau": 0.1, "spread": {"source_level": 0.6}, "effects": {("source_level", "a | rtn"): 0.5}}
    posterior = make(**numbers)
    target = draws.Target("F0", PARAMS, 1.0, 3.125, "rtn", source_method="a | rtn")
    told = {name: level.level(posterior, PARAMS, [Observed(3, 0.3, 0.001, target=one)], family="F0", method="rtn")
            for name, one in (("fitted", target), ("new", None))}  # fmt: skip
    medians = {name: math.log(float(one["median"].sel(quantity="tokens"))) for name, one in told.items()}
    assert medians["fitted"] - medians["new"] == pytest.approx(-0.5 / TERMS["beta"], abs=0.15)
    tokens = {name: one.sel(quantity="tokens") for name, one in told.items()}
    widths = {name: math.log(float(one["upper90"] / one["lower90"])) for name, one in tokens.items()}
    assert widths["fitted"] < 0.4 * widths["new"]
    assert "fitted source" in level.as_json(told["fitted"])["assumptions"]["source"]
    assert "new source" in level.as_json(told["new"])["assumptions"]["source"]
