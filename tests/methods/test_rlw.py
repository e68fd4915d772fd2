"""RLW: the distribution of its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_sequences import BAD, LOSSES, run, run_eagerly
from scipy import stats

from mtljax.methods.rlw import rlw

DRAWS = np.ones((4000, 3))


@pytest.fixture(scope="module", params=["normal", "dirichlet"])
def drawn(request):
    return request.param, run(rlw(request.param, seed=3), DRAWS)[0]


def test_the_weights_are_positive_and_sum_to_one_with_equal_means(drawn):
    weights = drawn[1]
    assert weights.min() > 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    error = weights.std(axis=0) / np.sqrt(len(weights))
    assert np.all(np.abs(weights.mean(axis=0) - 1 / 3) < 4 * error)


def test_the_weights_have_their_distribution_and_updates_are_independent(drawn):
    name, weights = drawn
    ratios = np.log(weights[:, 0] / weights[:, 1])
    # Differences of normal numbers are N(0, 2), of Gumbel numbers logistic.
    expected = stats.norm(scale=np.sqrt(2)) if name == "normal" else stats.logistic()
    assert stats.kstest(ratios, expected.cdf).pvalue > 1e-3
    if name == "dirichlet":
        assert stats.kstest(weights[:, 2], stats.beta(1, 2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(ratios[1:], ratios[:-1])[0, 1]) < 0.07


def test_the_seed_decides_the_weights_and_may_be_traced():
    expected = [run(rlw(seed=seed), LOSSES, dtype="float32")[0] for seed in (0, 1)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1

    def first(seed):
        tx = rlw(seed=seed)
        return tx.update(jnp.eye(3), tx.init(jnp.zeros(3)))[0]

    np.testing.assert_allclose(jax.vmap(first)(jnp.arange(2)), [each[0] for each in expected], rtol=1e-6)


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_the_losses_are_not_read_and_one_task_gets_all(distribution):
    tx = rlw(distribution, num_tasks=3)
    finite = BAD[np.isfinite(BAD).all(axis=1)]
    np.testing.assert_allclose(run(tx, finite, dtype="float32")[0], run_eagerly(tx)[: len(finite)], rtol=1e-5)
    np.testing.assert_array_equal(run(rlw(distribution), LOSSES[:, :1])[0], np.ones((12, 1)))


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="rlw: distribution must be one of 'normal', 'dirichlet', got 'uniform'"):
        rlw("uniform")
