"""`sirt report` and `sirt compare`: folders -> one document or page."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from sirt_ray.errors import DataError
from sirt_ray.report.compare import Side, compare, read_sides
from sirt_ray.report.document import Document, markdown, print_text
from sirt_ray.report.records import read_runs
from sirt_ray.report.run import report_runs
from sirt_ray.report.study import is_study, read_study, report_study
from sirt_ray.storage import atomic, object_store

Printed = Literal["markdown", "text"]


def report_document(folders: Sequence[Path]) -> Document:
    """Return the report of a study, of a run, or of one job's runs under several seeds.

    Raises DataError for a folder that is none of these, for a study among others, and for runs of
    different jobs.
    """
    studies = [folder for folder in folders if is_study(folder)]
    if studies and len(folders) > 1:
        raise DataError(
            f"{studies[0]} is a study's folder, which is reported by itself: its trials are"
            " compared with each other. Give only this folder, or only folders of runs"
        )
    if studies:
        return report_study(read_study(folders[0]))
    return report_runs(read_runs(folders)).document


def report_page(folders: Sequence[Path]) -> str:
    """Return the same as a page; of one run, with charts and examples."""
    from sirt_ray.report.page import pages

    if len(folders) == 1 and not is_study(folders[0]):
        return pages.run_page(folders[0])
    return pages.document_page(report_document(folders))


def compare_document(folders: Sequence[Path]) -> Document:
    """Return a comparison of runs of any jobs. Raises DataError for a folder that is not a run's,
    and for fewer than two."""
    return compare(_sides(folders)).document


def compare_page(folders: Sequence[Path]) -> str:
    from sirt_ray.report.page import pages

    return pages.compare_page(compare(_sides(folders)))


def _sides(folders: Sequence[Path]) -> Sequence[Side]:
    studies = [folder for folder in folders if is_study(folder)]
    if studies:
        raise DataError(
            f"{studies[0]} is a study's folder, whose trials `sirt report {studies[0]}` compares."
            " Give folders of runs, such as those of its trials"
        )
    return read_sides(folders)


def default_page(folders: Sequence[Path], name: str) -> Path:
    """Return the path of the page: in the one folder, or next to several."""
    if len(folders) == 1:
        return folders[0] / name
    return Path(os.path.commonpath([folder.absolute().parent for folder in folders])) / name


def write_document(document: Document, output_format: Printed, out: Path | None) -> None:
    """Print a document as text or Markdown, or write it to `out`."""
    if output_format == "markdown":
        if out is None:
            Console().out(markdown(document), end="", highlight=False)
        else:
            write_report(out, markdown(document))
    elif out is None:
        print_text(document, Console())
    else:
        written = io.StringIO()
        print_text(document, Console(file=written, width=100))
        write_report(out, written.getvalue())


def write_report(out: Path, text: str) -> None:
    """Write atomically, to object storage too: a reader sees the old text or the new. A device is
    written to.

    Raises DataError if it cannot be written.
    """
    where = f"cannot write the report to {object_store.to_uri(out)}"
    if (problem := atomic.output_problem(out)) is not None:
        raise DataError(f"{where}: {problem}, or give another --out")
    try:
        with atomic.output(out) as file:
            file.write(text)
        object_store.push(out)
    except OSError as error:
        raise DataError(f"{where}: {error}. Give another --out") from error
