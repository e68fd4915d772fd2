"""Slow, plain versions of the rules that solve linear systems or loop over vectors; float64 (K, d) -> (d,)."""

import mpmath
import numpy as np
import quadprog


def imtl_g(jacobian: np.ndarray, guard: bool = True) -> np.ndarray:
    """The closed form of the IMTL paper in 50 digits, without zero rows; the other rows must be independent."""
    rows = jacobian[np.any(jacobian != 0, axis=1)]
    if len(rows) < 2:
        return rows.sum(axis=0) if len(rows) else np.zeros(jacobian.shape[1])
    with mpmath.workdps(50):
        gradients = [mpmath.matrix(row.tolist()) for row in rows]
        units = [g / mpmath.norm(g) for g in gradients]
        first, rest = gradients[0], range(1, len(rows))
        system = mpmath.matrix([[mpmath.fdot(first - gradients[i], units[0] - units[j]) for i in rest] for j in rest])
        right = mpmath.matrix([mpmath.fdot(first, units[0] - units[j]) for j in rest])
        weights = list(mpmath.lu_solve(system, right))
        weights = [1 - mpmath.fsum(weights), *weights]
        combined = sum((w * g for w, g in zip(weights, gradients, strict=True)), mpmath.zeros(len(first), 1))
        if guard and mpmath.fdot(combined, units[0]) < 0:
            combined = -combined
        return np.array([float(x) for x in combined])


def conflict_free(jacobian: np.ndarray) -> np.ndarray:
    """The ConFIG paper's pseudo-inverse of the K x d matrix of unit gradients, without zero rows."""
    rows = jacobian[np.any(jacobian != 0, axis=1)]
    if not len(rows):
        return np.zeros(jacobian.shape[1])
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction = np.linalg.lstsq(units, np.ones(len(rows)))[0]
    length = np.linalg.norm(direction)
    if length == 0:
        return direction
    direction /= length
    return (rows @ direction).sum() * direction


def gradvac(
    jacobian: np.ndarray, target: np.ndarray | None = None, order: np.ndarray | None = None, beta: float = 0.5
) -> np.ndarray:
    """The Gradient Vaccine paper's loop over vectors; moves the (K, K) `target` in place, row i of `order` is i's."""
    num_tasks = len(jacobian)
    target = np.zeros((num_tasks, num_tasks)) if target is None else target
    order = np.tile(np.arange(num_tasks), (num_tasks, 1)) if order is None else order
    total = np.zeros(jacobian.shape[1])
    for i in range(num_tasks):
        bent = jacobian[i].copy()
        for j in order[i]:
            if j == i or not bent.any() or not jacobian[j].any():
                continue
            length, other = np.linalg.norm(bent), np.linalg.norm(jacobian[j])
            cosine, wanted = bent @ jacobian[j] / (length * other), target[i, j]
            if cosine < wanted:
                sine, wanted_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - wanted**2)
                bent += length * (wanted * sine - cosine * wanted_sine) / (other * wanted_sine) * jacobian[j]
            target[i, j] = (1 - beta) * wanted + beta * cosine
        total += bent
    return total


def pcgrad(jacobian: np.ndarray, orders: np.ndarray | None = None) -> np.ndarray:
    """Algorithm 1 of the PCGrad paper on the vectors themselves; row i of `orders` is i's."""
    num_tasks = len(jacobian)
    total = np.zeros(jacobian.shape[1])
    for i, order in enumerate(np.tile(np.arange(num_tasks), (num_tasks, 1)) if orders is None else orders):
        projected = jacobian[i].copy()
        for j in order:
            if j != i and projected @ jacobian[j] < 0:
                projected -= projected @ jacobian[j] / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += projected
    return total


def mgda(jacobian: np.ndarray, normalize: str = "none", losses: np.ndarray | None = None) -> np.ndarray:
    """An active-set solver on the normalised rows, which must be independent; its weights on the rows themselves."""
    num_tasks = len(jacobian)
    lengths = np.linalg.norm(jacobian, axis=1)
    losses = np.ones(num_tasks) if losses is None else losses
    divisor = {"none": np.ones(num_tasks), "l2": lengths, "loss": losses, "loss+": losses * lengths}[normalize]
    rows = jacobian / divisor[:, None]
    rows = rows / np.abs(rows).max()
    constraints = np.hstack([np.ones((num_tasks, 1)), np.eye(num_tasks)])
    bounds = np.r_[1.0, np.zeros(num_tasks)]
    weights = quadprog.solve_qp(rows @ rows.T, np.zeros(num_tasks), constraints, bounds, meq=1)[0]
    return weights @ jacobian


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Adam's recurrence: a function from one gradient after the other to the direction to step against."""
    first, second, count = 0.0, 0.0, 0

    def direction(gradient: np.ndarray) -> np.ndarray:
        nonlocal first, second, count
        count += 1
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        return first / (1 - b1**count) / (np.sqrt(second / (1 - b2**count)) + eps)

    return direction


def nearest_on_simplex(values: np.ndarray) -> np.ndarray:
    """The Euclidean projection on the probability simplex, by bisection on the threshold."""
    low, high = values.min() - 1.0, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - low, 0)
