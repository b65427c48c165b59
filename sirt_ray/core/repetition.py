"""Completions that repeat themselves: how a student degenerates while its answers can be read.

Within a completion, the share of 4-grams that it has had before (rep-4 of Welleck et al. 2020,
section 6), over all completions of a stage. Texts of people have a few percent.
"""

from collections.abc import Mapping

N = 4
"""Words of an n-gram."""
MAX_REPEATED_SHARE = 0.25
"""Largest share of repeated n-grams without a warning."""
WARNING = "repetitive_completions"


def count_ngrams(text: str) -> tuple[int, int]:
    """Return the number of n-grams of a text, and of those that it has had before.

    Example: `count_ngrams("a b c d a b c d")` is (5, 1).
    """
    words = text.split()
    ngrams = list(zip(*(words[start:] for start in range(N)), strict=False))
    return len(ngrams), len(ngrams) - len(set(ngrams))


def repeated_share_of(text: str) -> float:
    """Return the share of repeated n-grams of a text; 0 for one that has none."""
    ngrams, repeated = count_ngrams(text)
    return repeated / ngrams if ngrams else 0.0


def repeated_share(counts: Mapping[str, int]) -> float:
    """Return the share of repeated n-grams, from the counts of a stage; 0 for earlier records."""
    ngrams = counts.get("ngrams", 0)
    return counts["repeated_ngrams"] / ngrams if ngrams else 0.0


def repetition_warning(name: str, counts: Mapping[str, int]) -> str | None:
    """Return what is wrong with the completions of the stage `name`; None if they are usual."""
    share = repeated_share(counts)
    if share <= MAX_REPEATED_SHARE:
        return None
    return (
        f"{name}: {share:.0%} of the {N}-grams of the completions repeat an earlier one of theirs"
        f" (above {MAX_REPEATED_SHARE:.0%}): the model repeats itself until it is cut off. Look"
        " at the texts. Of a student, lower the learning rate or the epochs of the training before,"
        " or raise refine.beta or refine.nll_weight; of a teacher, raise the temperature"
    )
