"""The orderings that the paper claims (Ranaldi and Freitas 2024, arXiv 2405.00402), held against a
study's comparisons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sirt_ray.report.comparison import Comparison, Row, compared, shared_seeds
from sirt_ray.report.document import Column, Grid
from sirt_ray.report.evidence import estimate

_BOTH = ("in-domain", "out-domain")
_NEAR = ("in-domain",)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A row of role `before` is less accurate than one of role `after`."""

    before: str
    after: str
    domains: Sequence[str]
    source: str
    """The section where the paper says so."""


_DPO_ONLY = "self_refine without tuning"

_CLAIMS = (
    _Claim("baseline", "instruction_tuning", _NEAR, "4.1, Figures 2, 3"),
    _Claim("instruction_tuning", "self_refine", _BOTH, "4.2, 4.3, Table 1"),
    _Claim("baseline", "self_refine", _BOTH, "4.2, 4.3, Table 1"),
    _Claim("instruction_tuning", _DPO_ONLY, _NEAR, "4.4, Figure 4"),
    _Claim(_DPO_ONLY, "self_refine", _NEAR, "4.4, Figure 4"),
    _Claim("instruction_tuning", "self_refine_rounds", _BOTH, "in rounds"),
)


_TITLE = "Orderings that the paper claims"
_NOTE = (
    "Of the mean over tasks with CoT prompts, or plain ones where there are no others: the"
    " difference in points and its 95 % interval, over seeds by Student's t where there are"
    " several, over questions by paired bootstrap where there is one. Reproduced: the interval"
    " lies above 0. Not reproduced: below. Undecided: 0 is in it. In brackets: the section of"
    " Ranaldi and Freitas 2024 (arXiv 2405.00402) that claims it; rounds are this project's own."
)


def orderings(comparisons: Sequence[Comparison]) -> list[Grid]:
    """Each claim that a comparison has rows for, and whether it holds there: one grid of all where
    there is one comparison, one for each claim where there are several."""
    found: dict[str, list[list[str]]] = {}
    for comparison in comparisons:
        for claim, before, after in _pairs(comparison):
            title, setting = _TITLE, f"{before.label}\n< {after.label}\n({claim.source})"
            if comparison.setting:
                title = f"Ordering: {before.label} < {after.label} ({claim.source})"
                setting = comparison.setting.replace(", ", ",\n")
            verdicts = [_judged(comparison, claim, before, after, domain) for domain in _BOTH]
            seeds = str(len(shared_seeds(before, after)))
            found.setdefault(title, []).append([setting, seeds, *verdicts])
    columns = [Column("seeds"), *(Column("mean", domain) for domain in _BOTH)]
    grids = [Grid(title, "", columns, rows) for title, rows in found.items()]
    return [*grids[:-1], *(replace(grid, note=_NOTE) for grid in grids[-1:])]


def _pairs(comparison: Comparison) -> Iterator[tuple[_Claim, Row, Row]]:
    for claim in _CLAIMS:
        before = [row for row in comparison.rows if row.role == claim.before]
        after = [row for row in comparison.rows if row.role == claim.after]
        for pair in product(before, after):
            yield claim, *pair


def _judged(comparison: Comparison, claim: _Claim, before: Row, after: Row, domain: str) -> str:
    if domain not in claim.domains:
        return "not claimed"
    tasks, kinds = comparison.tasks(after, domain), comparison.prompts
    found = compared(before, after, tasks, kinds[0]) if kinds else []
    if not tasks:
        return "no such task"
    if not shared_seeds(before, after):
        return "not finished"
    if len(found) < len(shared_seeds(before, after)):
        return "other questions"
    difference, low, high = estimate(found)
    verdict = "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided"
    return f"{verdict}\n{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
