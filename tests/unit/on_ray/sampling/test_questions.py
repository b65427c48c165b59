"""Questions by position, from a file."""

from pathlib import Path

import pytest

from sirt_ray.on_ray.sampling.questions import QuestionFile
from sirt_ray.types import Question


def make(count: int) -> list[Question]:
    return [Question(f"toy/train/{at}", "toy", f"{at}?", ("x", "y"), "A") for at in range(count)]


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize(
    ("first", "wanted"), [(0, 1), (0, 32), (1000, 100), (1023, 2), (900, 2000)]
)
def test_any_range_is_read_as_it_was_written(
    tmp_path: Path, count: int, first: int, wanted: int
) -> None:
    questions = make(count)
    assert QuestionFile.write(tmp_path, iter(questions)) == count
    assert QuestionFile(tmp_path).read(first, wanted) == questions[first : first + wanted]


def test_none_at_all(tmp_path: Path) -> None:
    assert QuestionFile.write(tmp_path, []) == 0
    assert QuestionFile(tmp_path).read(0, 5) == []
