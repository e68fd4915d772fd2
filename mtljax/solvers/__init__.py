"""The K x K problems behind the methods, solved inside jit with a bounded number of iterations.

Every solver is a pure function of arrays: it can be jitted, vmapped and scanned, and K is read from the shapes. A
Gramian comes in unit-diagonal coordinates, as `cosines[i, j] = g_i.g_j / (|g_i| |g_j|)` (row, column and diagonal
zero where `g_i = 0`) and `norms[i] = |g_i|`; it is never multiplied out, because products of norms leave the range
of float32. No tolerance is absolute: every threshold is a multiple of the machine epsilon of the dtype, applied after
normalisation. Iterations stop when they have converged; under vmap, when all problems have.

One file a problem: `quadratic` (MGDA, UPGrad, DualProj), `cagrad`, `fairness` (Nash-MTL, FairGrad) and `spectral`
(Aligned-MTL).
"""

from mtljax.solvers._linear import finite, normalised, unit_solve
from mtljax.solvers.cagrad import cagrad_combination, cagrad_weights
from mtljax.solvers.fairness import fairness_weights
from mtljax.solvers.quadratic import dual_cone_weights, min_norm_weights, nonnegative_qp, upgrad_weights
from mtljax.solvers.spectral import aligned_weights

__all__ = [
    "aligned_weights",
    "cagrad_combination",
    "cagrad_weights",
    "dual_cone_weights",
    "fairness_weights",
    "finite",
    "min_norm_weights",
    "nonnegative_qp",
    "normalised",
    "unit_solve",
    "upgrad_weights",
]
