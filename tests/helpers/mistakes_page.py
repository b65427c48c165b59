"""The list of mistakes as a page of the documentation:

python -m tests.helpers.mistakes_page > docs/guide/troubleshooting.md
"""

import sys

from tests.helpers.mistakes import CHAPTERS

_HEAD = """\
# When something goes wrong

A command that cannot do its work ends with one message: what is wrong, why it cannot work, what
to do. Its exit code is 2 where the job file, the arguments or the input data are wrong and
nothing has been started, and 1 for a failure while running: what was finished is kept, and the
same command continues behind it. After Ctrl-C it is 130. `--debug` shows an error's stack trace.
An error that nobody has thought of says so, and names a file with its stack trace to open an
issue with; `sirt doctor` looks for what the machine lacks.

No mistakes: a tokenizer whose padding is its EOS; a teacher and a student with different
tokenizers or chat templates; a tokenizer without a chat template, which gets plain prompts.

Every line below is provoked by a test (`tests/helpers/mistakes.py`), from which this page is made.
"""


def page() -> str:
    lines = [_HEAD]
    for title, chapter in CHAPTERS.items():
        lines += [f"## {title}\n", "| mistake | code | it says | what to do |", "|---|---|---|---|"]
        for one in chapter:
            says = " ... ".join(piece.strip(" :.") for piece in one.says)
            lines.append(f"| {one.what} | {one.exit_code} | {says} | {one.cure.strip()} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
