"""The README's table of results: against the files of the baselines, and when out of date."""

import json
import shutil

import pytest

from imagenet_jax import publish
from imagenet_jax.baselines.markdown import BEGIN, END


@pytest.fixture
def readme(baseline, tmp_path):
    """A README with markers beside two published baselines."""
    for name in ("tiny", "other"):
        shutil.copytree(baseline, tmp_path / "baselines" / name)
    shutil.copytree(baseline, tmp_path / "baselines" / ".half.part")  # left by a killed publish
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\nbefore\n{BEGIN}\n{END}\nafter\n")
    return path


def test_table_agrees_with_the_files(readme, call_command):
    code, out, _ = call_command(publish, [f"--table={readme}"])
    assert (code, out) == (0, f"{readme}: results of 2 baselines written\n")
    text = readme.read_text()
    assert text.startswith(f"# Title\n\nbefore\n{BEGIN}\n| ")
    assert text.endswith(f" |\n{END}\nafter\n")
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert [row[0] for row in rows] == ["[other](baselines/other/)", "[tiny](baselines/tiny/)"]
    folder = readme.parent / "baselines" / "tiny"
    first = json.loads((folder / "results.json").read_text())["results"][0]
    config = json.loads((folder / "config.json").read_text())
    made_by = json.loads((folder / "provenance.json").read_text())
    cells = dict(zip(header, rows[1], strict=True))
    assert cells["top-1"] == f"{100 * first['top1']:.2f}%"
    assert cells["top-5"] == f"{100 * first['top5']:.2f}%"
    assert (cells["images"], cells["weights"]) == (str(first["count"]), "EMA")
    assert float(cells["loss"]) == pytest.approx(first["loss"], abs=6e-5)
    assert cells["model"] == "small_cnn, width 0.0625"
    assert float(cells["epochs"]) == config["epochs"]
    assert f"batch {config['batch_size']}" in cells["recipe"]
    assert cells["revision"].startswith(f"`{made_by['git_revision'][:7]}`")
    assert ("changes" in cells["revision"]) == made_by["git_dirty"]
    before = readme.read_text()
    assert call_command(publish, [f"--table={readme}"])[:2] == (
        0,
        f"{readme} has the results of 2 baselines\n",
    )
    assert readme.read_text() == before


def test_outdated_table_is_reported_and_not_written(readme, call_command, fails):
    fails(publish, [f"--table={readme}", "--check"], "run python -m imagenet_jax.publish --table")
    call_command(publish, [f"--table={readme}"])
    assert call_command(publish, [f"--table={readme}", "--check"])[0] == 0
    shutil.rmtree(readme.parent / "baselines" / "other")
    before = readme.read_text()
    fails(publish, [f"--table={readme}", "--check"], str(readme))
    assert readme.read_text() == before
    call_command(publish, [f"--table={readme}"])
    results = readme.parent / "baselines" / "tiny" / "results.json"
    tree = json.loads(results.read_text())
    tree["results"][0]["top1"] = 0.123
    results.write_text(json.dumps(tree))
    fails(publish, [f"--table={readme}", "--check"], str(readme))


def test_missing_table_and_damaged_baseline_are_named(readme, tmp_path, fails):
    (tmp_path / "other.md").write_text("# Title\n")
    fails(publish, [f"--table={tmp_path}/other.md"], "no table to replace", BEGIN)
    fails(publish, [f"--table={tmp_path}/none.md"], "none.md cannot be read")
    (readme.parent / "baselines" / "tiny" / "results.json").write_text("{}")
    fails(publish, [f"--table={readme}"], "tiny/results.json is damaged")
