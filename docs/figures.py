"""Check that the figures and pictures of the README and the docs agree with their sources.

  python -m docs.figures            # exit code 1 if one differs or has no source
  python -m docs.figures --write    # put the current figures in

A figure stands between two comments, of which the first names its source:

  <!-- figure: baselines/quickstart/results.json results.0.top1 .2% -->98.61%<!-- /figure -->
  <!-- figure: benchmarks/RESULTS.md "ours, fast" "img/s, 1 core" -->861<!-- /figure -->
  <!-- figure: lines imagenet_jax/train.py -->180<!-- /figure -->

The sources are a value of a JSON file in a Python format, the cell of a Markdown table in the row
and column named, and the total number of lines of some files. Text between `<!-- source: WHERE -->`
and `<!-- /source -->` comes from elsewhere, such as a paper, and is not compared. Every percentage
outside code must be in one of the two, or in the results table that `imagenet_jax.publish` writes.

Above a picture of the repository, a comment names the command that draws it. If the picture shows
what a file of the repository holds, the comment also has that file and the first 12 digits of its
SHA-256, so that a picture of an older file is found:

  <!-- picture: COMMAND from baselines/quickstart/metrics.jsonl 0123456789ab -->
  ![Curves](docs/curves.png)
"""

import argparse
import hashlib
import json
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FIGURE = re.compile(r"(<!-- figure: (.+?) -->)(.*?)(<!-- /figure -->)", re.DOTALL)
_SOURCED = re.compile(
    r"<!-- source: .+?<!-- /source -->|<!-- results: .+?<!-- end of results -->"
    r"|```.+?```|`[^`\n]*`",
    re.DOTALL,
)
_PERCENTAGE = re.compile(r"\d[\d.,]*\s?%(?! (?:confidence )?interval)")
_PICTURE = re.compile(
    r"(?:<!-- picture: (.+?)(?: from (\S+) ([0-9a-f]{12}))? -->\n)?"
    r"!\[[^\]]*\]\((?!https?:)([^)]+)\)"
)


def find_pages(root: Path) -> list[Path]:
    """Return the README and the pages in docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def read_figure(source: str, root: Path) -> str:
    """Return the text of a figure; ValueError if its source does not have it."""
    path, *keys = shlex.split(source)
    try:
        if path == "lines":
            return f"{sum(len((root / k).read_text().splitlines()) for k in keys):,}"
        text = (root / path).read_text()
        if path.endswith(".json"):
            dotted, style = keys
            value = json.loads(text)
            for key in dotted.split("."):
                value = value[int(key) if isinstance(value, list) else key]
            return format(value, style)
        row, column = keys
        return _read_cell(text, row, column)
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ValueError(f"figure: {source}: {type(e).__name__}: {e}") from e


def _read_cell(markdown: str, row: str, column: str) -> str:
    header: list[str] = []
    for line in markdown.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")]
        header = header or cells
        if cells[0] == row and column in header:
            return cells[header.index(column)]
    raise LookupError(f"no table has the row {row!r} and the column {column!r}")


def update(text: str, root: Path) -> str:
    """Return the text of a page with its figures as their sources have them."""
    return _FIGURE.sub(lambda m: m[1] + read_figure(m[2], root) + m[4], text)


def find_mistakes(page: Path, root: Path) -> list[str]:
    """Return a line for each figure and picture that does not agree with its source."""
    text = page.read_text()

    def at(position: int) -> str:
        return f"{page.relative_to(root)}:{text.count(chr(10), 0, position) + 1}: "

    found = []
    for figure in _FIGURE.finditer(text):
        try:
            now = read_figure(figure[2], root)
            message = "" if figure[3] == now else f"{figure[3]} is {now} in {figure[2]}"
        except ValueError as e:
            message = str(e)
        if message:
            found.append(at(figure.start()) + message)
    # Blanked, not removed, so that positions stay.
    plain = text
    for pattern in (_FIGURE, _SOURCED):
        plain = pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), plain)
    for number in _PERCENTAGE.finditer(plain):
        found.append(at(number.start()) + f"{number[0]} has no source: mark it as a figure")
    for picture in _PICTURE.finditer(text):
        message = _check_picture(picture, page, root)
        if message:
            found.append(at(picture.start()) + message)
    return found


def _check_picture(picture: re.Match, page: Path, root: Path) -> str:
    command, source, digest, name = picture.groups()
    if not (page.parent / name).is_file():
        return f"{name} does not exist"
    if not command:
        return f"{name} has no source: add <!-- picture: COMMAND [from FILE SHA256] --> above it"
    if not source:
        return ""
    if not (root / source).is_file():
        return f"{source}, the source of {name}, does not exist"
    now = hashlib.sha256((root / source).read_bytes()).hexdigest()[:12]
    if digest != now:
        return f"{source} has changed since {name} was drawn: run {command}, then write {now} here"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="update the figures in the pages")
    args = parser.parse_args()
    pages = find_pages(ROOT)
    if args.write:
        for page in pages:
            page.write_text(update(page.read_text(), ROOT))
    mistakes = [line for page in pages for line in find_mistakes(page, ROOT)]
    print(*mistakes, sep="\n", file=sys.stderr, end="\n" * bool(mistakes))
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
