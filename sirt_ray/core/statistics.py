"""Uncertainty of accuracies: standard errors, paired comparisons on the same questions, the spread
over seeds, and several samples of one question.

There are two sources of noise. Within one run, a benchmark has a finite number of questions:
`proportion_stderr` and `paired`. Between runs, the seed differs: `over_seeds`.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
"""Resamples of a bootstrap, which determine the ends of its interval to about a tenth of a standard
error."""
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, quantile 0.975, for 1 to 9 degrees of freedom."""


def proportion_stderr(right: int, n: int) -> float:
    """Return the binomial standard error of `right` among `n` questions; 0 for none."""
    share = right / n if n else 0.0
    return math.sqrt(share * (1 - share) / n) if n else 0.0


@dataclass(frozen=True, slots=True)
class Paired:
    """The comparison of two models on the same questions, `after` against `before`.

    Example::

        paired({"q1": True, "q2": False}, {"q1": True, "q2": True}).difference == 0.5
    """

    n: int
    """Number of questions."""
    gained: int
    """Questions that are right after and not before."""
    lost: int
    """Questions that are right before and not after."""
    low: float
    high: float
    """95 % percentile bootstrap interval of `difference`, over questions."""
    p_value: float
    """McNemar's exact test, two-sided: the probability of a split of the changed questions that is
    at least as uneven, by chance."""

    @property
    def difference(self) -> float:
        """Accuracy after minus accuracy before, as a share."""
        return (self.gained - self.lost) / self.n


def paired(before: Mapping[str, bool], after: Mapping[str, bool], seed: int = 0) -> Paired:
    """Compare two models, as question id -> right?. Raises ValueError if the questions differ."""
    if before.keys() != after.keys() or not before:
        raise ValueError("a paired comparison needs the same questions, and at least one")
    gained = sum(after[question] and not before[question] for question in before)
    lost = sum(before[question] and not after[question] for question in before)
    low, high = bootstrap_interval(gained, lost, len(before), seed)
    return Paired(len(before), gained, lost, low, high, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    If nothing had changed, each of the `gained + lost` questions whose answer changed would be as
    likely a gain as a loss: twice the lower tail of Binomial(gained + lost, 1/2), at most 1
    (McNemar 1947; the exact conditional test of Fagerland, Lydersen and Laake 2013,
    doi 10.1186/1471-2288-13-91).
    """
    changed = gained + lost
    ways = tail = 1
    for k in range(min(gained, lost)):
        ways = ways * (changed - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_interval(gained: int, lost: int, n: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the paired difference `(gained - lost) / n` (Efron and
    Tibshirani 1993, chapter 13), the same for the same seed.

    Questions are drawn with replacement, each with both its answers. A question counts +1, -1 or 0,
    so a resample is one multinomial draw of these three counts.
    """
    return _middle(_resampled(gained, lost, n, np.random.default_rng(seed)))


def _resampled(gained: int, lost: int, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the difference in each resample, (RESAMPLES,)."""
    shares = (gained / n, lost / n, (n - gained - lost) / n)
    drawn = rng.multinomial(n, shares, size=RESAMPLES)
    return (drawn[:, 0] - drawn[:, 1]) / n


def _middle(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class MeanPaired:
    """The mean over benchmarks of the differences of two models, with equal weights."""

    difference: float
    low: float
    high: float
    """95 % percentile bootstrap interval; the questions of each benchmark are resampled
    separately."""


def mean_paired(benchmarks: Sequence[Paired], seed: int = 0) -> MeanPaired:
    """Average comparisons on different benchmarks. Raises ValueError for none."""
    if not benchmarks:
        raise ValueError("a mean over benchmarks needs one at least")
    rng = np.random.default_rng(seed)
    drawn = [_resampled(found.gained, found.lost, found.n, rng) for found in benchmarks]
    difference = statistics.fmean(found.difference for found in benchmarks)
    return MeanPaired(difference, *_middle(np.mean(drawn, axis=0)))


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several seeds: its mean and spread."""

    mean: float
    stderr: float
    """Sample standard deviation divided by the root of the number of seeds."""
    low: float
    high: float
    """95 % interval of the mean by Student's t, with (seeds - 1) degrees of freedom."""


def over_seeds(values: Sequence[float]) -> Spread:
    """Return the mean and spread of one figure over seeds; for a difference, pass that of each
    seed.

    If all seeds answer the same questions, the noise of the finite number of questions is in the
    figure and not in its spread. Raises ValueError for fewer than two values: one has no spread.
    """
    if len(values) < 2:
        raise ValueError("a spread over seeds needs two values or more")
    mean = statistics.fmean(values)
    stderr = statistics.stdev(values) / math.sqrt(len(values))
    half = _t_975(len(values) - 1) * stderr
    return Spread(mean, stderr, mean - half, mean + half)


def _t_975(freedom: int) -> float:
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    # Cornish-Fisher expansion (Abramowitz and Stegun, 26.7.5): accurate to 0.001 from here on.
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the probability that at least one of `k` samples is right, from `n` samples with
    `right` right ones: 1 - C(n - right, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374,
    equation 1).

    `k = n` is the oracle's best of n; `k = 1` the accuracy of a sample. Raises ValueError unless
    1 <= k <= n and 0 <= right <= n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} samples with {right} right is not defined")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(samples: Sequence[tuple[str | None, bool]]) -> float:
    """Return whether the most frequent final answer is right (self-consistency, Wang et al. 2023,
    arXiv 2203.11171): 1 or 0; if several are equally frequent, the share of right ones.

    `samples` are (final answer, right?) of one question. A sample without a final answer (None) has
    no vote; without any vote the result is 0. All right answers count as the same answer, whatever
    their spelling. Wrong ones are distinguished by their text, which for numbers and letters is
    their value.
    """
    votes: defaultdict[str | bool, int] = defaultdict(int)
    for answer, right in samples:
        if answer is not None:
            votes[right or answer] += 1
    most = max(votes.values(), default=0)
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(answer is True for answer in winners) / len(winners) if winners else 0.0
