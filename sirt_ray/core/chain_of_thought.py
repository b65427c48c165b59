"""Whether an answer shows how it was found."""

import re

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|\Z)|\n")
_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 3
"""Of a sentence: `A) Venice.` and `Mr.` are none."""
# Every part is bounded: model output is untrusted, and must not take more than linear time.
_STEP = re.compile(
    r"[0-9)%]\s{0,3}[-+*/x\u00d7\u00f7\u2212]\s{0,3}[$(]{0,2}[0-9][^=\n]{0,40}=\s{0,3}[-$(]{0,2}[0-9]"
)


def has_chain_of_thought(text: str) -> bool:
    """Whether a text reasons before it concludes: it has two sentences or more, or an arithmetic
    step.

    A sentence ends in `.`, `!`, `?` or at the line's end and has three words or more; of two, one
    stands before the conclusion. An arithmetic step is an operation on numbers with its result, as
    in `16 - 7 = 9`. Whether the reasoning is any good is not asked.

    Examples::

        has_chain_of_thought("The answer is 18.") is False
        has_chain_of_thought("16 - 7 = 9, so the answer is 9.") is True
        has_chain_of_thought("Venice is built on canals. The answer is D.") is True
    """
    sentences = [part for part in _SENTENCE_END.split(text) if _long_enough(part)]
    return len(sentences) > 1 or _STEP.search(text) is not None


def _long_enough(sentence: str) -> bool:
    return len(_WORD.findall(sentence)) >= _FEWEST_WORDS
