"""The table of measurements on accelerators in benchmarks/RESULTS.md."""

import json
import subprocess

import pytest
from conftest import REPOSITORY

from benchmarks import accelerator_row
from benchmarks.accelerator_row import TITLE, append_row

STEP = {
    "images_per_second": 2900.4,
    "eval_images_per_second": 9100.0,
    "batch_size": 256,
    "image_size": 224,
}


def rows(page):
    """The cells of each row of the table."""
    section = page.split(TITLE)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_rows_are_appended_to_one_table(tmp_path, capsys):
    page, figures = tmp_path / "RESULTS.md", tmp_path / "figures.jsonl"
    page.write_text("# Results\n\n## Input\n\n| a |\n| --- |\n| 1 |\n")
    measured = {
        "resnet50 plain": STEP,
        "resnet50 moments": STEP | {"images_per_second": 3300.0},
        "input": {"images_per_second": {"read": 9e9, "pipeline, threads=2": 1640.0}},
        "restart": {"cold_seconds": 14.2, "warm_seconds": 6.4},
    }
    figures.write_text(
        "".join(json.dumps({"label": k, "figures": v}) + "\n" for k, v in measured.items())
    )
    for command in ("first", "second"):
        accelerator_row.main([f"--figures={figures}", f"--command={command}", f"--out={page}"])
    text = page.read_text()
    assert text.startswith("# Results\n\n## Input\n\n| a |\n| --- |\n| 1 |\n\n## Accelerators\n")
    header, line, first, second = rows(text)
    row = dict(zip(header, first, strict=True))
    assert row["train step, img/s"].split("; ") == [
        "resnet50 plain 2,900 (256 of 224 px)",
        "resnet50 moments 3,300 (256 of 224 px)",
    ]
    assert row["input, img/s"] == "1,640"
    assert row["cold start and restart"] == "14.2 s, 6.4 s"
    assert row["stall of a save"] == row["loop / step"] == ""  # not measured
    assert (first[-1], second[-1]) == ("`first`", "`second`")
    assert row["device"] == "8 x cpu"


def test_a_row_is_appended_in_front_of_the_next_section():
    page = f"# Results\n\n{TITLE}\n\n| a |\n| --- |\n| 1 |\n\n## Last\n\n| b |\n| --- |\n| 2 |\n"
    want = page.replace("| 1 |\n", "| 1 |\n| new |\n")
    assert append_row(page, "| new |") == want


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--smal", "unknown flag --smal"), ("--minutes=x", "--minutes=x is not a number")],
)
def test_a_wrong_flag_of_the_script_is_one_line(flag, message):
    done = subprocess.run(
        [REPOSITORY / "benchmarks/accelerator.sh", flag], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
