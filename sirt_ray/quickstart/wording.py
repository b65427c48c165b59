"""Words and sizes of the synthetic tasks, in domain and out of domain (`_ood`)."""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("Tom Mia Ann Bob Sam Eva Leo Zoe Max Ida Ben Amy Dan Kim Ray Sue Joe Liz Ned Pam")


@dataclass(frozen=True, slots=True)
class Wording:
    """The vocabulary and the sizes in which a task differs from its `_ood` variant."""

    things: tuple[str, ...]
    boxes: tuple[tuple[str, str], ...]
    """(singular, plural)"""
    gains: tuple[str, ...]
    """Sentences with {name}, {other} and {count}."""
    losses: tuple[str, ...]
    total: str
    """The question that ends a comparison; takes {things}."""
    when: str
    first_counts: tuple[int, int]
    largest_change: int
    num_changes: tuple[int, ...]
    piles: str
    superlatives: tuple[tuple[str, str], ...]
    """(of the largest, of the smallest)"""
    num_piles: tuple[int, ...]
    largest_pile: int


IN_DOMAIN = Wording(
    things=_words("apples coins books cards shells stamps pens balls"),
    boxes=(("box", "boxes"), ("bag", "bags")),
    gains=(
        "{name} buys {count} more.",
        "{name} finds {count} more.",
        "{other} gives {name} {count} more.",
    ),
    losses=("{name} loses {count}.", "{name} gives {count} to {other}.", "{name} sells {count}."),
    total="How many {things} do they have together?",
    when="now",
    first_counts=(5, 30),
    largest_change=20,
    num_changes=(2, 2, 3),
    piles="piles",
    superlatives=(("largest", "smallest"), ("most", "fewest")),
    num_piles=(3, 4),
    largest_pile=60,
)
OUT_OF_DOMAIN = Wording(
    things=_words("marbles stickers cookies buttons beads toys"),
    boxes=(("jar", "jars"), ("crate", "crates")),
    gains=(
        "Then {name} wins {count} more.",
        "{name} gets {count} more from {other}.",
        "Later {name} collects {count} more.",
    ),
    losses=(
        "Then {name} breaks {count}.",
        "{other} takes {count} from {name}.",
        "Later {name} throws away {count}.",
    ),
    total="How many {things} do they have in all?",
    when="in the end",
    first_counts=(10, 50),
    largest_change=30,
    num_changes=(3, 3, 4),
    piles="heaps",
    superlatives=(("biggest", "tiniest"), ("highest", "lowest")),
    num_piles=(4, 5),
    largest_pile=99,
)
