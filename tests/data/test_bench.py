"""The input benchmark as a user runs it, and its advice for rates made up by hand."""

import io
import json

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from imagenet_jax.data import bench, decode
from imagenet_jax.errors import UserError


def _rates(read=10_000, crop=1000, fast=1200, small=2500, now=1900, threads=1900, workers=1700):
    rates = [
        bench.Rate("read", read),
        bench.Rate("decode, whole image", 900),
        bench.Rate("decode and crop", crop),
        bench.Rate("same, resampling=fast", fast),
        bench.Rate("same, stored at 256", small),
        bench.Rate("pipeline, threads=1", now, 1),
        bench.Rate("pipeline, threads=2", threads, 2),
        bench.Rate("pipeline, workers=2", workers, 2),
    ]
    return [rate for rate in rates if rate.images_per_second]


def _says(text, config=None, need=None, **rates):
    return any(text in x for x in bench.advise(config or tiny_config(""), _rates(**rates), need))


def test_advice_follows_from_the_rates():
    assert _says("set --config.data.threads=2", now=1000)
    assert _says("set --config.data.workers=2", now=1000, workers=2500)
    assert not _says("set --config", now=1800)
    assert _says("reading takes 50%", read=2000)
    assert not _says("reading takes")
    assert _says("resampling=fast decodes and crops 1.2 times as fast")
    assert not _says("resampling=fast", fast=0)
    assert not _says("prepare --resize", small=0)
    workers = tiny_config("")
    workers.data.workers = 1
    assert _says("set --config.data.workers=0 --config.data.threads=2", workers, now=1000)
    assert _says("prepare --resize=256` decode and crop 2.5 times as fast")
    assert _says("enough: 2.0 times what is needed", need=950)
    assert _says("not enough: 50% of what is needed, input wait will be near 50%", need=3800)
    assert _says("this needs 4 cores", need=3800, now=950, threads=1900)
    assert _says("nothing to change", fast=1000, small=1000)


@pytest.fixture
def measured(monkeypatch):
    """measured(config): {stage: what each of its calls decodes} without taking any time for it."""

    def measure(config):
        calls, decoded = {}, []
        whole, crop = decode.decode, decode.train_image

        def train_image(encoded, out, uniforms, **options):
            decoded.append((encoded, uniforms.tolist(), options["resampling"]))
            crop(encoded, out, uniforms, **options)

        def rate(stage, count, seconds):
            del decoded[:]
            for i in range(count):
                stage(i)
            calls[len(calls)] = list(decoded)
            return 1.0

        monkeypatch.setattr(decode, "train_image", train_image)
        monkeypatch.setattr(
            decode, "decode", lambda data: (decoded.append((data, None, None)), whole(data))[1]
        )
        monkeypatch.setattr(bench, "_SAMPLE", 24)
        monkeypatch.setattr(bench, "_measure_rate", rate)
        monkeypatch.setattr(bench, "_measure_pipeline", lambda *args: 1.0)
        rates = bench.measure(config, 30.0)
        one_core = [rate.stage for rate in rates[1:] if not rate.stage.startswith("pipeline")]
        return dict(zip(one_core, calls.values(), strict=True)), rates

    return measure


def test_stages_take_the_same_images(measured):
    config = tiny_config("")
    config.data.source = "synthetic"
    config.data.synthetic.update({"images": 40, "classes": 4, "height": 300, "width": 520})
    config.data.workers = 3
    calls, rates = measured(config)
    crops = calls["decode and crop"]
    assert len(crops) == 24  # of 16 different images, each with its own random crop
    assert [image for image, _, _ in calls["decode, whole image"]] == [c[0] for c in crops]
    assert [c[:2] for c in calls["same, resampling=fast"]] == [c[:2] for c in crops]
    stored = calls["same, stored at 256"]
    assert [c[1] for c in stored] == [c[1] for c in crops]
    for (small, _, _), (image, _, _) in zip(stored[:3], crops[:3], strict=True):
        with Image.open(io.BytesIO(small)) as new, Image.open(io.BytesIO(image)) as old:
            assert new.size == (int(256 * 520 / 300), 256)
            mean = np.asarray(old.resize(new.size, Image.Resampling.BOX), float)
            assert abs(np.asarray(new, float) - mean).mean() < 12
    names = [rate.stage for rate in rates if rate.stage.startswith("pipeline")]
    assert names[0] == "pipeline, workers=3" and len(names) == len(set(names))


def test_what_would_change_nothing_is_neither_measured_nor_advised(measured, digits_path):
    config = tiny_config(digits_path)
    config.data.resampling = "fast"
    calls, rates = measured(config)
    assert set(calls) == {"decode, whole image", "decode and crop"}
    assert not any("resize" in line for line in bench.advise(config, rates, None))


@pytest.mark.full
def test_stages_of_a_config_as_a_user_asks(digits_path, capsys):
    argv = ["--config=configs/quickstart.py", f"--config.data.path={digits_path}", "--seconds=0.05"]
    assert bench.main([*argv, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    rates = got["images_per_second"]
    assert {"read", "decode and crop", "pipeline, threads=1"} <= set(rates)
    assert all(rate > 0 for rate in rates.values()) and got["advice"]
    assert bench.main([*argv, "--need=1"]) == 0
    out = capsys.readouterr().out
    assert "ms per image" in out and "- enough:" in out


def test_bad_flags():
    with pytest.raises(UserError, match=r"--need=-1\.0: give a number above 0"):
        bench.main(["--config=configs/quickstart.py", "--need=-1"])
