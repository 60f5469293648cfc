"""Published weights by name: the list, what a name sets, and the comparison of accuracies."""

import hashlib
import json
import math

import pytest
from conftest import REPOSITORY

from imagenet_jax import cli, convert, models
from imagenet_jax import config as config_io
from imagenet_jax import eval as eval_command
from imagenet_jax import main as main_command
from imagenet_jax import predict as predict_command
from imagenet_jax.config import fields
from imagenet_jax.errors import UserError
from imagenet_jax.explain import __main__ as explain_command
from imagenet_jax.training.load_weights import read_initial_weights
from imagenet_jax.weights import __main__ as listing
from imagenet_jax.weights import catalog

ENTRIES = catalog.entries()


def test_every_entry_is_of_a_model_of_ours_and_can_be_evaluated():
    names = set(models.names())
    for entry in ENTRIES.values():
        assert entry.model in names
        names_of_fields = {f"model.{field}" for field in entry.fields}
        assert names_of_fields <= set(fields.fields_of_model(entry.model))
        assert entry.resize >= entry.image_size >= 160
        assert entry.interpolation in ("bilinear", "bicubic")
        for accuracy in (entry.top1, entry.top5):
            assert accuracy is None or 50 < accuracy < 99
        assert bool(entry.source) == (entry.top1 is not None)
        if entry.name.startswith("torchvision/"):
            assert len(entry.sha256) == 8
            int(entry.sha256, 16)


# name: model, sizes, interpolation, mean of red, top-1, from the pages of torchvision and timm.
KNOWN = {
    "torchvision/resnet50.v1": ("resnet50", 256, 224, "bilinear", 0.485, 76.130),
    "torchvision/resnet50.v2": ("resnet50", 232, 224, "bilinear", 0.485, 80.858),
    "torchvision/vgg16.v1": ("vgg16", 256, 224, "bilinear", 0.485, 71.592),
    "timm/resnet50.a1_in1k": ("resnet50", 288, 288, "bicubic", 0.485, 81.240),
    "timm/resnet18.a3_in1k": ("resnet18", 235, 224, "bicubic", 0.485, 68.250),
    "timm/resnetv2_50x1_bit.goog_in21k_ft_in1k": (
        "bit_r50x1", 448, 448, "bilinear", 0.5, 80.386,
    ),
    "torchvision/vit_b_16.v1": ("vit_b16", 256, 224, "bilinear", 0.485, 81.072),
    "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k": (
        "vit_b16", 248, 224, "bicubic", 0.5, 85.108,
    ),
    "timm/deit3_small_patch16_224.fb_in1k": ("vit_s16", 248, 224, "bicubic", 0.485, 81.382),
    "google/vit-base-patch16-384": ("vit_b16", 384, 384, "bilinear", 0.5, None),
    "torchvision/vit_l_32.v1": ("vit_l32", 256, 224, "bilinear", 0.485, 76.972),
    "torchvision/vit_h_14.swag_e2e_v1": ("vit_h14", 518, 518, "bicubic", 0.485, 88.552),
    "timm/swin_tiny_patch4_window7_224.ms_in1k": ("swin_t", 248, 224, "bicubic", 0.485, 81.388),
    "microsoft/swin-tiny-patch4-window7-224": ("swin_t", 224, 224, "bicubic", 0.485, None),
    "microsoft/resnet-50": ("resnet50", 256, 224, "bicubic", 0.485, None),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_entries(name):
    e = ENTRIES[name]
    found = (e.model, e.resize, e.image_size, e.interpolation, e.mean[0], e.top1)
    assert found == KNOWN[name]


@pytest.mark.parametrize(
    ("name", "fields_found"),
    [
        ("torchvision/vit_b_16.swag_e2e_v1", {"image_size": 384}),
        ("google/vit-large-patch16-384", {"image_size": 384}),
        ("timm/deit3_base_patch16_224.fb_in1k",
         {"positions": "learned_patches", "layer_scale": 1e-4}),
    ],
)  # fmt: skip
def test_fields_of_vits(name, fields_found):
    assert ENTRIES[name].fields == fields_found


def test_the_list_has_filters(capsys):
    assert listing.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ENTRIES) + 1
    assert listing.main(["--model=resnet50", "--source=torchvision"]) == 0
    _, v1, v2 = capsys.readouterr().out.splitlines()
    assert v1.split() == ["torchvision/resnet50.v1", "resnet50", "256/224", "76.13", "92.86"]
    assert v2.startswith("torchvision/resnet50.v2")
    assert listing.main(["--model=resnet18", "--source=microsoft", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["name"], row["top1"]) == ("microsoft/resnet-18", None)
    with pytest.raises(UserError, match="did you mean 'timm'"):
        listing.main(["--source=tim"])
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        listing.main(["--model=resnet-18"])
    with pytest.raises(UserError, match="no published weights of it have a name"):
        listing.main(["--model=small_cnn"])


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("torchvision/resnet50.v3", "torchvision/resnet50.v2"),
        ("torchvison/resnet50.v2", "torchvision/resnet50.v2"),
        ("microsoft/resnet50", "microsoft/resnet-50"),
        ("qqqq/zzzz", ""),
    ],
)
def test_a_misspelled_name_is_not_taken_for_a_file(text, nearest, fails):
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    message = f"{text!r} is neither a weights file nor a name that python -m imagenet_jax.weights "
    for command, flags in (
        (predict_command, ["photo.png", f"--weights={text}"]),
        (convert, [f"--from={text}", "--to=w.safetensors"]),
        (main_command, ["--config=configs/resnet50.py", "--dry_run", f"--weights={text}"]),
    ):
        fails(command, flags, f"{message}lists{hint}")


def test_files_are_not_taken_for_names(tmp_path):
    for text in ("somewhere/else.pth", "a/b/c", "w", f"{tmp_path}/w"):
        assert catalog.find(text) is None


def test_a_file_goes_before_an_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "resnet50.v1").write_bytes(b"x")
    assert catalog.find("torchvision/resnet50.v1") is None


def test_the_standard_error_is_that_of_a_binomial():
    assert catalog.compare(0.5, 0.5, 10_000) == (True, 0.005)
    agrees, error = catalog.compare(0.80858 + 0.0034, 0.80858, 50_000)
    assert agrees
    assert error == pytest.approx(0.00176, abs=1e-5)
    assert not catalog.compare(0.80858 - 0.0036, 0.80858, 50_000)[0]
    draws = [k / 100 for k in range(101)]
    inside = sum(
        math.comb(100, k) * 0.7**k * 0.3 ** (100 - k)
        for k in range(101) if catalog.compare(draws[k], 0.7, 100)[0]
    )  # fmt: skip
    assert inside == pytest.approx(0.95, abs=0.015)  # of the exact distribution


@pytest.fixture
def published(saved_run, tmp_path, monkeypatch):
    """The name of published weights, which are those of `saved_run`; nothing is downloaded."""
    content = saved_run.config.model
    folder = tmp_path / "cache" / "torchvision"
    folder.mkdir(parents=True)
    path = folder / "tiny-01234567.safetensors"
    convert.main([f"--from={saved_run.workdir}", f"--to={path}"])
    entry = catalog.Entry(
        "torchvision/tiny.v1", "http://127.0.0.1:9/tiny-01234567.safetensors",
        hashlib.sha256(path.read_bytes()).hexdigest()[:8],
        content.name, {k: v for k, v in content.items() if k != "name"},
        16, 16, "bicubic", (0.25, 0.5, 0.75), (0.5, 0.25, 0.125), 90.0, 99.0, "a table",
    )  # fmt: skip
    monkeypatch.setitem(ENTRIES, entry.name, entry)
    monkeypatch.setenv("IMAGENET_JAX_CACHE", str(tmp_path / "cache"))
    return entry.name


def test_a_name_works_offline_wherever_a_file_does(published, tmp_path, digits_path, capsys):
    where = [f"--config.data.path={digits_path}", "--config.data.source=digits"]
    where += ["--config.eval.batch_size=8"]
    capsys.readouterr()
    result = tmp_path / "result.json"
    assert eval_command.main([f"--weights={published}", *where, f"--json={result}"]) == 0
    out, err = capsys.readouterr()
    assert "sets eval.resize = 16, eval.image_size = 16, data.interpolation = bicubic" in err
    line = next(line for line in out.splitlines() if line.startswith(published))
    assert "published 90.00%: does not agree within sampling error, ±3.10%" in line
    assert line.endswith("(source: a table)")
    record = json.loads(result.read_text())
    assert record["measured"]["eval.resize"] == 16
    assert record["measured"]["data.std"] == [0.5, 0.25, 0.125]
    assert record["count"] == 360
    assert record["published"]["top1"] == {
        "published": 0.9, "standard_error": pytest.approx(math.sqrt(0.09 / 360)), "agrees": False
    }  # fmt: skip

    picture = REPOSITORY / "docs" / "quickstart.png"
    assert predict_command.main([str(picture), f"--weights={published}"]) == 0
    shown = [f"--weights={published}", "--methods=gradcam", f"--out={tmp_path}/shown.png"]
    assert explain_command.main([str(picture), *shown]) == 0
    assert convert.main([f"--from={published}", f"--to={tmp_path}/w.safetensors"]) == 0
    config = fields.defaults(ENTRIES[published].model)
    config.model.update(ENTRIES[published].fields)
    config.init.weights = published
    written = (tmp_path / "cache/torchvision/tiny-01234567.safetensors").read_bytes()
    assert read_initial_weights(config).sha256 == hashlib.sha256(written).hexdigest()


def test_flags_go_before_what_a_name_sets(published, capsys):
    args = eval_command.cli.parser("x", "y").parse_args([])
    args.weights, args.config = published, None
    config = cli.load_weights_config(args, [("eval.resize", "20"), ("eval.batch_size", "8")])
    assert (config.eval.resize, config.eval.image_size, config.eval.batch_size) == (20, 16, 8)
    assert config.data.mean == (0.25, 0.5, 0.75)
    assert config.model.width == ENTRIES[published].fields["width"]
    assert "eval.resize" not in capsys.readouterr().err
    args.config = f"{REPOSITORY}/configs/resnet50.py"
    config = cli.load_weights_config(args, [])
    assert (config.model.name, config.eval.resize, config.data.std[2]) == ("resnet50", 16, 0.125)


def test_training_from_a_name_sets_its_pixels(published):
    given = [("init.weights", published), ("data.std", "(1.0,1.0,1.0)"), ("eval.resize", "240")]
    overrides, note = cli.match_initial_weights(given)
    assert note.endswith("sets data.interpolation = bicubic, data.mean = (0.25, 0.5, 0.75)")
    config = config_io.load(f"{REPOSITORY}/configs/transfer.py", overrides)
    assert (config.data.interpolation, config.data.mean) == ("bicubic", (0.25, 0.5, 0.75))
    assert (config.data.std, config.eval.resize, config.eval.image_size) == ((1.0,) * 3, 240, 224)
    assert cli.match_initial_weights([("init.weights", "w.safetensors")])[1] == ""
    assert cli.match_initial_weights([]) == ([], "")


def test_a_file_still_needs_a_config(fails):
    fails(eval_command, ["--weights=w.safetensors"], "--weights=FILE with --config=FILE")
    fails(eval_command, ["--weights=timm/resnet50.a1_in1k", "--workdir=x"], "give either")
