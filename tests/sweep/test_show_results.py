"""The table of a sweep in its four formats, and the plot, against SciPy and numbers by hand."""

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from imagenet_jax.errors import UserError
from imagenet_jax.sweep.results import SettingResult, compare
from imagenet_jax.sweep.show_results import escape_latex, format_table, plot_sweep

BASE, BETTER, PART, BROKEN = (
    {0: 0.700, 1: 0.710, 2: 0.690},
    {0: 0.752, 1: 0.760, 2: 0.745},
    {0: 0.720, 2: 0.700},
    {},
)
FORMATS = ("text", "markdown", "latex", "csv")
NOTES = ["a note of 5 % & _more_"]


def make_result(name, metric, states, seconds=(30.0,)):
    return SettingResult(
        name, {"base_lr": name, "a_b": "(1, 2)"}, metric, states, seconds, [400.0] * 2
    )


def sweep_rows():
    done = "finished"
    return compare(
        [
            make_result("0.1", BASE, dict.fromkeys(range(3), done)),
            make_result("0.2", BETTER, dict.fromkeys(range(3), done), (60.0, 120.0)),
            make_result("0.3", PART, {0: done, 1: "failed", 2: done}),
            SettingResult(
                "9", {"base_lr": "9", "a_b": ""}, BROKEN, {0: "failed", 1: "failed"}, [], []
            ),
        ],
        "0.1",
    )


def test_csv_agrees_with_scipy():
    rows = list(csv.DictReader(io.StringIO(format_table(sweep_rows(), "top1", NOTES, "csv"))))
    base, better, part, broken = rows
    a, b = list(BETTER.values()), list(BASE.values())
    assert float(better["top1_mean"]) == pytest.approx(np.mean(a))
    assert float(better["top1_sd"]) == pytest.approx(np.std(a, ddof=1))
    test = stats.ttest_rel(a, b)
    assert float(better["p"]) == pytest.approx(test.pvalue)
    # Two comparisons have a p: Holm doubles the smaller one.
    other = stats.ttest_rel(list(PART.values()), [BASE[0], BASE[2]])
    assert part["pairs"] == "2" and (part["p"] == "") == bool(np.isnan(other.pvalue))
    known = [p for p in (test.pvalue, other.pvalue) if not np.isnan(p) and p > 1e-9]
    assert float(better["p_holm"]) == pytest.approx(len(known) * test.pvalue)
    assert float(better["device_seconds"]) == 90.0
    assert (base["baseline"], base["difference"], base["p"]) == ("1", "", "")
    assert (broken["runs"], broken["finished"], broken["failed"]) == ("2", "0", "2")
    assert (broken["top1_mean"], broken["device_seconds"]) == ("", "")


def test_text_and_markdown_have_the_same_cells():
    lines = sweep_rows()
    text = format_table(lines, "top1", NOTES, "text").splitlines()
    markdown = format_table(lines, "top1", NOTES, "markdown").splitlines()
    table = [line.strip("|").split(" | ") for line in markdown[:6]]
    assert {len(row) for row in table} == {10}
    for words, row in zip(text[2:6], table[2:], strict=True):
        cells = [cell.strip().replace("\\", "") for cell in row]
        assert re.split(r"\s{2,}", words) == [cell for cell in cells if cell]
    assert "70.00 ± 2.48" in text[2] and "baseline" in text[2]  # 4.303 * 1.00 / sqrt(3) = 2.484
    assert "+5.23" in text[3]  # the mean of 5.2, 5.0 and 5.5
    assert "2 of 3, 1 failed" in text[4]
    assert text[5].split()[:2] == ["9", "failed"]
    assert text[-1] == NOTES[0]


def read_latex(text):
    """Return the unescaped cells of a booktabs tabular; AssertionError for invalid LaTeX."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    found = re.fullmatch(
        r"\\begin\{tabular\}\{([lrc]+)\}\n\\toprule\n(.*) \\\\\n\\midrule\n(.*) \\\\\n"
        r"\\bottomrule\n\\end\{tabular\}\n?",
        body, re.DOTALL,
    )  # fmt: skip
    assert found, text
    columns, header, rows = found.groups()
    table = [re.split(r"(?<!\\) & ", row) for row in (header, *rows.split(" \\\\\n"))]
    assert {len(row) for row in table} == {len(columns)}
    return [[unescape(cell) for cell in row] for row in table]


def unescape(cell):
    """Return what LaTeX prints; its special characters may occur only in these forms."""
    words = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
        r"\textbar{}": "|", r"$\pm$": "±", "$<$": "<", "$>$": ">", "$-$": "-", "$+$": "+",
        "--": "–",
    } | {f"\\{c}": c for c in "&%$#_{}"}  # fmt: skip
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    left = re.sub(pattern, "", cell)
    assert not re.search(r"[\\&%$#_{}~^<>|]", left), cell
    assert left.isascii(), cell
    return re.sub(pattern, lambda m: words[m[0]], cell)


def test_latex_has_the_cells_of_markdown():
    lines = sweep_rows()
    latex = read_latex(format_table(lines, "top1", NOTES, "latex"))
    markdown = format_table(lines, "top1", NOTES, "markdown").splitlines()[:6]
    del markdown[1]
    plain = [[c.strip().replace("\\", "") for c in row[1:-1].split(" | ")] for row in markdown]
    assert [[cell.strip() for cell in row] for row in latex] == plain


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12))
def test_escaped_latex_prints_any_text_verbatim(text):
    # LaTeX prints two hyphens as a dash; no config value has two in a row.
    text = text.replace("--", "-")
    assert unescape(escape_latex(text)) == text


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_one_seed_gives_no_nan(style, metric):
    lines = compare(
        [
            make_result("0.1", {0: 0.7}, {0: "finished"}),
            make_result("0.2", {0: 0.8}, {0: "finished"}),
        ],
        "0.1",
    )
    text = format_table(lines, metric, [], style)
    assert "nan" not in text.lower() and "inf" not in text.lower().replace("info", "")
    assert not any(line.is_significant for line in lines)
    if style == "text":
        assert ("+10.00" if metric == "top1" else "+0.1000") in text


def test_plot_is_written_and_errors_are_reported(tmp_path):
    out = tmp_path / "new" / "a.png"
    plot_sweep(sweep_rows(), "top1", out)
    with Image.open(out) as picture:
        assert picture.size[0] == 1000
        assert len(picture.convert("RGB").getcolors(10**6)) > 50  # not blank
    with pytest.raises(UserError, match="a.xyz"):
        plot_sweep(sweep_rows(), "top1", tmp_path / "a.xyz")
    with pytest.raises(UserError, match="no run has finished"):
        plot_sweep(compare([make_result("9", {}, {0: "failed"})], "9"), "top1", out)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_seed_does_not_affect_other_settings(bad, tmp_path):
    done = dict.fromkeys(range(3), "finished")
    settings = {"0.1": BASE, "bad": BETTER | {1: bad}, "0.2": BETTER}
    lines = compare([make_result(name, metric, done) for name, metric in settings.items()], "0.1")
    rows = list(csv.DictReader(io.StringIO(format_table(lines, "top1", NOTES, "csv"))))
    assert (rows[1]["top1_mean"], rows[1]["top1_sd"], rows[1]["p"]) == ("nan", "", "")
    test = stats.ttest_rel(list(BETTER.values()), list(BASE.values()))
    assert float(rows[2]["p_holm"]) == pytest.approx(test.pvalue)  # of one comparison
    for style in FORMATS:
        assert "nan" in format_table(lines, "top1", NOTES, style)
    plot_sweep(lines, "top1", tmp_path / "x.png")
