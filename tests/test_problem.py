"""The arrays of inference against the law written out."""

import numpy as np
import pytest

from bayesqid import laws
from bayesqid.errors import BadInput
from bayesqid.inference import hyper, posterior, problem, simulate

BOXCOX = laws.get("boxcox")


def eta_of(p, b, lam):
    return (p.weights(lam) * b[p.index]).sum(axis=1)


def natural_of(p, draws, lam):
    """Spreads and scatters of one."""
    ones = np.ones((1, draws, len(p.spread_names))), np.ones((1, draws, len(p.generations)))
    return hyper.Hyper(*ones, np.full((1, draws), lam), np.zeros((1, draws, len(p.latent_names))))


@pytest.mark.parametrize("law", laws.PLAIN.values(), ids=lambda law: law.name)
def test_without_effects_eta_is_the_law_of_the_family(law):
    cells = simulate.grid()
    p = problem.build(cells, law, "hierarchical")
    rng = np.random.default_rng(0)
    b = np.zeros(p.size)
    for term in law.terms:
        b[p.block(f"mu {term.name}").where] = term.mean
        b[p.block(f"family {term.name}").where] = rng.normal(size=6) * term.spread
    lam = 0.3 if isinstance(law.lam, tuple) else law.lam
    natural = natural_of(p, 1, lam)
    named = posterior.named(p, b[None, None], natural)
    theta = {t: named[t].sel(family=cells["family"]).to_numpy()[0, 0] for t in law.term_names}
    expected = laws.log_qid(cells["n_params_nonembedding"].to_numpy(), cells["train_tokens"].to_numpy(),
                            cells["effective_bits"].to_numpy(), **theta, lam=lam)  # fmt: skip
    np.testing.assert_allclose(eta_of(p, b, lam), expected, rtol=1e-10)


def test_a_family_deviation_in_slope_does_not_move_the_centre_of_its_data():
    cells = simulate.grid()
    p = problem.build(cells, BOXCOX, "hierarchical")
    b = np.zeros(p.size)
    b[p.block("family alpha").start] = 1.0
    first = cells["family"].to_numpy() == "F0"
    assert abs(eta_of(p, b, 0.5)[first].mean()) < 1e-12
    assert np.all(eta_of(p, b, 0.5)[~first] == 0)


def test_contrasts_of_a_zero_sum_block_are_orthonormal_and_sum_to_zero():
    block = problem.Block("x", "generation", "1", ("a", "b", "c", "d"), 0, 0.0, None, 0, True)
    np.testing.assert_allclose(block.contrasts.T @ block.contrasts, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(block.contrasts.sum(axis=0), 0, atol=1e-12)


def test_one_generation_alone_keeps_its_coefficient():
    block = problem.Block("x", "generation", "1", ("a",), 0, 0.0, None, 0, True)
    assert block.count == 1
    assert block.contrasts.tolist() == [[1.0]]


def test_pooled_has_no_family_blocks_and_independent_no_population_means():
    cells = simulate.grid()
    assert problem.build(cells, BOXCOX, "pooled").block("family alpha") is None
    independent = problem.build(cells, BOXCOX, "independent")
    assert independent.block("mu alpha") is None
    assert independent.block("family alpha").hyper is None


def test_an_unknown_model_is_refused():
    with pytest.raises(BadInput, match="choose one of hierarchical, pooled, independent"):
        problem.build(simulate.grid(), BOXCOX, "mixed")


def test_the_half_normal_of_a_standard_normal_has_its_quantiles():
    from scipy.stats import halfnorm, norm

    phi = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(hyper.half_normal(phi, 0.7), halfnorm(scale=0.7).ppf(norm.cdf(phi)), rtol=1e-6)
    np.testing.assert_allclose(hyper.standard(hyper.half_normal(phi, 0.7), 0.7), phi, atol=1e-6)


def test_prior_draws_have_the_spreads_of_the_prior():
    p = problem.build(simulate.grid(), BOXCOX, "hierarchical")
    b, phi = hyper.draw_prior(p, 20_000, np.random.default_rng(1))
    beta = b[:, p.block("mu beta").start]
    assert abs(beta.mean() - 0.4) < 4 * 0.25 / np.sqrt(20_000)
    family = b[:, p.block("family beta").start]
    # variance of Normal(0, |s|) with s ~ Normal(0, .15) is .15^2; its fourth moment is 9 * .15^4
    assert abs(family.var() / 0.15**2 - 1) < 4 * np.sqrt(8 / 20_000)


def test_an_effect_that_splits_the_cells_as_an_earlier_one_is_left_to_it():
    p = problem.build(simulate.grid(), BOXCOX, "hierarchical")
    # two quantizers, each alone in its generation and in one source: only the generation can be told
    assert p.block("generation_level") is not None
    assert p.block("method_level") is None
    assert p.block("source_level") is None
    assert p.block("method_slope") is None
    natural = natural_of(p, 500, 0.5)
    named = posterior.named(p, np.zeros((1, 500, p.size)), natural)
    assert float(abs(named["method_level"]).max()) == 0
    spread = named["spread"].sel(effect="source_level")
    # the mean of a half-normal is its scale times sqrt(2 / pi)
    assert float(spread.mean()) == pytest.approx(0.3 * np.sqrt(2 / np.pi), rel=0.01)
