"""Names of fields and configs that do not exist: each leads to the one that was meant."""

import json
from pathlib import Path

import pytest

from imagenet_jax import config as config_io
from imagenet_jax.config import help
from imagenet_jax.config.fields import FIELDS, REMOVED, defaults, fields_of_model
from imagenet_jax.errors import UserError

RESNET50 = str(Path(__file__).parents[2] / "configs/resnet50.py")

# The names of fields until November 2026, and those of today.
RENAMED = {
    "optim.peak_lr": "optim.base_lr",
    "optim.reference_batch_size": "optim.base_batch_size",
    "optim.factor": "optim.decay_factor",
    "optim.accumulate": "optim.grad_accum_steps",
    "optim.clip_norm": "optim.grad_clip_norm",
    "data.repeats": "data.repeated_aug",
    "augment.auto": "augment.auto_augment",
    "augment.rand_num_ops": "augment.auto_num_ops",
    "augment.rand_magnitude": "augment.auto_magnitude",
    "augment.rand_deviation": "augment.auto_magnitude_std",
    "augment.erase": "augment.random_erase",
    "augment.erase_fill": "augment.random_erase_fill",
    "augment.jitter": "augment.color_jitter",
    "augment.mix_probability": "augment.mix_prob",
    "augment.mix_switch": "augment.mix_switch_prob",
}

# What people type, and what they mean.
TYPED = {
    "lr": "optim.base_lr",
    "optim.lr": "optim.base_lr",
    "optimizer.lr": "optim.base_lr",
    "learning_rate": "optim.base_lr",
    "optim.learning_rate": "optim.base_lr",
    "optim.rate": "optim.base_lr",
    "base-lr": "optim.base_lr",
    "wd": "optim.weight_decay",
    "optim.wd": "optim.weight_decay",
    "optim.l2": "optim.weight_decay",
    "optim.decay": "optim.weight_decay",
    "weight_decay": "optim.weight_decay",
    "model.weight_decay": "optim.weight_decay",
    "loss.weight_decay": "optim.weight_decay",
    "optim.weigth_decay": "optim.weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "optim.batch": "batch_size",
    "train_batch_size": "batch_size",
    "eval.bs": "eval.batch_size",
    "momentum": "optim.momentum",
    "sgd.momentum": "optim.momentum",
    "optimizer": "optim.name",
    "schedule": "optim.schedule",
    "lr_schedule": "optim.schedule",
    "warmup": "optim.warmup_epochs",
    "beta1": "optim.b1",
    "optim.beta2": "optim.b2",
    "epochs_": "epochs",
    "epoch": "epochs",
    "num_epochs": "epochs",
    "optim.epochs": "epochs",
    "train.epochs": "epochs",
    "smoothing": "loss.label_smoothing",
    "label_smoothing": "loss.label_smoothing",
    "optim.label_smoothing": "loss.label_smoothing",
    "clip_grad": "optim.grad_clip_norm",
    "grad_accum": "optim.grad_accum_steps",
    "ema_decay": "ema.decay",
    "model_ema": "ema.decay",
    "arch": "model.name",
    "model.arch": "model.name",
    "num_classes": "model.num_classes",
    "model.classes": "model.num_classes",
    "precision": "model.dtype",
    "dtype": "model.dtype",
    "pretrained": "init.weights",
    "workers": "data.workers",
    "num_workers": "data.workers",
    "data_dir": "data.path",
    "dataset": "data.source",
    "mixup": "augment.mixup",
    "augment.mixup_alpha": "augment.mixup",
    "cut_mix": "augment.cutmix",
    "randaugment": "augment.auto_augment",
    "drop_path_rate": "model.drop_path",
    "stochastic_depth": "model.drop_path",
    "print_freq": "log.every_steps",
    "profile.step": "profile.steps",
}


def message(field, text="1"):
    with pytest.raises(UserError) as e:
        config_io.load(RESNET50, [(field, text)])
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("old", RENAMED)
def test_a_former_name_says_the_new_one(old, tmp_path):
    want = f"config.{old} is now called config.{RENAMED[old]}"
    assert message(old) == want
    group, leaf = old.split(".")
    assert message(leaf) == f"config.{leaf} is now called config.{RENAMED[old]}"
    tree = json.loads(config_io.to_json(defaults("resnet50")))
    tree[group][leaf] = 1
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=want):
        config_io.load(str(path))
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from imagenet_jax.config.fields import defaults\n"
        f"def get_config(arg=''):\n  c = defaults()\n  c.{old} = 1\n  return c\n"
    )
    with pytest.raises(UserError, match=want):
        config_io.load(str(mine))


def test_a_removed_field_says_what_there_is_instead(monkeypatch):
    monkeypatch.setattr(help, "_fields_of_families", set)
    fields = {name: f for name, f in fields_of_model("resnet50").items() if name not in REMOVED}
    for name in ("model.norm", "model.weight_standardization"):
        text = help.unknown_field(name, fields, "resnet50")
        assert text.startswith(f"config.{name} was removed: ") and "the bit models" in text


@pytest.mark.parametrize("typed", TYPED)
def test_what_people_type_leads_to_the_right_field(typed):
    assert message(typed) == f"config.{typed} is not a field; did you mean config.{TYPED[typed]}?"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("bn_momentum", "config.bn_momentum is not a field; --help_config lists them"),
        ("dropout", "config.model.dropout does not belong to resnet50; its fields are name, "),
        ("model.dropout", "config.model.dropout does not belong to resnet50; its fields are name"),
        ("ema", "config.ema is a group; set one of its fields: decay, every_steps, form"),
        ("optim.batch_size", "did you mean config.batch_size or config.eval.batch_size?"),
        ("image_size", "did you mean config.augment.image_size or config.eval.image_size?"),
    ],
)
def test_a_name_that_means_no_single_field_leads_to_no_unrelated_one(typed, expected):
    assert expected in message(typed)


def test_a_dropout_rate_of_vgg_is_found():
    with pytest.raises(UserError, match=r"did you mean config\.model\.dropout\?"):
        config_io.load(RESNET50, [("model.name", "vgg16"), ("dropout", "0.1")])


def test_no_alias_hides_a_field_and_none_means_two():
    for model in ("resnet50", "vgg16_bn", "bit_r50x1"):
        fields = fields_of_model(model)
        aliases = [alias for field in fields.values() for alias in (*field.aliases, field.was)]
        aliases = [alias for alias in aliases if alias]
        assert len(aliases) == len(set(aliases))
        assert not set(aliases) & set(fields)


def test_every_field_is_documented_and_its_default_is_allowed():
    for name, field in FIELDS.items():
        assert field.doc and not field.doc.endswith("."), name
        assert not field.choices or field.default in field.choices, name
        assert set(field.read_by) <= set(FIELDS), name


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("resnet50", "did you mean configs/resnet50.py?"),
        ("configs/resnet50", "did you mean configs/resnet50.py?"),
        ("configs/vgg16_bn.py", "did you mean configs/vgg.py:vgg16_bn?"),
        ("resnet18", "did you mean configs/resnet.py:resnet18?"),
        ("configs/quikstart.py", "did you mean configs/quickstart.py?"),
        ("nothing_like_it.py", "the shipped ones are in configs/"),
    ],
)
def test_a_missing_config_file_leads_to_the_one_that_was_meant(spec, hint):
    with pytest.raises(UserError, match="does not exist; ") as e:
        config_io.load(spec)
    assert str(e.value).endswith(hint)
