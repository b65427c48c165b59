import random
import re

from sirt_ray.types import Graded, Judgement, Question


def coins(split: str):
    """The rows of `split`, which is "train" or "test"."""
    draw, names = random.Random(split), ("Mia", "Tom") if split == "train" else ("Sam", "Eva")
    for _ in range(400 if split == "train" else 100):
        who, bags, each = draw.choice(names), draw.randint(2, 6), draw.randint(4, 9)
        lost = draw.randint(2, 7)
        text = f"{who} has {bags} bags with {each} coins in each bag. {who} loses {lost}."
        text += f" How many coins does {who} have now?"
        yield {"question": text, "answer": bags * each - lost}


def last_number(text: str, question: Question) -> Judgement:
    """The verifier: the last number of a text is its answer."""
    *_, last = re.findall(r"\d+", text) or [None]
    verdict = "right" if last == question.reference else "wrong" if last else "unparseable"
    return Judgement(verdict, last, stated=last is not None)


def shortest_over_wrong(answers: list[Graded], rng: random.Random):
    """The pair rule: (chosen, rejected) from the student's answers to one question."""
    right = [a for a in answers if a.verdict == "right"]
    best = min(right, key=lambda a: len(a.completion.text), default=None)
    return [(best, a) for a in answers if best and a.verdict == "wrong"]
