"""Figures and pictures of the docs: compared with their sources, and found if they have none."""

import hashlib
import json

import pytest
from conftest import REPOSITORY

from docs.figures import find_mistakes, find_pages, update


@pytest.fixture
def page(tmp_path):
    """page(text): a README with this text, beside a few sources."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "results.json").write_text(json.dumps({"rows": [{"top1": 0.98611}]}))
    (tmp_path / "table.md").write_text("| what | x |\n| --- | --- |\n| ours, fast | **1,640** |\n")
    (tmp_path / "code.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "docs" / "a.png").write_bytes(b"png")
    path = tmp_path / "README.md"

    def write(text):
        path.write_text(text)
        return path

    return write


def figure(source, text):
    return f"It is <!-- figure: {source} -->{text}<!-- /figure --> now.\n"


SOURCES = [
    ("results.json rows.0.top1 .2%", "98.61%"),
    ('table.md "ours, fast" x', "1,640"),
    ("lines code.py code.py", "4"),
]


@pytest.mark.parametrize("page_path", find_pages(REPOSITORY), ids=lambda p: p.name)
def test_figures_of_this_repository_agree_with_their_sources(page_path):
    assert find_mistakes(page_path, REPOSITORY) == []


@pytest.mark.parametrize(("source", "text"), SOURCES)
def test_stale_figure_is_found_and_updated(page, tmp_path, source, text):
    assert find_mistakes(page(figure(source, text)), tmp_path) == []
    path = page("first line\n" + figure(source, "99.44%"))
    assert find_mistakes(path, tmp_path) == [f"README.md:2: 99.44% is {text} in {source}"]
    assert update(path.read_text(), tmp_path) == "first line\n" + figure(source, text)


@pytest.mark.parametrize(
    "source",
    ["none.json a .2%", "results.json rows.1.top1 .2%", "results.json rows.0.top1",
     "table.md ours x", 'table.md "ours, fast" y', "lines none.py"],
)  # fmt: skip
def test_source_without_the_figure_is_reported(page, tmp_path, source):
    (mistake,) = find_mistakes(page(figure(source, "1")), tmp_path)
    assert mistake.startswith(f"README.md:1: figure: {source}: ")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Top-1 is 98.6 % here.", ["98.6 %"]),
        ("| a | 69.76% | 89.08% |", ["69.76%", "89.08%"]),
        ("<!-- source: a paper -->\n\n| a | 69.76 % |\n\n<!-- /source -->\n\nand 5 %", ["5 %"]),
        ("<!-- results: command -->\n| 98.6% |\n<!-- end of results -->", []),
        ("`train[:99%]`\n```\n99.44%\n```\n", []),
        ("a 95 % interval, a 95 % confidence interval", []),
    ],
)
def test_percentages_need_a_source(page, tmp_path, text, found):
    mistakes = find_mistakes(page(text), tmp_path)
    assert [m.split(": ", 1)[1].removesuffix(" has no source: mark it as a figure")
            for m in mistakes] == found  # fmt: skip


def test_picture_needs_a_command_and_the_present_source(page, tmp_path):
    image, url = "![A](docs/a.png)\n", "![A](https://example.org/a.png)\n"
    assert find_mistakes(page(url), tmp_path) == []
    (mistake,) = find_mistakes(page(image), tmp_path)
    assert "docs/a.png has no source" in mistake
    assert find_mistakes(page("<!-- picture: python -m draw -->\n" + image), tmp_path) == []
    (mistake,) = find_mistakes(page(image.replace("a.png", "b.png")), tmp_path)
    assert "docs/b.png does not exist" in mistake

    digest = hashlib.sha256((tmp_path / "code.py").read_bytes()).hexdigest()[:12]
    text = f"<!-- picture: python -m draw from code.py {digest} -->\n{image}"
    assert find_mistakes(page(text), tmp_path) == []
    (tmp_path / "code.py").write_text("a = 2\n")
    (mistake,) = find_mistakes(page(text), tmp_path)
    assert "code.py has changed since docs/a.png was drawn: run python -m draw" in mistake
    (mistake,) = find_mistakes(page(text.replace("code.py", "none.py")), tmp_path)
    assert "none.py, the source of docs/a.png, does not exist" in mistake
