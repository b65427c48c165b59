"""Pages, by what a parser of HTML finds in them; `integration/report/test_page_in_browser.py` looks
at one in a browser."""

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.cli.main import main
from sirt_ray.core.interfaces import Counts
from sirt_ray.report.document import Column, Document, Grid
from sirt_ray.report.live import LiveReport
from sirt_ray.report.page.pages import document_page, run_page
from sirt_ray.report.page.svg import drawing
from tests.helpers.fakes import Heard
from tests.helpers.written_runs import WrittenStages, write_run

TESTS = {
    "teacher": {"gsm8k": "11111110", "multiarith": "1111"},
    "baseline": {"gsm8k": "00000000", "multiarith": "000?"},
    "round_00": {"gsm8k": "11000000", "multiarith": "1100"},
    "round_01": {"gsm8k": "01111110", "multiarith": "1000"},
}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "</style></p></details><iframe src='https://example.org'></iframe>",
    '" onmouseover="alert(3)" x=\'',
    "{{ 7 * 7 }} {% raw %} <!-- &lt;b&gt; ]]>",
    "\x00\x1b[31m \u202e right to left",
)
MOST_BYTES = 5_000_000


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class Hostile(WrittenStages):
    """Answers with what would be markup, and with very long ones."""

    def evaluate(self, out: Path, **needs: Any) -> Counts:
        counts = super().evaluate(out, **needs)
        rows = parquet.read(out / "part.parquet")
        for place, row in enumerate(rows):
            row["completion"] = HOSTILE[place % len(HOSTILE)] + place % 2 * 2_000 * "long "
            row["extracted"] = HOSTILE[place % len(HOSTILE)]
        parquet.write(out / "part.parquet", rows, parquet.GRADED)
        return counts


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a harmless run."""
    run = write_run(tmp_path_factory.mktemp("runs") / "mine", WrittenStages(TESTS))
    return run_page(run)


def test_what_a_model_writes_never_becomes_markup(html: str, tmp_path: Path) -> None:
    hostile = run_page(write_run(tmp_path / "hostile", Hostile(TESTS)))
    page = Page(hostile)
    assert len(hostile.encode()) < MOST_BYTES
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in Page(html).tags} | {"em"}
    assert len(page.named("script")) == len(page.named("style")) == 1
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    for text in HOSTILE[:-1]:
        assert text in page.text
    assert "\x00" not in hostile and "\x1b" not in hostile and "\ufffd\ufffd[31m" in page.text
    assert "more characters" in page.text


def test_a_page_asks_for_nothing_and_runs_one_script(html: str) -> None:
    page = Page(html)
    (policy,) = (
        found["content"]
        for found in page.named("meta")
        if found.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none';")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    links = [
        value or ""
        for _, found in page.tags
        for name, value in found.items()
        if name in ("src", "href")
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    charts = [found for found in page.named("svg") if found["class"] == "chart"]
    assert len(charts) >= 4 and all(
        found["role"] == "img" and found["aria-label"] for found in charts
    )
    ids = [found["id"] for _, found in page.tags if found.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html))
    assert {name for pair in used for name in pair if name} <= set(ids)


def test_every_score_and_every_drop_is_in_the_page(html: str) -> None:
    page = Page(html)
    for shown in ("25.0 ± 15.3", "+50.0", "p 0.219", "dropped duplicate", "pass@4"):
        assert shown in page.text
    assert "12 of 12 test questions" in page.text
    assert re.search("sirt run .*/mine/config.yaml --set name=mine-again", page.text)


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    shutil.rmtree(run / "round_01")
    (run / "events.jsonl").write_text("no json\n")
    page = Page(run_page(run))
    assert "not finished" in page.text and "round_01/samples" in page.text
    assert re.search(r"1\s+line of events.jsonl and metrics.jsonl cannot be read", page.text)
    for made in ("questions", "demonstrations", "teacher", "baseline", "round_00"):
        shutil.rmtree(run / made)
    page = Page(run_page(run))
    assert "No stage is evaluated yet." in page.text and "There are no questions yet." in page.text


def test_a_document_is_a_page_of_tables_whatever_its_names() -> None:
    grid = Grid("<b>", "corner", [Column("a_b, cot", "in-domain")], [["row\ud800", "1\nsmall"]])
    page = Page(document_page(Document("Title & more", ["One <p>"], [grid])))
    assert "Title & more" in page.text and "One <p>" in page.text and "row\ufffd" in page.text
    assert not page.named("b") and page.named("small")


def test_charts_have_colours_of_the_page_and_names_of_their_own() -> None:
    def chart(name: str) -> str:
        with drawing(name, 'a "label" <b>') as drawn:
            drawn.axes.plot([1, 2], [3, 4], "o-", color="#0b0b05")
            drawn.axes.set_title("$x_1$ & <b>")
        return str(drawn.svg)

    one, other = chart("one"), chart("other")
    assert "var(--blue)" in one and "#0b0b" not in one
    assert "<style" not in one and "<metadata" not in one and "xmlns" not in one
    assert "$x_1$ &amp; &lt;b&gt;" in one and 'aria-label="a &quot;label&quot; &lt;b&gt;"' in one
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert names[0] and not names[0] & names[1]
    assert chart("one") == one


def test_commands_write_the_page_and_say_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", WrittenStages(TESTS))
    refine = {"rounds": 1, "beta": 0.3}
    other = write_run(tmp_path / "other", WrittenStages(TESTS), seed=1, refine=refine)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["compare", str(run), str(other)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'compare.html'}\n"
    page = Page((tmp_path / "compare.html").read_text())
    assert "refine.beta" in page.text and "Difference to mine" in page.text
    assert len([found for found in page.named("svg") if found["class"] == "chart"]) == 8
    assert main(["report", str(run), "--format", "text", "--open"]) == 2
    assert "--open shows a page" in capsys.readouterr().err
    assert main(["compare", str(run), "--format", "text"]) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert main(["compare", str(run), str(run)]) == 2
    assert "given twice" in capsys.readouterr().err


def test_the_page_of_a_run_may_take_a_fiftieth_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, made = [0.0], []

    def page(folders: list[Path]) -> str:
        made.append(now[0])
        now[0] += 2.0
        return "page"

    monkeypatch.setattr("sirt_ray.report.command.report_page", page)
    live = LiveReport(tmp_path, Heard(), clock=lambda: now[0])
    for moment in (0.0, 50.0, 101.9, 102.0, 150.0):
        now[0] = moment
        live.refresh()
    now[0] = 160.0
    live.refresh(last=True)
    assert made == [0.0, 102.0, 160.0]
    assert (tmp_path / "report.html").read_text() == "page"


def test_a_page_that_cannot_be_written_is_logged_once(tmp_path: Path) -> None:
    journal = Heard()
    live = LiveReport(tmp_path, journal)
    for _ in range(3):
        live.refresh(last=True)
    ((kind, message),) = journal.events
    assert kind == "page_failed" and "DataError" in message and "The run continues" in message
