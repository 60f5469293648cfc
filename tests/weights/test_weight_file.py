"""What is read of weights files, and what is said of files that are none; without torch."""

import io
import json
import re
import sys
import tarfile
import zipfile

import jax
import numpy as np
import pytest

from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.weights import library_names, state_dicts, weight_file


def safetensors(dtype, shape, data):
    """A file by the format's definition: header's length, header, data."""
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"conv1.weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("dtype", "data", "values"),
    [
        # The bits of each value, by the formats' definitions.
        ("F32", b"\x00\x00\x80\x3f\x00\x00\x00\xc0", [1, -2]),
        ("F16", b"\x00\x3c\x01\x00", [1, 2**-24]),
        ("BF16", b"\x80\x3f\x80\x7e", [1, 2.0**126]),
        ("F8_E4M3", b"\x38\x7e", [1, 448]),
        ("F8_E5M2", b"\x3c\xfb", [1, -57344]),
    ],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_narrow_floats_become_float32(tmp_path, dtype, data, values, name):
    (tmp_path / name).write_bytes(safetensors(dtype, [2], data))
    file = weight_file.read(tmp_path / name)
    assert file.arrays["conv1.weight"].dtype == np.float32
    assert file.arrays["conv1.weight"].tolist() == values
    assert file.note == ""


def test_a_type_that_is_not_supported_is_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors("F8_E8M0", [2], b"\x7f\x7f"))
    with pytest.raises(UserError, match=r"conv1\.weight is of type F8_E8M0"):
        weight_file.read(tmp_path / "w.safetensors")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 640 + 65536, 19280])
def test_a_length_of_header_that_begins_as_a_pickle_or_a_zip_does(tmp_path, length, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"conv1.weight": tensor}).ljust(length).encode()  # spaces may follow it
    data = length.to_bytes(8, "little") + header + b"\x00\x00\x80\x3f"
    assert data.startswith((b"\x80", b"PK"))
    (tmp_path / "w.safetensors").write_bytes(data)
    assert weight_file.read(tmp_path / "w.safetensors").arrays["conv1.weight"].tolist() == [1]


def zip_of(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "content " * 100)
    return buffer.getvalue()


def tar_of(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


POINTER = b"version https://example.org/spec/v1\noid sha256:4d7a2146\nsize 102530333\n"
FILES = {
    "nothing": (b"", "is empty"),
    "git-lfs": (POINTER, "is a Git LFS pointer, not the file itself; run git lfs pull"),
    "page": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head>", "is a web page"),
    "page without a doctype": (b"<HTML lang=en>", "is a web page"),
    "text": (b"Entry not found", "is text, not weights; it begins with 'Entry not found'"),
    "text that is cut in a letter": ("ü".encode() * 600, "is text"),
    "JSON": (b'{"error": "not found"}', "is text"),
    "zip": (zip_of("a.txt", "b.txt"), "is a zip archive not written by torch"),
    "npz": (npz(), "is a NumPy archive"),
    "TorchScript": (zip_of("m/data.pkl", "m/constants.pkl"), "is a TorchScript program"),
    "half of a zip": (zip_of("m/data.pkl")[:300], "is a zip archive that is cut off"),
    "tar": (tar_of("resnet50.pth"), "is a tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "is a gzip archive"),
    "half a header": (safetensors("F32", [1], bytes(4))[:20], "is cut off"),
    "half the data": (safetensors("F32", [4], bytes(16))[:-5], "is cut off"),
    "random bytes": (bytes(range(128, 255)), "begins with 80 81 82 83 84 85 86 87"),
}


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_without_weights_is_identified_by_its_content(tmp_path, name, content, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    data, words = FILES[content]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        weight_file.read(tmp_path / name)
    message = str(caught.value)
    assert words in message
    assert f"weights file {tmp_path / name} cannot be read" in message
    assert "\n" not in message
    assert "weights_only" not in message


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        weight_file.read(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        weight_file.read(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot be read"):
        weight_file.read(tmp_path / "loop")


def test_class_names_are_found_by_content(tmp_path):
    weight_file.save({"x": np.zeros(1)}, tmp_path / "w.safetensors", ("ant", "bee"))
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")
    assert weight_file.load_class_names(tmp_path / "w.bin") == ("ant", "bee")
    (tmp_path / "w.safetensors").write_bytes(zip_of("archive/data.pkl"))
    assert weight_file.load_class_names(tmp_path / "w.safetensors") == ()


def test_pickles_without_torch_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(zip_of("archive/data.pkl"))
    with pytest.raises(UserError, match="needs torch"):
        weight_file.read(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("module.conv1.weight", "conv1.weight"),
        ("_orig_mod.module.layer1.0.bn1.bias", "layer1.0.bn1.bias"),
        ("layer1.0._orig_mod.conv1.weight", "layer1.0.conv1.weight"),
        ("features.module.0.weight", "features.0.weight"),
        ("model.net.backbone.conv1.weight", "conv1.weight"),
        ("module.encoder_q.conv1.weight", "conv1.weight"),
        ("resnet.embedder.embedder.convolution.weight", "conv1.weight"),
        ("encoder.stages.3.layers.1.layer.2.normalization.running_var", "layer4.1.bn3.running_var"),
        ("encoder.stages.0.layers.0.shortcut.convolution.weight", "layer1.0.downsample.0.weight"),
        ("encoder.stages.1.layers.0.shortcut.normalization.bias", "layer2.0.downsample.1.bias"),
        (
            "features.denseblock1.denselayer6.norm.2.running_mean",
            "features.denseblock1.denselayer6.norm2.running_mean",
        ),
        ("features.transition1.norm.weight", "features.transition1.norm.weight"),
        # These are names of our own models.
        ("stages.0.blocks.0.conv1.weight", "stages.0.blocks.0.conv1.weight"),
        ("head.fc.weight", "head.fc.weight"),
        ("classifier.6.weight", "classifier.6.weight"),
    ],
)
def test_names(name, want):
    assert library_names.rename([name], origin="file")[0] == {name: want}


def test_other_names_of_the_classifier():
    names = ["conv1.weight", "last_linear.weight", "last_linear.bias"]
    renamed = library_names.rename(names, origin="file")[0]
    assert list(renamed.values()) == ["conv1.weight", "fc.weight", "fc.bias"]


@pytest.mark.parametrize("family", [*models.families()], ids=lambda f: f.model.__name__)
@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "net.", "network.", "backbone.", "encoder.", "module.model."]
)
def test_prefixes_of_every_family(prefix, family):
    for first in {family.first, "conv_stem", "_conv_stem"}:
        names = [f"{first}.weight", f"{first}.bias", "another.weight"]
        renamed, _ = library_names.rename([prefix + name for name in names], origin="f")
        assert list(renamed.values()) == names


@pytest.mark.parametrize("head", ["fc", "classifier", "head", "last_linear"])
@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "model.encoder_q."])
def test_a_classifier_beside_a_network_without_one(prefix, head):
    own = [f"{prefix}conv1.weight", f"{prefix}bn1.bias"]
    beside = [f"{head}.weight", f"{head}.bias"]
    renamed = library_names.rename([*own, *beside, "criterion.weight"], origin="file")[0]
    assert list(renamed) == [*own, *beside]
    assert list(renamed.values()) == ["conv1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    own.append(f"{prefix}last_linear.weight")
    if prefix == "backbone.":  # one more classifier is not that of the network
        assert list(library_names.rename([*own, *beside], origin="file")[0]) == own


def test_entries_beside_the_network_are_skipped_and_reported():
    names = ["model.conv1.weight", "model.fc.weight", "criterion.weight", "n_averaged"]
    renamed, note = library_names.rename(names, origin="file")
    assert renamed == {"model.conv1.weight": "conv1.weight", "model.fc.weight": "fc.weight"}
    assert note == (
        "renamed 2, such as model.conv1.weight to conv1.weight; skipped 2: n_averaged, "
        "criterion.weight"
    )


def narrow(name, **fields):
    """Random arrays of a narrow model by the names that `to_torch` gives, and its config."""
    config = defaults(name).model
    config.update(width=1 / 16, **fields)
    rng = np.random.default_rng(0)
    trees = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), models.outline(config)[1:]
    )
    return state_dicts.to_torch(*trees, config), config


def read_back(arrays, path):
    weight_file.save(arrays, path)
    return weight_file.read(path)


def assert_same(arrays, want):
    assert arrays.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_layer_scales_of_the_authors_of_deit_3(tmp_path):
    want, _ = narrow("vit_ti16", layer_scale=1e-4)
    given = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): array for name, array in want.items()}
    assert "blocks.11.gamma_2" in given
    assert_same(read_back(given, tmp_path / "w.safetensors").arrays, want)


def test_vit_of_transformers(tmp_path):
    """Names of ViTModel and ViTForImageClassification in modeling_vit.py."""
    want, config = narrow("vit_ti16")
    given = {
        "vit.embeddings.cls_token": want["cls_token"],
        "vit.embeddings.position_embeddings": want["pos_embed"],
        "vit.pooler.dense.weight": np.zeros((12, 12), np.float32),
    }
    for leaf in ("weight", "bias"):
        for theirs, ours in (
            ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("vit.layernorm", "norm"),
            ("classifier", "head"),
        ):
            given[f"{theirs}.{leaf}"] = want[f"{ours}.{leaf}"]
        for i in range(12):
            layer, block = f"vit.encoder.layer.{i}", f"blocks.{i}"
            for theirs, ours in (
                ("layernorm_before", "norm1"),
                ("attention.output.dense", "attn.proj"),
                ("layernorm_after", "norm2"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
            ):
                given[f"{layer}.{theirs}.{leaf}"] = want[f"{block}.{ours}.{leaf}"]
            thirds = np.split(want[f"{block}.attn.qkv.{leaf}"], 3)
            for part, third in zip(("query", "key", "value"), thirds, strict=True):
                given[f"{layer}.attention.attention.{part}.{leaf}"] = third
    file = read_back(given, tmp_path / "w.safetensors")
    assert_same(file.arrays, want)
    assert "skipped 1: vit.pooler.dense.weight" in file.note
    del given["vit.encoder.layer.3.attention.attention.key.bias"]
    arrays = read_back(given, tmp_path / "w.safetensors").arrays
    with pytest.raises(UserError, match=r"blocks\.3\.attn\.qkv\.bias \(24,\), not \(36,\)"):
        state_dicts.from_torch(arrays, config)
    backbone = {name: array for name, array in given.items() if not name.startswith("classifier")}
    found = state_dicts.identify(read_back(backbone, tmp_path / "w.safetensors").arrays)
    assert (found["name"], found["num_classes"]) == ("vit_ti16", 0)


def test_swin_of_transformers(tmp_path):
    """Names of SwinForImageClassification in modeling_swin.py."""
    want, _ = narrow("swin_t")
    given = {}
    for name, array in want.items():
        for pattern, theirs in (
            (r"^features\.0\.0\.", "swin.embeddings.patch_embeddings.projection."),
            (r"^features\.0\.2\.", "swin.embeddings.norm."),
            (
                r"^features\.([246])\.",
                lambda m: f"swin.encoder.layers.{int(m[1]) // 2 - 1}.downsample.",
            ),
            (
                r"^features\.([1357])\.",
                lambda m: f"swin.encoder.layers.{int(m[1]) // 2}.blocks.",
            ),
            (r"^norm\.", "swin.layernorm."),
            (r"^head\.", "classifier."),
            (r"norm1\.", "layernorm_before."),
            (r"norm2\.", "layernorm_after."),
            (r"attn\.proj\.", "attention.output.dense."),
            (r"attn\.", "attention.self."),
            (r"mlp\.0\.", "intermediate.dense."),
            (r"mlp\.3\.", "output.dense."),
        ):
            name = re.sub(pattern, theirs, name)
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                given[name.replace("qkv", part)] = third
        else:
            given[name] = array
    assert "swin.encoder.layers.2.blocks.5.attention.self.query.bias" in given
    assert "swin.encoder.layers.2.downsample.norm.bias" in given
    arrays = read_back(given, tmp_path / "w.safetensors").arrays
    assert_same(arrays, want)
    found = state_dicts.identify(arrays)
    assert (found["name"], found["width"], found["num_classes"]) == ("swin_t", 1 / 16, 1000)
    backbone = {name: array for name, array in given.items() if not name.startswith("classifier")}
    found = state_dicts.identify(read_back(backbone, tmp_path / "w.safetensors").arrays)
    assert (found["name"], found["num_classes"]) == ("swin_t", 0)


def test_two_entries_of_one_name_are_refused():
    names = ["conv1.weight", "module.conv1.weight"]
    with pytest.raises(UserError, match=r"f has two entries for conv1\.weight: .* and module\."):
        library_names.rename(names, origin="f")
