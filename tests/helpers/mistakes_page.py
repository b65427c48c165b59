"""The list of mistakes as a page of the documentation:

python -m tests.helpers.mistakes_page > docs/guide/troubleshooting.md
"""

# ruff: noqa: E501  Lines of the page.

import sys

from tests.helpers.mistakes import CHAPTERS

_HEAD = """\
# Troubleshooting

A command that fails ends with one message: what is wrong, why it cannot work, what to do.

| exit code | meaning |
|---|---|
| 2 | the job file, the arguments or the input data are wrong; nothing was started |
| 1 | a failure while running; what was finished is kept, and the same command continues from there |
| 130 | stopped by Ctrl-C |

`--debug` shows an error's stack trace. An unexpected error names a file with its stack trace, to open an issue with.
`sirt doctor` checks what the machine lacks.

These are not mistakes: a tokenizer whose padding token is its EOS; a teacher and a student with different tokenizers or chat
templates; a tokenizer without a chat template, which gets plain prompts.

A test provokes every row below (`tests/helpers/mistakes.py`), and this page is generated from the same list. In a message, `...` stands
for text that depends on your files.
"""


def page() -> str:
    """Return the page as Markdown."""
    lines = [_HEAD]
    for title, chapter in CHAPTERS.items():
        lines += [f"## {title}\n", "| mistake | code | message | what to do |", "|---|---|---|---|"]
        for one in chapter:
            message = " ... ".join(piece.strip(" :.") for piece in one.says)
            lines.append(f"| {one.what} | {one.exit_code} | {message} | {one.cure.strip()} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
