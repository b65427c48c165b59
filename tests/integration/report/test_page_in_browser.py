"""The page that a real run has written, in a real Chromium without a display.

Screenshots are left in the folder named by SIRT_TEST_OUTPUT, or else in pytest's own.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.report.page.pages import run_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
DRAWN = """svg => [...svg.querySelectorAll("path, use, text")]
  .filter(element => element.getBBox().width > 0).length"""
"""How many parts of a chart take any room."""
MOST_BYTES = 5_000_000
HOSTILE = (
    "</script><script>alert(1)</script><img src=https://example.org/x onerror=alert(2)>",
    "</details></main><style>body{display:none}</style><iframe src=https://example.org></iframe>",
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, headless=True, args=FLAGS
        )
        yield opened
        opened.close()


class Opened:
    """A page with all that it asks for, says and shows in dialogs."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page = browser.new_page()
        self.page.route("**/*", self._route)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dialog)
        self._url = file.resolve().as_uri()
        self.page.goto(self._url)

    def _route(self, route: Any) -> None:
        if route.request.url == self._url:
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def _dialog(self, dialog: Any) -> None:
        self.said.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def shown(self) -> list[Any]:
        return [
            found
            for found in self.page.locator("#example-list > details").all()
            if found.is_visible()
        ]

    def count(self) -> str:
        return self.page.locator("output[name=count]").inner_text()


@pytest.fixture
def opened(browser: Any, finished_run: Path) -> Iterator[Opened]:
    file = finished_run / "report.html"
    assert file.stat().st_size < MOST_BYTES
    found = Opened(browser, file)
    yield found
    assert found.asked == [] and found.said == []
    found.page.close()


def test_all_charts_are_drawn(opened: Opened) -> None:
    titles = opened.page.locator("h2").all_inner_texts()
    assert titles == ["Accuracy", "Funnel", "Pairs", "Training", "Time", "Examples", "Reproduce"]
    charts = opened.page.locator("svg.chart").all()
    # Two benchmarks, two funnels, lengths, one loss and three curves, the timeline.
    assert len(charts) == 2 + 2 + 1 + 1 + 3 + 1
    for chart in charts:
        box = chart.bounding_box()
        assert box["width"] > 250 and box["height"] > 80
        assert chart.get_attribute("aria-label")
        assert chart.evaluate(DRAWN) > 10


def test_the_browser_of_examples_filters_and_searches(opened: Opened) -> None:
    page, everything = opened.page, len(opened.shown())
    assert everything == 48 + 32 and opened.count() == f"{everything} of {everything} shown"
    page.select_option("select[name=change]", "became right")
    flipped = opened.shown()
    assert 0 < len(flipped) < everything
    assert {found.get_attribute("data-change") for found in flipped} == {"became right"}
    page.select_option("select[name=change]", "")
    page.select_option("select[name=part]", "training")
    page.select_option("select[name=benchmark]", "word_problems")
    assert len(opened.shown()) == 16
    first = opened.shown()[0]
    question = first.locator(".question").inner_text().removesuffix("...")
    page.fill("input[name=text]", question.upper())
    assert 1 <= len(opened.shown()) < 16
    first.locator("summary").press("Enter")
    answers = first.locator("article")
    assert answers.count() >= 1 and answers.first.is_visible()
    page.fill("input[name=text]", "no question is like this")
    assert opened.shown() == [] and page.locator("#none").is_visible()


def test_it_is_all_there_without_scripts(browser: Any, finished_run: Path) -> None:
    page = browser.new_page()
    page.route("**/*", lambda route: route.continue_())
    html = (finished_run / "report.html").read_text()
    assert html.count("<script>") == 1
    without = finished_run.parent / "without_script.html"
    without.write_text(html.partition("<script>")[0])
    page.goto(without.as_uri())
    assert page.locator("#example-list > details").count() == 80
    assert page.locator("#example-list > details:visible").count() == 80
    assert not page.locator("#filters").is_visible()
    page.close()


@pytest.mark.parametrize(("scheme", "checked"), [("light", 1280), ("dark", 390)])
def test_it_is_readable_for_everybody(
    opened: Opened, scheme: str, checked: int, tmp_path: Path
) -> None:
    page = opened.page
    page.emulate_media(color_scheme=scheme)
    folder = Path(os.environ.get("SIRT_TEST_OUTPUT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        # Nothing but a table in its own box is wider than a phone.
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.screenshot(path=folder / f"report-{scheme}-{width}.png", full_page=True)
    page.set_viewport_size({"width": checked, "height": 900})
    grave = [
        (found["id"], found["impact"], [node["html"][:200] for node in found["nodes"]][:3])
        for found in axe.Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_a_keyboard_reaches_the_report_first(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_what_models_write_stays_text(browser: Any, finished_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished_run, tmp_path / "hostile")
    for file in parquet.files(run_dir / "round_01/evaluation"):
        rows = parquet.read(file)
        for place, row in enumerate(rows):
            row["completion"] = row["extracted"] = HOSTILE[place // 2 % 2]
        parquet.write(file, rows, parquet.GRADED)
    (tmp_path / "page.html").write_text(run_page(run_dir))
    found = Opened(browser, tmp_path / "page.html")
    assert found.asked == [] and found.said == []
    assert len(found.shown()) == 80
    texts = found.page.locator("article .model").all_text_contents()
    assert {text for text in texts if "<" in text} == set(HOSTILE)
    found.page.close()
