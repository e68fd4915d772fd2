"""What the solvers share: products, scaling, triangular solves and the steps of interior-point methods."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_State = TypeVar("_State")
TO_BOUNDARY = 0.995  # share of the way to the boundary that a step may go


@jax.jit
def unit_solve(cosines: "Float[Array, 'K K']", rhs: "Float[Array, 'K']") -> "Float[Array, 'K']":
    """The shortest solution x of `cosines @ x = rhs`, in the least squares sense where there is none.

    Eigenvalues below the rounding of a Gramian count as zero; one step of refinement takes out the rounding of the
    eigenvectors.

    Args:
        cosines: shape (K, K), unit-diagonal Gramian. A variable with a zero row gets the value 0.
        rhs: shape (K,).

    Returns:
        x, shape (K,).
    """
    live = jnp.diagonal(cosines) > 0
    rhs = jnp.where(live, rhs, 0)
    values, vectors = jnp.linalg.eigh(cosines, symmetrize_input=False)
    kept = values > rounding(rhs)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)

    def solve(b: jax.Array) -> jax.Array:
        return product(vectors, inverse * product(vectors.T, b))

    x = solve(rhs)
    return jnp.where(live, x + solve(rhs - product(cosines, x)), 0)


def rounding(x: jax.Array) -> float:
    """The level below which an eigenvalue of a Gramian of K unit rows is rounding; x is any array of K rows."""
    return 32 * len(x) ** 0.5 * float(jnp.finfo(x.dtype).eps)


def product(matrix: jax.Array, other: jax.Array) -> jax.Array:
    """The matrix product at full precision, whatever the backend's default."""
    return jnp.matmul(matrix, other, precision=lax.Precision.HIGHEST)


def normalised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An array divided by its largest magnitude, and that magnitude; zeros stay zeros."""
    size = jnp.max(jnp.abs(x))
    return x / jnp.where(size > 0, size, 1), size


def finite(x: jax.Array) -> jax.Array:
    """Values beyond the dtype's range, cut to its largest number."""
    limit = jnp.finfo(x.dtype).max
    return jnp.clip(x, -limit, limit)


def on_simplex(w: jax.Array, live: jax.Array) -> jax.Array:
    """Nonnegative weights (K,) divided by their sum; where all are zero, equal ones on the live tasks, else on all."""
    w = jnp.where(jnp.sum(w) > 0, w, jnp.where(jnp.any(live), live, True).astype(w.dtype))
    return w / jnp.sum(w)


def triangular_solve(lower: jax.Array, rhs: jax.Array, *, transpose: bool = False) -> jax.Array:
    """The x with L x = rhs, or L' x = rhs, for lower triangular L (..., K, K); rhs is (..., K) or rows (..., M, K)."""
    rows = rhs if rhs.ndim == lower.ndim else rhs[..., None, :]
    solution = lax.linalg.triangular_solve(lower, rows, left_side=False, lower=True, transpose_a=not transpose)
    return solution.reshape(rhs.shape)


def cholesky_solver(matrix: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The solution for right-hand sides (..., K), or (..., M, K), of the positive definite `matrix`, (..., K, K)."""
    lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
    return lambda rhs: triangular_solve(lower, triangular_solve(lower, rhs), transpose=True)


def longest_step(x: jax.Array, dx: jax.Array) -> jax.Array:
    """The longest step, at most 1, along dx that keeps positive x (K,) off the boundary by a small share."""
    return 1 / jnp.maximum(1, jnp.max(-dx / x) / TO_BOUNDARY)


def centred(predicted: jax.Array, current: jax.Array) -> jax.Array:
    """Mehrotra's target for the complementarity, from its current mean and the mean the predictor would reach."""
    return current * jnp.clip(predicted / current, 0, 1) ** 3


def advance(
    positive: tuple[jax.Array, jax.Array], new: _State, old: _State, done: jax.Array
) -> tuple[_State, jax.Array]:
    """The new iterate and whether it is the last.

    Where rounding (or an unbounded problem) spoiled the new one, the old one is.
    """
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)])
    usable = jnp.all(finite) & (jnp.min(jnp.minimum(*positive)) > 0)
    return jax.tree.map(partial(jnp.where, usable), new, old), done | ~usable


def iterate(iteration: Callable[[_State], tuple[_State, jax.Array]], start: _State, most: int) -> _State:
    """Applies `iteration`, which says whether its result is the last, at most that many times."""

    def body(state: tuple[_State, jax.Array, jax.Array]) -> tuple[_State, jax.Array, jax.Array]:
        value, done = iteration(state[0])
        return value, done, state[2] + 1

    def unfinished(state: tuple[_State, jax.Array, jax.Array]) -> jax.Array:
        return ~state[1] & (state[2] < most)

    return lax.while_loop(unfinished, body, (start, jnp.zeros((), bool), jnp.zeros((), jnp.int32)))[0]
