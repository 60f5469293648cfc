"""The input benchmark as a user runs it, and its advice for rates made up by hand."""

import json

import pytest
from conftest import tiny_config

from imagenet_jax.data import bench, stages
from imagenet_jax.errors import UserError


def _rates(read=10_000, crop=1000, fast=1200, small=2500, now=1900, threads=1900, workers=1700):
    return [
        stages.Rate("read", read),
        stages.Rate("decode, whole image", 900),
        stages.Rate("decode and crop", crop),
        stages.Rate("same, resampling=fast", fast),
        stages.Rate("same, stored at 256", small),
        stages.Rate("pipeline, threads=1", now, 1),
        stages.Rate("pipeline, threads=2", threads, 2),
        stages.Rate("pipeline, workers=2", workers, 2),
    ]


def _says(text, config=None, need=None, **rates):
    return any(text in x for x in stages.advice(config or tiny_config(""), _rates(**rates), need))


def test_advice_follows_from_the_rates():
    assert _says("set --config.data.threads=2", now=1000)
    assert _says("set --config.data.workers=2", now=1000, workers=2500)
    assert not _says("set --config", now=1800)
    assert _says("reading takes 50%", read=2000)
    assert not _says("reading takes")
    assert _says("resampling=fast decodes and crops 1.2 times as fast")
    fast = tiny_config("")
    fast.data.resampling = "fast"
    assert not _says("resampling=fast", fast)
    assert _says("prepare --resize=256` decode and crop 2.5 times as fast")
    assert _says("enough: 2.0 times what is needed", need=950)
    assert _says("not enough: 50% of what is needed, input wait will be near 50%", need=3800)
    assert _says("that takes 4 cores", need=3800, now=950, threads=1900)
    assert _says("nothing to change", fast=1000, small=1000)


@pytest.mark.slow
def test_stages_of_a_config_as_a_user_asks(digits_path, capsys):
    argv = ["--config=configs/quickstart.py", f"--config.data.path={digits_path}", "--seconds=0.05"]
    assert bench.main([*argv, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    rates = got["images_per_second"]
    assert {"read", "decode and crop", "pipeline, threads=1", "same, stored at 256"} <= set(rates)
    assert all(rate > 0 for rate in rates.values()) and got["advice"]
    assert bench.main([*argv, "--need=1"]) == 0
    out = capsys.readouterr().out
    assert "ms per image" in out and "- enough:" in out


def test_bad_flags():
    with pytest.raises(UserError, match=r"--need=-1\.0: give a number above 0"):
        bench.main(["--config=configs/quickstart.py", "--need=-1"])
