"""The verifier on golden cases: what a reader would say the final answer is."""

import pytest

from sirt_ray.types import Judgement
from sirt_ray.verifier import answers, numerals

CITIES = ("Michigan", "New York", "Amsterdam", "Venice", "Bridge")
BANKS = ("bank", "river bank", "library", "a mall")

NUMBERS = [
    # marks
    ("She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18", "18"),
    ("#### 1,234", "1234"),
    ("#### $18 dollars", "18"),
    ("9 * 2 = 18\nA: 18", "18"),
    ("Answer: 18", "18"),
    ("**Answer:** 18", "18"),
    ("**Answer**: $18.00", "18"),
    ("Final answer: 18 eggs", "18"),
    ("Answer:\n\n18", "18"),
    ("Answer: 18\n\nExplanation: 16 - 7 = 9 and 9 * 2 is 18, over 3 days.", "18"),
    ("The answer is 18.", "18"),
    ("The answer is: 18", "18"),
    ("The answer is **18**.", "18"),
    ("the final answer is 18", "18"),
    ("The answer is $18.", "18"),
    ("The answer is \\$18.", "18"),
    ("The answer is $18$ dollars.", "18"),
    ("The answer is $$\n18\n$$", "18"),
    ("The answer is therefore 18.", "18"),
    ("The answer, therefore, is 18.", "18"),
    ("The answer to the question is 18, as 3 of 20 are broken.", "18"),
    ("The answer (in dollars) is 18.", "18"),
    ("The answer is 9*2=18.", "18"),
    ("The answer is x = 18.", "18"),
    ("The answer is 18 = 9 * 2", "18"),
    ("The answer is 9 * 2 = 18, in 3 days", "18"),
    ("<answer>18</answer>", "18"),
    ("The answer is that she makes 18 dollars.", "18"),
    ("The answer should be 18!", "18"),
    ("So \\boxed{18}.", "18"),
    ("So $x = \\boxed{1{,}800}$, i.e. more than 1000.", "1800"),
    ("\\boxed{18 \\text{ dollars}}", "18"),
    ("\\boxed{\\$18.50}", "18.5"),
    ("\\boxed 18", "18"),
    # forms
    ("The answer is 1,234,567.", "1234567"),
    ("The answer is $1,234.50.", "1234.5"),
    ("The answer is -5.", "-5"),
    ("The answer is \u22125.", "-5"),
    ("The answer is -$5.", "-5"),
    ("The answer is 0.5.", "0.5"),
    ("The answer is .5", "0.5"),
    ("The answer is 18.00", "18"),
    ("The answer is 007", "7"),
    ("The answer is 3/4 of the cake.", "0.75"),
    ("The answer is 1/3.", "1/3"),
    ("The answer is 2 1/2 hours.", "2.5"),
    ("The answer is \\frac{3}{4}.", "0.75"),
    ("The answer is $-\\frac{1}{2}$.", "-0.5"),
    ("The answer is 2\\frac{1}{2}.", "2.5"),
    ("The answer is 25%.", "25%"),
    ("The answer is 25\\%.", "25%"),
    ("The answer is 25 percent.", "25%"),
    ("The answer is 5 million people.", "5000000"),
    ("The answer is 18kg.", "18"),
    ("The answer is €18.", "18"),
    ("The answer is 1.5e3.", "1500"),
    ("The answer is \uff11\uff18.", "18"),
    # which one
    ("First 5, then 7. The answer is 18. That is 3 more than 15.", "18"),
    ("The answer is 5. Wait, that is wrong. The answer is 6.", "6"),
    ("The answer is not 5 but 6.", "6"),
    ("The answer is 18.\n\nQuestion: Tom has 3 apples. How many?\nAnswer: The answer is 3.", "18"),
    ("To answer this, add 3 and 4. That gives 7.", "7"),
    ("Answer: Ducks lay 16 eggs. She eats 3. That leaves 13", "13"),
    ("A: 16 - 3 - 4 = 9 eggs. 9 * 2 = 18.", "18"),
    ("#### Step 1: multiply\n3 * 4 = 12", "12"),
    ("She has 3 boxes on the 2nd day, so 12 eggs on the 3rd", "12"),
    ("9*2=18", "18"),
    ("20-2", "2"),
    (" 18", "18"),
    # nothing to read
    ("", None),
    ("I do not know.", None),
    ("The answer is eighteen.", "18"),
    ("The answer is 18 or 20.", None),
    ("The answer is 18 or 20.\n\nQuestion: And then?\nAnswer: 7", None),
    ("The answer is not 18.", None),
    ("The answer is 1/0.", None),
    ("B2B H2O x2", None),
    ("9" * 100_000, None),
]

CHOICES = [
    *[
        (text, CITIES, "D")
        for text in (
            "D",
            "d",
            "(D)",
            "(d)",
            "D)",
            "D.",
            "[D]",
            "**D**",
            "**(D)**",
            " D\n",
            "D) Venice",
            "D: Venice",
            "D. Venice",
            "D Venice",
            "D\n\nVenice has many canals, unlike Amsterdam.",
            "The answer is D",
            "The answer is d.",
            "The answer is (D).",
            "The answer is **D**.",
            "The answer is **D) Venice**.",
            "The answer is: D) Venice",
            "The correct answer is: D) Venice",
            "The correct answer is D) Venice, because it is in Italy.",
            "The answer is D because A and C are not in Southern Europe.",
            "The answer is option D.",
            "The correct option is D.",
            "Answer: D",
            "**Answer:** D) Venice",
            "Final answer: (D)",
            "Canals are in Venice.\nAnswer: (D) Venice",
            "#### D",
            "\\boxed{D}",
            "\\boxed{\\text{D}}",
            "$\\boxed{\\text{(D)}}$",
            "Option D is correct.",
            "(D) is the correct answer.",
            "D is the best answer.",
            "I would go with (D).",
            "I choose D.",
            "The answer is \u201cVenice\u201d.",
            "The answer is Venice.",
            "Answer: Venice",
            "Venice",
            "venice.",
            "It is Venice",
            "The answer is D, not A.",
            "The answer is not (A). The answer is (D).",
            "The answer is most likely D.",
            "The answer is \u2018D\u2019",
            "<answer>D</answer>",
            "My choice: D",
            "Canals are in Venice, thus it is D.",
            "I believe the answer is D) Venice. A) Michigan is incorrect.",
            "We can rule out A, B and C. The answer is D.",
            "Amsterdam is in the Netherlands. So it must be Venice.",
            "A) is in America. B) too. C) is in the north. The answer is D.",
            "Tom 30 > Mia 20. The tallest is Tom. Tom is D. The answer is D.",
            "The answer is D.\n\nQuestion: What else?\nAnswer: The answer is B.",
            "The answer is Venice. Therefore the correct answer is D.",
        )
    ],
    *[
        (text, CITIES, None)
        for text in (
            "",
            "I do not know.",
            "The answer is A. The answer is D.",
            "The answer is A or D.",
            "The answer is (A) and (D).",
            "The answer is A, D",
            "The answer is either A or D.",
            "The answer is A) Michigan or D) Venice",
            "D\nA",
            "The options are A, B, C, D",
            "The answer is D) Amsterdam",
            "The answer is F.",
            "The answer is F) Venice",
            "A) Michigan\nB) New York\nC) Amsterdam\nD) Venice\nE) Bridge",
            "A: Michigan\nB: New York\nC: Amsterdam\nD: Venice\nE: Bridge",
            "Amsterdam or Venice",
            "It is not Venice.",
            "The answer is not D.",
            "A dog has four legs.",
            "I think so.",
            "The answer is a dog.",
            "The answer is Paris.",
            "The answer is 18.",
        )
    ],
    ("The answer is river bank.", BANKS, "B"),
    ("The answer is a bank.", BANKS, "A"),
    ("The answer is the mall", BANKS, "D"),
    ("A bank", BANKS, "A"),
    ("The answer is A bank.", BANKS, "A"),
    ("It is a river bank, I think", BANKS, "B"),
    ("The answer is E.", CITIES, "E"),
    ("E", CITIES, "E"),
    ("The answer is E.", BANKS, None),
    ("yes", ("yes", "yes"), None),
    ("The answer is B", (), "B"),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_number_is_read(text: str, expected: str | None) -> None:
    found = answers.extract(text, "number")
    assert (found and found.answer) == expected


@pytest.mark.parametrize(("text", "choices", "expected"), CHOICES)
def test_choice_is_read(text: str, choices: tuple[str, ...], expected: str | None) -> None:
    found = answers.extract(text, "choice", choices)
    assert (found and found.answer) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("18", "18.0", True),
        ("18.00", "$18", True),
        ("1,000", "1000", True),
        ("1/2", "0.5", True),
        ("1/3", "0.3333", True),
        ("1/3", "0.3", False),
        ("18%", "18", True),
        ("18%", "0.18", True),
        ("18%", "0.18%", False),
        ("1000000.5", "1000000", False),
        ("123456789012345678901", "123456789012345678902", False),
        ("-5", "5", False),
        ("18", "eighteen", False),
        ("", "", False),
    ],
)
def test_numbers_are_equal_by_value(one: str, other: str, same: bool) -> None:
    assert numerals.equal(one, other) is same
    assert numerals.equal(other, one) is same


def test_grade_names_all_three_verdicts() -> None:
    for text, reference, kind, expected in (
        ("The answer is 18.00.", "18", "number", ("right", "18", True)),
        ("The answer is 17.", "18", "number", ("wrong", "17", True)),
        ("9 * 2 = 18", "18", "number", ("right", "18", False)),
        ("No idea.", "18", "number", ("unparseable", None, False)),
        ("The answer is (b).", "B", "choice", ("right", "B", True)),
        ("The answer is A.", "B", "choice", ("wrong", "A", True)),
        ("It must be New York, I think.", "B", "choice", ("right", "B", False)),
    ):
        assert answers.grade(text, reference, kind, CITIES) == Judgement(*expected)


def test_reference_that_is_no_number_is_never_right() -> None:
    found = answers.grade("The answer is 18.", "many", "number")
    assert found == Judgement("wrong", "18", stated=True)
