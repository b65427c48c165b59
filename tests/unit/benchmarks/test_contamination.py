"""Which test questions count as seen in training."""

from sirt_ray.benchmarks.contamination import NGRAM, contamination, ngrams
from sirt_ray.types import Question

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen"


def ask(text: str) -> Question:
    return Question("b/train/0", "b", text, (), "4")


def test_runs_of_words_have_neither_case_nor_punctuation() -> None:
    assert len(WORDS.split()) == NGRAM
    assert ngrams(f"{WORDS}.") == ngrams(WORDS.upper().replace(" ", ", "))
    assert len(ngrams(f"{WORDS} fourteen")) == 2
    assert ngrams("How many?") == {("how", "many")}
    assert ngrams("?!") == set()


def test_texts_and_overlaps_are_counted_for_each_benchmark() -> None:
    train = [ask(f"Anna has {WORDS}."), ask("How many are left?"), ask("?")]
    tests = {
        "near": [
            ask(f"anna  has {WORDS}."),  # the same text
            ask(f"Ben counts {WORDS}, he says"),  # another one around the same words
            ask("How many are left"),  # short, the same words, another text
            ask("How many are left of them?"),  # short, and more than the same words
        ],
        "far": [ask(WORDS.rsplit(maxsplit=1)[0]), ask("!")],
    }
    assert contamination(train, tests) == {
        "near": {"ngram": 13, "test_questions": 4, "same_text": 1, "overlapping": 3},
        "far": {"ngram": 13, "test_questions": 2, "same_text": 0, "overlapping": 0},
    }
