"""Responses as models write them, with answers known beforehand, and mutations of them."""

import random
from collections.abc import Iterator, Sequence

REASONING = (
    "",
    "Let's think step by step.\n16 - 3 - 4 = <<16-3-4=9>>9 eggs are left, so 9 * 2 = $18.\n",
    "**Step 1:** There are 3 boxes of 12 each.\n\n**Step 2:** 3 \\times 12 = 36\n\n",
    "First, let's find out what is asked. Half of them is $\\frac{1}{2} \\cdot 48 = 24$. ",
)
CHOICE_REASONING = (
    "",
    "Let's think step by step. The question asks for what is most likely. ",
    "We can rule out what does not fit.\n\n",
    "People usually do so when they want something, as it is known.\n",
)
STATED_NUMBERS = (
    "#### {n}",
    "The answer is {n}.",
    "So the answer is {n} dollars.",
    "Therefore, the answer is ${n}.",
    "The answer is: **{n}**",
    "A: {n}",
    "Answer: {n}",
    "**Answer:** {n} units",
    "**Final Answer:** {n}",
    "### Final Answer\n\n**{n}**",
    "The final answer is: $\\boxed{{{n}}}$",
    "\\(\\boxed{{{n}}}\\)",
    "\\[ \\boxed{{{n} \\text{{ eggs}}}} \\]",
    "Final Answer: The final answer is ${n}$. I hope it is correct.",
    "<answer>{n}</answer>",
)
GUESSED_NUMBERS = (
    "So in all that makes {n}.",
    "Therefore, she has **{n}** of them.",
    "Thus $x = {n}$",
    "In total: {n} hours",
)
STATED_CHOICES = (
    "{l}",
    "({l}) {t}",
    "**{l}) {t}**",
    "{l}. {t}",
    "The answer is {l}.",
    "The answer is ({l}) {t}.",
    "The correct answer is: {l}) {t}",
    "The correct answer is:\n\n**{l}. {t}**",
    "The best answer is **({l})**.",
    "So the answer is ({l}).",
    "Answer: {l}",
    "**Answer:** {l}) {t}",
    "**Correct Answer: {l}**\n\n({o}) does not fit.",
    "\\boxed{{{l}}}",
    "$\\boxed{{\\text{{{l}}}}}$",
    "Option {l} is correct because {o} does not fit.",
    "I'd choose {l}.",
    "I would go with option ({l}).",
    "The answer is {t}",
    "<answer>{l}</answer>",
    "The answer is {l}, not {o}.",
    "### Answer\n\n**{l}**",
)
EXPRESSIONS = (
    "$\\boxed{{{n}}}$",
    "The final answer is $\\boxed{{{n}}}$.",
    "**Final Answer:**\n\\[ \\boxed{{{n}}} \\]",
    "Final Answer: The final answer is ${n}$. I hope it is correct.",
    "The answer is ${n}$.",
    "Answer: $\\boxed{{{n}}}$",
    "Thus the answer is \\({n}\\).",
)
AFTERWARDS = (
    "",
    "",
    "\n\nLet me know if you have any questions!",
    "\n\nQuestion: Tom has 3 apples and eats 1. How many are left?\nAnswer: The answer is 2.",
    "\n\nWould you like me to explain it in 2 other ways?",
    "<|im_end|>\n<|im_start|>user\nWhat is 5 + 5?",
)
_PIECES = (
    *("\\boxed{", "}", "{", "(", ")", "**", "$", "\\frac{1}{", "\\text{", "#### ", "Answer: "),
    *("The answer is ", " or ", "not ", "\n", " ", "\n\nQuestion: ", "</think>", "A", "(B)", "C)"),
    *(
        "1",
        "9" * 50,
        ",000",
        ".",
        "-",
        "%",
        "/0",
        "=",
        "e9",
        " million",
        "\u0661",
        "\uff11",
        "\u00b2",
    ),
    *("\u2212", "\x00", "\ud800", "\u202e", "\U0001f600", "\u00bd", "\u0130", "?", "!"),
)


def spoken_number(rng: random.Random, number: str, *, stated: bool = True) -> str:
    """A response with a final answer. `number`: plain, as `answers.extract` gives it."""
    template = rng.choice(STATED_NUMBERS if stated else GUESSED_NUMBERS)
    dressed = number
    if number.lstrip("-").isdigit():
        dressed = rng.choice((number, number, f"{int(number):,}", f"{number}.00"))
    after = rng.choice(AFTERWARDS) if stated else ""
    return rng.choice(REASONING) + "\n" + template.format(n=dressed) + after


def spoken_choice(rng: random.Random, choices: Sequence[str], letter: str) -> str:
    """A response that chooses an option."""
    position = "ABCDEFGHIJ".index(letter)
    other = rng.choice([other for other in "ABCDEFGHIJ"[: len(choices)] if other != letter])
    template = rng.choice(STATED_CHOICES)
    # A letter or an option at the very start is one of the dresses; behind reasoning it is none.
    bare = template.startswith(("{l}", "({l}", "**{l}"))
    reasoning = "" if bare else rng.choice(CHOICE_REASONING)
    said = template.format(l=letter, t=choices[position], o=other)
    return reasoning + said + rng.choice(AFTERWARDS[2:3] + AFTERWARDS[:2])


def spoken_expression(rng: random.Random, expression: str) -> str:
    """A response with a formula as the final answer."""
    return rng.choice(REASONING) + "\n" + rng.choice(EXPRESSIONS).format(n=expression)


def mutated(rng: random.Random, text: str) -> str:
    """The text with one to four accidents."""
    for _ in range(rng.randint(1, 4)):
        first, last = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        accident = rng.randrange(6)
        if accident == 0:
            text = text[:first] + text[last:]
        elif accident == 1:
            text = text[:last] + text[first:last] + text[last:]
        elif accident == 2:
            text = text[:first]
        elif accident == 3:
            text = text[:first] + rng.choice(_PIECES) * rng.choice((1, 1, 1, 2, 40)) + text[first:]
        elif accident == 4:
            text = text[:first] + text[first:last].swapcase() + text[last:]
        else:
            text = text[first:last] + text[:first] + text[last:]
        text = text[:4000]
    return text


CITIES = ("Michigan", "New York", "Amsterdam", "Venice", "Bridge")


def mutated_numbers(seed: int) -> Iterator[str]:
    """Without end."""
    rng = random.Random(seed)
    while True:
        number = str(rng.choice((rng.randint(0, 99), rng.randint(-(10**6), 10**6))))
        yield mutated(rng, spoken_number(rng, number, stated=rng.random() < 0.7))


def mutated_choices(seed: int) -> Iterator[str]:
    """Without end; the options are `CITIES`."""
    rng = random.Random(seed)
    while True:
        yield mutated(rng, spoken_choice(rng, CITIES, rng.choice("ABCDE")))


def mutated_expressions(seed: int) -> Iterator[str]:
    """Without end."""
    rng = random.Random(seed)
    formulas = ("x^2 + 2x + 1", "\\frac{1}{2}", "3\\sqrt{2}", "(1, \\pi)", "[0, 1)", "2^{10}")
    while True:
        yield mutated(rng, spoken_expression(rng, mutated(rng, rng.choice(formulas))))
