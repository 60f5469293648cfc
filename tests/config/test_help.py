"""What the commands print about config fields and configs."""

import pytest
from conftest import REPOSITORY

from imagenet_jax import eval as evaluate
from imagenet_jax import main as train_command
from imagenet_jax.config.fields import fields_of_model
from imagenet_jax.config.python_files import list_configs
from imagenet_jax.errors import UserError


def printed(command, args, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as e:
        command.main(args)
    assert not e.value.code
    return capsys.readouterr().out


def test_help_config_has_every_field_with_its_default_range_and_meaning(capsys, monkeypatch):
    out = printed(train_command, ["--help_config"], capsys, monkeypatch)
    fields = [line.split()[0] for line in out.splitlines() if line[:1] == " " and line[1].isalpha()]
    assert fields[0] == "field" and fields[1:] == list(fields_of_model("resnet50"))
    (row,) = [line for line in out.splitlines() if line.strip().startswith("ema.power")]
    assert "0.666667" in row and "above 0" in row and "Only with ema.form = timm" in row


def test_help_config_takes_a_prefix_and_the_model_of_a_config(capsys, monkeypatch):
    args = [f"--config={REPOSITORY}/configs/vgg.py:vgg11_bn", "--help_config=model.d"]
    out = printed(evaluate, args, capsys, monkeypatch)
    assert "vgg11_bn" in out and "Dropout rate" in out
    assert "model.dtype" in out and "model.bn_group" not in out and "optim" not in out


def test_a_prefix_of_nothing_is_an_error():
    with pytest.raises(UserError, match="no config field starts with 'zzz'"):
        train_command.main(["--help_config=zzz"])


def test_every_config_and_variant_is_listed_with_a_line():
    configs = list_configs(REPOSITORY / "configs")
    assert all(configs.values())
    assert configs[f"{REPOSITORY}/configs/swin.py:swin_t"] == "Swin-T: 81.47 %, top-5 95.78 %"
    assert configs[f"{REPOSITORY}/configs/resnet50.py:a3"].startswith("78.05 %")
    assert configs[f"{REPOSITORY}/configs/vgg.py:vgg16"] == "VGG-16: 71.59 %, top-5 90.38 %"
