"""Writers: what reaches the console, metrics.jsonl and the event files."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imagenet_jax.logs.console import ConsoleWriter, Panel
from imagenet_jax.logs.tensorboard import TensorBoardWriter
from imagenet_jax.logs.writers import JsonlWriter, Writers

TRAIN = {
    "epoch": 1.5,
    "loss": 0.25,
    "top1": 0.875,
    "learning_rate": 0.1,
    "images_per_second": 2000.0,
    "input_wait": 0.015,
}
EVAL = {"weights": "ema", "count": 50_000, "top1": 0.7613, "top5": 0.9286, "loss": 0.96}


def test_console_line_has_every_number_in_plain_text():
    stream = io.StringIO()
    console = ConsoleWriter(Panel("m", 1000, 256), stream)
    console.write(600, "train", TRAIN)
    console.write(600, "validation", EVAL)
    console.close()
    train, evaluated = stream.getvalue().splitlines()
    for part in ("600/1000", "1.50", "0.2500", "87.50%", "lr 0.1", "2,000 img/s", "wait 1.5%"):
        assert part in train
    assert "ETA 51.2 s" in train  # 400 steps of 256 at 2,000 a second
    for part in ("validation (EMA weights)", "50000 images", "76.13%", "92.86%", "0.9600"):
        assert part in evaluated
    assert "\x1b" not in stream.getvalue()


def test_a_line_is_never_wrapped_in_a_log():
    stream = io.StringIO()
    ConsoleWriter(Panel("m", 10, 1), stream).say("x" * 500)
    assert stream.getvalue() == "x" * 500 + "\n"


def test_jsonl_keeps_the_lines_up_to_the_checkpoint_and_drops_torn_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (10, 20, 30):
        writer.write(step, "train", {"loss": 1 / step})
    writer.close()
    with path.open("a") as f:
        f.write('{"step": 40, "spl')
    again = JsonlWriter(path, resume_step=20)
    again.write(30, "train", {"loss": 0.5})
    again.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 0.1), (20, 0.05), (30, 0.5)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_history(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "split": "train"}\n')
    JsonlWriter(path, resume_step=0).close()
    assert path.read_text() == ""


def test_tensorboard_shows_each_step_once_after_resumption(tmp_path):
    first = TensorBoardWriter(tmp_path)
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": float(step)})
    first.close()
    second = TensorBoardWriter(tmp_path, resume_step=2)
    second.write(3, "train", {"loss": 30.0})
    second.write(3, "validation", EVAL)
    second.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 30)]
    assert events.Scalars("validation/ema/top1")[0].value == pytest.approx(0.7613)


def test_tensorboard_reads_back_histograms_and_images(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 0.5, 10_000)
    counts, edges = np.histogram(values, bins=200, range=(0.0, 4.0))
    pictures = rng.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    writers = Writers(TensorBoardWriter(tmp_path), JsonlWriter(tmp_path / "m.jsonl"))
    writers.histograms(4, {"weights/head": (counts, edges)})
    writers.images(4, "inputs", pictures)
    writers.images(5, "mistakes", pictures[0])
    writers.close()
    events = EventAccumulator(str(tmp_path), {"images": 0, "histograms": 0}).Reload()
    (event,) = events.Histograms("weights/head")
    histogram = event.histogram_value
    assert event.step == 4
    assert histogram.bucket == counts.tolist()
    assert histogram.bucket_limit == edges[1:].tolist()
    assert histogram.num == counts.sum()
    inside = values[(values >= 0) & (values <= 4)]
    assert histogram.sum == pytest.approx(inside.sum(), rel=1e-3)
    assert histogram.sum_squares == pytest.approx((inside**2).sum(), rel=1e-3)
    for tag, step, expected in [
        ("inputs/0", 4, pictures[0]),
        ("inputs/1", 4, pictures[1]),
        ("mistakes", 5, pictures[0]),
    ]:
        (image,) = events.Images(tag)
        assert (image.step, image.height, image.width) == (step, 5, 7)
        shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(shown, expected)
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_writers_pass_everything_on(tmp_path):
    stream = io.StringIO()
    both = Writers(ConsoleWriter(Panel("m", 10, 4), stream), JsonlWriter(tmp_path / "m.jsonl"))
    both.write(5, "train", TRAIN)
    both.flush()
    both.close()
    assert "5/10" in stream.getvalue()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 5, "split": "train"} | TRAIN
