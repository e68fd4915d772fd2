"""Independent answers for the methods on the Gramian: a Jacobian (K, d) in float64 to the update d.

They work on the Jacobian itself (active sets, singular values), where nothing is squared, or with mpmath where rows
differ by decades. Rows must not be zero. None of them shares an algorithm with the package, except the last resort of
`fairgrad`, which proves its answer by the residual at 60 digits and more.
"""

import mpmath as mp
import numpy as np
from scipy.optimize import brentq, nnls


def unit_rows(jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length one, and the lengths."""
    norms = np.linalg.norm(jacobian, axis=1)
    return jacobian / norms[:, None], norms


def mgda(jacobian: np.ndarray) -> np.ndarray:
    """The nearest point of the hull, from nonnegative least squares on [J' ; 1'] w = [0 ; 1] (Lawson and Hanson)."""
    unit, norms = unit_rows(jacobian)
    a = norms.min() / norms
    y, _ = nnls(np.vstack([unit.T, a]), np.append(np.zeros(unit.shape[1]), 1), maxiter=10_000)
    return norms.min() * (y @ unit) / (y @ a)


def cagrad(jacobian: np.ndarray, c: float = 0.4) -> np.ndarray:
    """By the multiplier of the ball: maximising min_k g_k.d - |d - g_0|^2 / (2 m) gives d = m mgda(J + g_0 / m)."""
    mean = jacobian.mean(axis=0)
    radius = c * np.linalg.norm(mean)

    def update(log_multiplier: float) -> np.ndarray:
        multiplier = np.exp(log_multiplier)
        return multiplier * mgda(jacobian + mean / multiplier)

    def excess(log_multiplier: float) -> float:
        return np.linalg.norm(update(log_multiplier) - mean) / radius - 1

    middle = np.log(radius / np.linalg.norm(jacobian, axis=1).min())
    low, high = middle - 1, middle + 1
    while excess(low) > 0:
        low -= 2
    while excess(high) < 0:
        high += 2
        if high > middle + 60:  # the best d lies inside the ball
            return update(high)
    return update(float(brentq(excess, low, high, xtol=1e-15)))  # pyright: ignore[reportArgumentType]


def dual_cone(jacobian: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The projection of sum_k bounds_k g_k onto the cone of the d with g_k.d >= 0, by nonnegative least squares."""
    unit, norms = unit_rows(jacobian)
    start = (bounds * norms) @ unit
    size = np.abs(bounds * norms).max()
    excess, _ = nnls(unit.T, -start / size, maxiter=10_000)
    return start + size * (excess @ unit)


def dualproj(jacobian: np.ndarray) -> np.ndarray:
    """The mean gradient projected."""
    return dual_cone(jacobian, np.full(len(jacobian), 1 / len(jacobian)))


def upgrad(jacobian: np.ndarray) -> np.ndarray:
    """The mean of the projected gradients."""
    return np.mean([dual_cone(jacobian, bounds) for bounds in np.eye(len(jacobian))], axis=0)


def nash_mtl(jacobian: np.ndarray) -> np.ndarray:
    """G a = 1 / a."""
    return fairgrad(jacobian, 1.0)


def fairgrad(jacobian: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """G w = w^(-1/alpha)."""
    unit, norms = unit_rows(jacobian)
    if norms.max() < 1e3 * norms.min() and np.linalg.cond(unit) < 1e3:
        return _fairgrad_by_potential(jacobian, alpha)
    return _fairgrad_proved(jacobian, alpha)


def _fairgrad_by_potential(jacobian: np.ndarray, alpha: float) -> np.ndarray:
    """Newton's method with a line search on the convex potential of z = w |g|, in float64."""
    unit, norms = unit_rows(jacobian)
    cosines, power = unit @ unit.T, 1 / alpha
    scale = norms ** ((1 - alpha) / (1 + alpha))
    b = scale ** (1 + power)

    def potential(z: np.ndarray) -> float:
        barrier = np.log(z) if power == 1 else z ** (1 - power) / (1 - power)
        return float(z @ cosines @ z / 2 - b @ barrier)

    z = scale.copy()
    for _ in range(2000):
        gradient = cosines @ z - b * z**-power
        direction = np.linalg.solve(cosines + np.diag(power * b * z ** (-power - 1)), -gradient)
        step = 1 / max(1, (-direction / z).max() / 0.99)
        if -gradient @ direction < 1e-7 * (z @ cosines @ z):
            z = z + step * direction  # too close for the line search to see a difference
            if np.abs(direction / z).max() < 1e-13 or -gradient @ direction < 1e-30 * (z @ cosines @ z):
                break
            continue
        while potential(z + step * direction) > potential(z) + 0.1 * step * (gradient @ direction):
            step /= 2
        z = z + step * direction
    return z @ unit


def _fairgrad_proved(jacobian: np.ndarray, alpha: float) -> np.ndarray:
    """A primal-dual Newton method with as many digits as the smallest weight needs; asserts w_k (G w)_k^alpha = 1."""
    num_tasks = len(jacobian)
    with mp.workdps(60 + int(13 * max(alpha, 1 / alpha))):
        rows = mp.matrix(jacobian.tolist())
        gramian = rows * rows.T
        norms = [mp.sqrt(gramian[k, k]) for k in range(num_tasks)]
        cosines = mp.matrix(num_tasks)
        for i in range(num_tasks):
            for k in range(num_tasks):
                cosines[i, k] = gramian[i, k] / norms[i] / norms[k]
        power = 1 / mp.mpf(alpha)
        scales = [mp.log(norm) * (power - 1) / (power + 1) for norm in norms]
        scales = [scale - max(scales) for scale in scales]
        tasks = range(num_tasks)
        z, y, level = mp.ones(num_tasks, 1), mp.ones(num_tasks, 1), mp.mpf(0)
        for _ in range(600):
            residual = cosines * z - y
            errors = [(1 + power) * max(scales[k], level) - power * mp.log(z[k]) - mp.log(y[k]) for k in tasks]
            stiffness = [power * y[k] / z[k] for k in tasks]
            capped = [max(errors[k], -min(power * (1 + 1 / stiffness[k]), 1 + stiffness[k])) for k in tasks]
            if level <= min(scales) and max(map(abs, errors)) < 1e-25 and mp.norm(residual) < 1e-50 * min(y):
                break
            rhs = mp.matrix([y[k] * capped[k] - residual[k] for k in tasks])
            dz = mp.lu_solve(cosines + mp.diag(stiffness), rhs)
            dy = mp.matrix([y[k] * (capped[k] - power * dz[k] / z[k]) for k in tasks])
            shrinking = max(max(-dz[k] / z[k], -dy[k] / y[k]) for k in tasks)
            step = 1 / max(mp.mpf(1), (1 + mp.mpf(10) ** -6) * shrinking)
            z, y = z + step * dz, y + step * dy
            level -= 3 if step > 0.5 else 0
        served = cosines * z
        proof = [power * mp.log(z[k]) + mp.log(served[k]) - (1 + power) * scales[k] for k in tasks]
        assert max(map(abs, proof)) < 1e-15, "the oracle did not converge"
        unit = max(mp.log(norm) * (power - 1) / (power + 1) for norm in norms)
        weights = [z[k] * mp.exp(unit) / norms[k] for k in tasks]
        return np.array((mp.matrix([weights]) * rows).tolist()[0], dtype=float)


def aligned_mtl(jacobian: np.ndarray, scale: str = "min") -> np.ndarray:
    """sigma times the sum of the rows of the polar factor, by mpmath where rows differ by decades."""
    norms = np.linalg.norm(jacobian, axis=1)
    if norms.max() < 1e3 * norms.min():
        left, values, right = np.linalg.svd(jacobian, full_matrices=False)
        kept = values > values[0] * max(jacobian.shape) * np.finfo(float).eps
        return _sigma(values[kept], scale) * (left[:, kept].sum(axis=0) @ right[kept])
    with mp.workdps(70):
        rows = mp.matrix(jacobian.tolist())
        values, vectors = mp.eigsy(rows * rows.T)
        kept = [j for j in range(len(jacobian)) if values[j] > max(values) * mp.mpf(10) ** -60]
        sigma = _sigma(np.array([float(mp.sqrt(values[j])) for j in kept]), scale)
        total = mp.zeros(1, len(jacobian))
        for j in kept:
            total += vectors[:, j].T * (sum(vectors[:, j]) / mp.sqrt(values[j]))
        return sigma * np.array((total * rows).tolist()[0], dtype=float)


def _sigma(values: np.ndarray, scale: str) -> float:
    values = np.sort(values)
    return {"min": values[0], "median": values[(len(values) - 1) // 2], "rmse": np.sqrt(np.mean(values**2))}[scale]
