"""The verifier on how models really end their answers, by where each rule comes from.

`None` as the expected answer: unparseable. The third column says whether the answer is stated, or
guessed from the last thing that the text mentions.
"""

import pytest

from sirt_ray.verifier import answers
from sirt_ray.verifier.statements import FinalAnswer

CITIES = ("Michigan", "New York", "Amsterdam", "Venice", "Bridge")
GOALS = (
    "Pour it onto a plate",
    "Pour it into a jar",
)
NUMERIC = ("0", "4", "2", "6")

Case = tuple[str, str | None, bool]

NUMBERS: dict[str, list[Case]] = {
    "GSM8K's gold solutions (Cobbe et al. 2021): #### and the number": [
        ("9 * 2 = $<<9*2=18>>18\n#### 18", "18", True),
        ("#### 1,080", "1080", True),
        ("#### -5", "-5", True),
        ("#### 18\n\n#### Explanation\nShe sells 9 eggs at $2.", "18", True),
        ("#### Final answer: 18", "18", True),
    ],
    "lm-evaluation-harness, gsm8k, flexible-extract: the last number, as the last resort": [
        ("Janet makes 9 * 2 = $18 every day at the farmers' market.", "18", False),
        ("So the total is **$1,234.50**.", "1234.5", False),
        ("= $1,080", "1080", True),
        ("Thus $x = 5$", "5", False),
        ("She makes **$18** a day from the 9 eggs that are left.", "18", False),
        ("She makes $18 a day.\n\nWould you like to see 2 more examples?", "18", False),
        ("18", "18", True),
        ("**$18.00**", "18", True),
        ("18\n\nExplanation: 9 eggs at $2.", "18", True),
        ("Is it 18?", "18", False),
    ],
    "Wei et al. 2022 and Kojima et al. 2022: The answer is": [
        ("So the answer is 1,234 dollars.", "1234", True),
        ("The final answer is: $\\boxed{3\\frac12}$", "3.5", True),
        ("The answer is: **18**", "18", True),
        ("Therefore, the answer (arabic numerals) is 18.", "18", True),
        ("The answer is around 18 (9 * 2).", "18", True),
        ("The answer is 18 (or 18.00 dollars).", "18", True),
        ("The answer is 1.5 hours, or 90 minutes.", "1.5", True),
        ("The answer is 18 dollars or 20 dollars.", None, False),
        ("The answer would have to be 18, as 9 times 2 makes.", "2", False),
        ("The answer is $9 \\times 2 = 18$ dollars.", "18", True),
        ("The answer is 20% of 50 = 10.", "10", True),
        ("The answer is 2.5 x 10^3.", "2500", True),
        ("The answer is that Janet makes **$18** from 9 eggs.", "18", True),
        ("The answer is as follows: first 3, then 18.\n\nThe answer is 18.", "18", True),
    ],
    "the paper's few-shot format, A: and the number": [
        ("A: 18", "18", True),
        ("A: 18 eggs\n\nQ: Tom has 3 apples and eats 1. How many are left?\nA: 2", "18", True),
    ],
    "base models go on with another question": [
        ("She makes 18.\n\nProblem: Tom has 3 apples.\nSolution: The answer is 3.", "18", False),
        ("The answer is 18.\n\n### Question 2:\nThe answer is 3.", "18", True),
        ("The answer is 18.\n\nHuman: And 5 + 5?\nAssistant: The answer is 10.", "18", True),
        ("The answer is 18.<|im_end|>\n<|im_start|>user\nThe answer is 3.", "18", True),
        ("The answer is 18.</s>The answer is 3.", "18", True),
        ("Sure!\n\n**Question:** 9 eggs at $2?\n\n**Answer:** 18", "18", True),
    ],
    "reasoning models: the answer stands behind the thoughts": [
        ("<think>\nThere are 21 - 15 = 6 trees. Wait, do we", None, False),
        ("<think>The answer is 17. Or 18?</think>\n\nShe makes $18.", "18", False),
        ("<think>9 * 2 = 18</think>\nThe answer is 18.", "18", True),
        ("<think>The answer is 17.</think>", "17", True),
    ],
    "chat models' headings": [
        ("### Final Answer\n\n**18 dollars**\n\nThis is for 9 eggs.", "18", True),
        ("**Final Answer**\n\n18\n\nLet me know if you want 2 more.", "18", True),
        ("**Final Answer:**\n\\[ \\boxed{18} \\]", "18", True),
        ("\\(\\boxed{12}\\)", "12", True),
        ("$$\\boxed{\\text{Janet makes } 18}$$", "18", True),
        ("Answer - 18", "18", True),
        ("Answer: 18\nConfidence: 95%", "18", True),
        ("Answer: 18 (9 eggs at $2)", "18", True),
        ("Answer: $18\n\nLet me know if you have any 2 questions", "18", True),
        ("Answer:\n1. She has 16 eggs.\n2. She keeps 7.\n3. She sells 9 for $18.", "18", False),
        ("the answer:\n\n$$18$$", "18", True),
    ],
    "what a last sentence comes to, as GSM8K's gold solutions say it": [
        ("It takes her 120 / 24 = 5 hours to read 120 pages.", "5", False),
        ("She earns $18 in 5 days.", "18", False),
        ("She bakes 18 cakes for the 12 guests.", "18", False),
        ("She sells 9 eggs, which is 3 more than Tom.", "9", False),
        ("Half of 54 is hers, which is 27.", "27", False),
        ("She has 18 left (9 * 2 for the 9 eggs).", "18", False),
        ("She has 18 left (20 - 2).", "18", False),
        ("It takes 5 days if she reads 20 pages a day.", "5", False),
        ("She pays $18.\n\nNote that 2 eggs were free.", "18", False),
        ("Each costs 3 x 4 = 12, so she pays $24", "24", False),
        ("They sold the 3 cars for $18.", "18", False),
        ("It lasts for 18 days.", "18", False),
        ("The area is $18\\text{ cm}^2$.", "18", False),
    ],
    "what is given or wanted stands behind the answer": [
        ("Lucy will need 5 shelves to hold all 50 books.", "5", False),
        ("So there are 12 left for Tom to share with his 3 friends.", "12", False),
        ("John is 45 miles from home at the end of those 4 hours.", "45", False),
        ("Answer: There are 36 chairs in the 6 rows.", "36", True),
        ("Of the 20 tables he still has to sell 12.", "12", False),
        ("We take 4 twice to find 8 legs.", "8", False),
    ],
    "asides and reasons behind the answer": [
        ("The answer is 5 (since 96 + 73 = 169 and 164 were sold).", "5", True),
        ("The answer is 18. If there were tax, the answer would be 20.", "18", True),
        ("The answer is either 18 or 20.", None, False),
    ],
    "numbers in words, where there are no figures": [
        ("The answer is forty-seven.", "47", True),
        ("So she has two hundred and five apples left.", "205", False),
        ("**Four**", "4", True),
        ("The answer is one.", "1", True),
        (
            "It cannot be said how many the two of them have, as one of them is not named here.",
            None,
            False,
        ),
    ],
    "models that answer in JSON, or in Chinese": [
        ('{"steps": ["9 eggs"], "final_answer": "18"}', "18", True),
        ("\u7b54\u6848\u662f18\u3002", "18", True),
    ],
    "forms of numbers": [
        ("The answer is 18 dollars and 5 cents.", "18.05", True),
        ("The answer is $10k.", "10000", True),
        ("The answer is 10k.", "10", True),
        ("The answer is 1\u202f080.", "1080", True),
        ("The answer is 1\\,080.", "1080", True),
        ("The answer is \u20b918.", "18", True),
        ("The answer is US$18.", "18", True),
        ("The answer is \u221218.", "-18", True),
        ("The answer is $\\frac{36}{2}$.", "18", True),
        ("The answer is 3/4.", "0.75", True),
        ("The answer is 18 \\text{ dollars}.", "18", True),
        ("The answer is $18/day.", "18", True),
        ("The answer is 7.5%.", "7.5%", True),
        ("The answer is 7\u00bd hours.", "7.5", True),
    ],
}

CHOICES: dict[str, list[Case]] = {
    "lm-evaluation-harness, mmlu: a letter, or a letter and the option's text": [
        ("D", "D", True),
        ("(D)", "D", True),
        ("**D) Venice**", "D", True),
        ("D. Venice\n\nExplanation: A is wrong, B and C are too.", "D", True),
        ("D) Venice\n\nA) Michigan is in America.\nC) Amsterdam is not southern.", "D", True),
        ("D\n\nQuestion: What else?\nAnswer: A", "D", True),
    ],
    "Wei et al. 2022, commonsense: So the answer is (d).": [
        ("The answer must be a place with canals. So the answer is (d).", "D", True),
        ("Of the above choices, only Venice has them. So the answer is (d).", "D", True),
        ("So the answer is d, because it has canals.", "D", True),
    ],
    "the zero-shot prompts of Llama 3 and of simple-evals: The best answer is D. / Answer: D": [
        ("The best answer is **(D)**.", "D", True),
        ("The best answer is D.", "D", True),
        ("Answer: D", "D", True),
        ("**Answer: D**", "D", True),
        ("Answer: $D$", "D", True),
        ("Answer:\n\nD", "D", True),
        ("### Answer\n\n**D**\n\n(A) is in America.", "D", True),
        ("Correct option: D", "D", True),
        ("**Correct Answer: D) Venice**\n\nA) Michigan has lakes.", "D", True),
        ("The correct answer is:\n\n**D. Venice**\n\nVenice is known for canals.", "D", True),
        ("The answer choice that fits best is D.", "D", True),
        ("The most appropriate answer here is (D) Venice.", "D", True),
        ("The answer seems to be D.", "D", True),
        ("The correct choice would be D.", "D", True),
        ("The answer is D. A, B and C are elsewhere.", "D", True),
        ("The answer is D, C would be too far north.", "D", True),
    ],
    "MATH's box, which Qwen and DeepSeek use for letters, too": [
        ("\\boxed{D}", "D", True),
        ("\\boxed{\\text{D}}", "D", True),
        ("\\boxed{\\textbf{(D)}~Venice}", "D", True),
        ("$\\boxed{\\text{D. Venice}}$", "D", True),
        ("\\boxed{\\text{Venice}}", "D", True),
    ],
    "chat models choose": [
        ("I'd choose D.", "D", True),
        ("I would go with option (D).", "D", True),
        ("If I had to choose between A and D, I'd pick D.", "D", True),
        ("I would not choose A. I'd choose D.", "D", True),
        ("Option D is correct because A is in America.", "D", True),
        ("D) Venice is the correct answer. (A) is in America.", "D", True),
        ("While C is correct that it has canals, the best answer is D.", "D", True),
        ("C) is wrong, and D is the correct answer.", "D", True),
        ("**D** best fits the question.", "D", True),
        ("(A) has lakes, (B) has not. Therefore, (D) Venice is the place.", "D", False),
        ("It is in Italy, so it must be Venice.", "D", False),
        ("A) has lakes.\nB) has not.\n\nTherefore, Venice is the correct answer.", "D", True),
        ("Although C is possible, D is more likely.", "D", True),
        ("The correct answer is **Venice**.", "D", True),
    ],
    "reasoning models: the answer stands behind the thoughts": [
        ("<think>\nCould it be Venice? I am not sure, maybe", None, False),
        ("<think>The answer is A. No.</think>\n\nThe answer is D.", "D", True),
    ],
    "models that answer in JSON, or in Chinese": [
        ('```json\n{"reasoning": "canals", "answer": "D"}\n```', "D", True),
        ("\u6b63\u786e\u7b54\u6848\u662f\uff08D\uff09\u3002", "D", True),
        ("The answer is `A`.", "A", True),
        ("The answer is \\(A\\).", "A", True),
        ("The answer is: A\nExplanation: A person goes there.", "A", True),
    ],
    "options that are ruled out": [
        ("A is wrong because it is in America. So D.", "D", True),
        ("We can eliminate A, B and C, so we are left with D.", "D", True),
        ("C might seem right, but it is not. The only one that fits is D.", "D", True),
        ("A) Michigan: This is wrong.\nD) Venice: This is correct.", "D", True),
        ("A: Michigan - Incorrect\nD: Venice - Correct", "D", True),
        ("While C is plausible, D is the better choice.", "D", True),
        ("D) Venice is the one that fits best.", "D", True),
    ],
    "a list that says of each option whether it is right": [
        ("A) Michigan - incorrect\nD) Venice - correct", "D", True),
        ("A) Michigan \u274c\nD) Venice \u2705", "D", True),
    ],
    "texts of options that are ruled out": [
        ("Michigan is unlikely. Amsterdam cannot be it, too.", None, False),
        ("Michigan is unlikely, so perhaps Venice", "D", False),
        ("None of the given options fits. Venice comes near.", None, False),
    ],
    "a letter that is taken back": [
        ("The answer is A. Wait, that's not right. The answer is D.", "D", True),
        ("At first the answer seems to be A, but on closer inspection the answer is D.", "D", True),
        ("The answer is D. Wait, let me double-check. The answer is D.", "D", True),
        ("If it were about lakes, the answer would be A. The answer is D.", "D", True),
        ("The answer is D. (A) would be correct if it were about lakes.", "D", True),
    ],
    "an option's place for its letter": [
        ("The answer is option 4.", "D", True),
        ("The answer is 4.", "D", True),
        ("The answer is 7.", None, False),
    ],
    "two different letters as the answer are none": [
        ("It is hard to say whether A or D is correct.", None, False),
        ("The answer is A. But the answer is also D.", None, False),
        ("The answer is A or D.", None, False),
        ("D is the correct answer. A is the correct answer.", None, False),
        ("(A) and (D)", None, False),
        ("I'd choose A. I'd choose D.", None, False),
        ("A) Michigan\nB) New York\nC) Amsterdam\nD) Venice\nE) Bridge", None, False),
        ("Both A and D could be right.", None, False),
    ],
}


def cases(table: dict[str, list[Case]]) -> list[object]:
    return [
        pytest.param(*case, id=f"{source}: {case[0]}".encode("unicode_escape").decode())
        for source, told in table.items()
        for case in told
    ]


def expectation(answer: str | None, stated: bool) -> FinalAnswer | None:
    return None if answer is None else FinalAnswer(answer, stated)


@pytest.mark.parametrize(("text", "answer", "stated"), cases(NUMBERS))
def test_number(text: str, answer: str | None, stated: bool) -> None:
    assert answers.extract(text, "number") == expectation(answer, stated)


@pytest.mark.parametrize(("text", "answer", "stated"), cases(CHOICES))
def test_choice(text: str, answer: str | None, stated: bool) -> None:
    assert answers.extract(text, "choice", CITIES) == expectation(answer, stated)


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("The answer is 2.", NUMERIC, "C"),
        ("The answer is C) 2, since 4 - 2 = 2.", NUMERIC, "C"),
        ("The answer is: pour it into a jar", GOALS, "B"),
        ("B) Pour it into a jar. It will not spill as on a plate.", GOALS, "B"),
        ("The best solution is to pour it into a jar.", GOALS, "B"),
    ],
)
def test_choice_among_other_options(text: str, choices: tuple[str, ...], letter: str) -> None:
    found = answers.extract(text, "choice", choices)
    assert found is not None and found.answer == letter
