"""How a report's tables are laid out."""

from rich.console import Console

from sirt_ray.report.document import Column, Document, Grid, markdown, print_text

WIDE = Grid(
    "% right",
    "stage",
    (Column("gsm8k, cot", "in-domain"), Column("gsm8k, plain", "in-domain"), Column("math, cot")),
    (("baseline", "1", "2", "3"), ("round_00", "4", "5", "6")),
)


def printed(grid: Grid, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as shown:
        print_text(Document("Report", (), (grid,)), console)
    return [" ".join(line.replace("│", " ").split()) for line in shown.get().splitlines()]


def test_a_terminal_gets_the_longer_side_downwards() -> None:
    lines = printed(WIDE)
    assert "gsm8k, cot, in-domain 1 4" in lines
    assert "math, cot 3 6" in lines


def test_what_is_no_wider_than_long_stays_and_what_is_too_wide_is_cut() -> None:
    square = Grid("x", "stage", WIDE.columns[:2], [row[:3] for row in WIDE.rows])
    assert "baseline 1 2" in printed(square)
    cut = printed(square, width=28)
    assert "baseline 1" in cut and "baseline 2" in cut


def test_markdown_has_tasks_across() -> None:
    assert "| round_00 | 4 | 5 | 6 |" in markdown(Document("Report", (), (WIDE,)))
