"""Jacobians to test methods on: ordinary ones, and every way of being degenerate."""

import numpy as np


def gaussian(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of a standard normal matrix, (K, size), float64."""
    return np.random.default_rng([seed, num_tasks, size]).standard_normal((num_tasks, size))


def conflicting(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows whose mean is nearly zero, so that most pairs conflict."""
    jacobian = gaussian(num_tasks, size, seed)
    return jacobian - 0.95 * jacobian.mean(axis=0)


def mixed_scales(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of norms from 1e-3 to 1e3."""
    return gaussian(num_tasks, size, seed) * np.logspace(-3, 3, num_tasks)[:, None]


def wide(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of norms from 1e-6 to 1e6, in any order."""
    scales = np.random.default_rng(seed).permutation(np.logspace(-6, 6, num_tasks))
    return gaussian(num_tasks, size, seed) * scales[:, None]


def wide_conflicting(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Conflicting rows of norms from 1e-6 to 1e6."""
    return conflicting(num_tasks, size, seed) * np.logspace(-6, 6, num_tasks)[:, None]


def nearly_equal(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of which the first is the last at another length, up to 1e-5."""
    jacobian = gaussian(num_tasks, size, seed)
    jacobian[0] = 1.5 * jacobian[-1] + 1e-5 * jacobian[0]
    return jacobian


def nearly_opposite(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of which the first is the last turned round and at another length, up to 1e-5."""
    jacobian = gaussian(num_tasks, size, seed)
    jacobian[0] = -1.5 * jacobian[-1] + 1e-5 * jacobian[0]
    return jacobian


_BASE = gaussian(3, 6)

DEGENERATE = {
    "all zero": np.zeros((3, 6)),
    "one zero row": np.array([_BASE[0], np.zeros(6), _BASE[2]]),
    "all but one zero": np.array([np.zeros(6), _BASE[1], np.zeros(6)]),
    "duplicates": np.array([_BASE[0], _BASE[0], _BASE[1]]),
    "all equal": np.array([_BASE[0]] * 3),
    "opposites": np.array([_BASE[0], -_BASE[0], _BASE[1]]),
    "sum to zero": np.array([_BASE[0], _BASE[1], -_BASE[0] - _BASE[1]]),
    "rank one": np.array([_BASE[0], 2 * _BASE[0], -3 * _BASE[0]]),
    "nearly opposite": np.array([_BASE[0], -_BASE[0] + 1e-6 * _BASE[1], _BASE[2]]),
    "tiny": 1e-30 * _BASE,
    "huge": 1e15 * _BASE,
    "tiny and huge": _BASE * np.array([[1e-12], [1.0], [1e12]]),
    "beyond the range of ratios": _BASE * np.array([[1e-30], [1.0], [1e15]]),
    "one zero, one tiny": np.array([np.zeros(6), 1e-30 * _BASE[1], _BASE[2]]),
}


def aligned(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of which no two conflict, though coordinates do: a rotated matrix without a negative entry."""
    rotation = np.linalg.qr(gaussian(size, size, seed + 2000))[0]
    return np.abs(gaussian(num_tasks, size, seed)) @ rotation


def low_rank(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows in a space of half their number of dimensions, all on one side of a hyperplane."""
    rank = max(num_tasks // 2, 1) + 1
    coordinates = gaussian(num_tasks, rank, seed)
    coordinates[:, 0] = np.abs(coordinates[:, 0]) + 0.1
    return coordinates @ gaussian(rank, size, seed + 1000)


def stationary(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of which a convex combination is zero: every direction that helps one task harms another."""
    jacobian = gaussian(num_tasks, size, seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2, num_tasks)
    jacobian[-1] = -weights[:-1] @ jacobian[:-1] / weights[-1]
    return jacobian


def duplicated(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows of which the last repeats the first at another length."""
    jacobian = gaussian(num_tasks, size, seed)
    jacobian[-1] = 3 * jacobian[0]
    return jacobian
