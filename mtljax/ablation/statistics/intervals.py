"""The arithmetic of a study: Δm, intervals over seeds, paired differences, Holm's correction and mean ranks.

Pure functions of numbers; `summary.py` applies them to the records of a study.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

Key = tuple[str, str]  # (task, metric)

LEVEL = 0.95
_ROUNDING = 1e-9  # a spread below this part of the values is rounding


class Interval(NamedTuple):
    """A mean over seeds and its confidence interval, `mean ± half_width`.

    Attributes:
      mean: mean of the finite values; NaN when there is none.
      half_width: half the width of the t-interval; NaN for fewer than two values.
      n: how many values it rests on.
      left_out: how many values were NaN or infinite and are left out.
      std: standard deviation of the values (n - 1 in the denominator); NaN for fewer than two.
    """

    mean: float
    half_width: float
    n: int
    left_out: int = 0
    std: float = math.nan

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half_width

    def text(self, spec: str = ".2f") -> str:
        """The mean, and half of the interval where there is one; `spec` is the format of the mean.

        >>> Interval(1.234, 0.5, 3).text("+.1f")
        '+1.2 ± 0.5'
        """
        if not self.n:
            return "–"
        return f"{self.mean:{spec}}" + (
            "" if math.isnan(self.half_width) else f" ± {self.half_width:{spec.lstrip('+')}}"
        )


class Difference(NamedTuple):
    """A paired difference over common seeds.

    Attributes:
      interval: mean and interval of the differences.
      p_value: of the two-sided paired t-test; NaN for fewer than two common seeds, and for differences without spread
        over the seeds, such as runs that do not depend on the seed: nothing can be concluded from those.
    """

    interval: Interval
    p_value: float


def delta_m(values: Mapping[Key, float], baseline: Mapping[Key, float], higher_is_better: Mapping[Key, bool]) -> float:
    """Mean relative change against single-task training in percent; lower is better, negative beats it.

    Δm = 100 / n Σ_i (-1)^{l_i} (M_i - B_i) / |B_i| over all n metrics of all tasks, l_i = 1 where higher is better
    (arXiv:2311.04698). The absolute value keeps the sign right for metrics that may be negative.

    >>> round(delta_m({("left", "accuracy"): 0.9}, {("left", "accuracy"): 0.8}, {("left", "accuracy"): True}), 6)
    -12.5

    Args:
      values: M by (task, metric); metrics named "loss" are not counted.
      baseline: B for the same keys.
      higher_is_better: the direction of each.

    Returns:
      Δm; NaN where a value is NaN or a B is 0.

    Raises:
      ValueError: if the keys of `values` and `baseline` differ, a direction is missing, or there is no metric.
    """
    keys = {key for key in values if key[1] != "loss"}
    other = {key for key in baseline if key[1] != "loss"}
    if keys != other:
        raise ValueError(
            f"delta_m: only one of values and baseline has {listed(keys ^ other)}; give both the same metrics"
        )
    if missing := keys - set(higher_is_better):
        raise ValueError(f"delta_m: higher_is_better says nothing of {listed(missing)}")
    if not keys:
        raise ValueError("delta_m: there is no metric to compare; metrics named 'loss' are not counted")
    changes = [
        math.nan
        if baseline[key] == 0
        else (-1 if higher_is_better[key] else 1) * (values[key] - baseline[key]) / abs(baseline[key])
        for key in sorted(keys)
    ]
    return 100 * float(np.mean(changes))


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and Student t-interval of independent values, such as one per seed.

    >>> t_interval([1.0, 2.0, 3.0]).n
    3

    Args:
      values: the values; NaN and infinite ones are left out and counted.
      level: confidence level, between 0 and 1.

    Returns:
      The interval; its half width is NaN for fewer than two values.

    Raises:
      ValueError: if the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"t_interval: level must be between 0 and 1, got {level}")
    array = np.asarray(values, float)
    kept = array[np.isfinite(array)]
    n = kept.size
    mean = float(np.mean(kept)) if n else math.nan
    if n < 2:
        return Interval(mean if n else math.nan, math.nan, n, array.size - n)
    std = float(np.std(kept, ddof=1))
    half_width = float(special.stdtrit(n - 1, 0.5 + level / 2)) * std / math.sqrt(n)
    return Interval(mean, half_width, n, array.size - n, std)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Interval and t-test of `values - reference` over the seeds both have, each by seed."""
    seeds = sorted(set(values) & set(reference))
    interval = t_interval([values[seed] - reference[seed] for seed in seeds])
    sizes = [abs(by_seed[seed]) for by_seed in (values, reference) for seed in seeds if math.isfinite(by_seed[seed])]
    if interval.n < 2 or interval.std <= _ROUNDING * max(sizes):
        return Difference(interval, math.nan)
    error = interval.half_width / special.stdtrit(interval.n - 1, 0.5 + LEVEL / 2)
    return Difference(interval, float(2 * special.stdtr(interval.n - 1, -abs(interval.mean) / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's p-values corrected for as many comparisons as there are: all below 0.05 hold together at the 5% level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def mean_ranks(values: np.ndarray, higher_is_better: Sequence[bool]) -> np.ndarray:
    """Mean over metrics of the rank of each method, 1 the best; ties share their mean rank, NaN ranks last.

    >>> mean_ranks(np.array([[0.9, 3.0], [0.8, 2.0], [0.8, 4.0]]), [True, False]).tolist()
    [1.5, 1.75, 2.75]

    Args:
      values: (methods, metrics).
      higher_is_better: the direction of each metric.

    Returns:
      One mean rank a method.
    """
    costs = np.where(higher_is_better, -values, values)
    costs = np.where(np.isnan(costs), np.inf, costs)
    better = (costs[None] < costs[:, None]).sum(1)
    equal = (costs[None] == costs[:, None]).sum(1)
    return (better + (equal + 1) / 2).mean(-1)


def listed(names: Iterable[object]) -> str:
    """Names joined for a sentence; a key is written as its task and metric."""
    return ", ".join(sorted(" ".join(name) if isinstance(name, tuple) else str(name) for name in names))
