"""How far the probabilities of a classifier can be trusted."""

from typing import Any

import jax
import jax.numpy as jnp


def expected_calibration_error(probabilities: Any, labels: Any, bins: int = 15) -> jax.Array:
    """Expected calibration error with bins of equal width (Guo et al., arXiv:1706.04599).

    Σ_b n_b / N |accuracy_b - confidence_b|: examples are sorted into bins by the largest probability, and in each the
    share of right predictions is compared with the mean of that probability.

    >>> import jax.numpy as jnp, mtljax as mtl
    >>> probabilities = jnp.array([[0.75, 0.25]] * 4)
    >>> float(mtl.analysis.expected_calibration_error(probabilities, jnp.array([0, 0, 1, 1])))
    0.25

    Args:
      probabilities: (N, C), rows that sum to 1.
      labels: (N,) class indices; examples with a negative one are left out.
      bins: how many bins share the interval (0, 1].

    Returns:
      A number in [0, 1]; NaN where there is no label.

    Raises:
      ValueError: if the shapes disagree or `bins` is not positive.
    """
    if bins < 1:
        raise ValueError(f"expected_calibration_error: bins must be at least 1, got {bins}")
    probabilities, labels, present = _checked("expected_calibration_error", probabilities, labels)
    confidence = jnp.max(probabilities, axis=1)
    right = (jnp.argmax(probabilities, axis=1) == labels).astype(confidence.dtype)
    which = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = jnp.zeros(bins, confidence.dtype).at[which].add(jnp.where(present, right - confidence, 0))
    return jnp.sum(jnp.abs(gaps)) / jnp.sum(present)


def brier_score(probabilities: Any, labels: Any) -> jax.Array:
    """The Brier score of several classes: the mean of Σ_c (p_c - [c is the label])².

    Args:
      probabilities: (N, C), rows that sum to 1.
      labels: (N,) class indices; examples with a negative one are left out.

    Returns:
      A number in [0, 2], 0 for certain and right; twice the usual score where there are two classes. NaN where there is
      no label.

    Raises:
      ValueError: if the shapes disagree.
    """
    probabilities, labels, present = _checked("brier_score", probabilities, labels)
    squares = jnp.sum(jnp.square(probabilities - jax.nn.one_hot(labels, probabilities.shape[1])), axis=1)
    return jnp.sum(jnp.where(present, squares, 0)) / jnp.sum(present)


def _checked(name: str, probabilities: Any, labels: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    probabilities, labels = jnp.asarray(probabilities), jnp.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"{name} takes probabilities (N, C) and labels (N,), got shapes {probabilities.shape} and {labels.shape}"
        )
    return probabilities, labels, labels >= 0
