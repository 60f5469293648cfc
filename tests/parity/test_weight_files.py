"""Checkpoints as other libraries write them: modules built with torch, whose names torch gives."""

import argparse
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from imagenet_jax import convert  # noqa: E402
from imagenet_jax.config import fields  # noqa: E402
from imagenet_jax.errors import UserError  # noqa: E402
from imagenet_jax.training.load_weights import read_initial_weights  # noqa: E402
from imagenet_jax.weights import state_dicts, weight_file  # noqa: E402

pytestmark = pytest.mark.parity


class Parts(nn.Module):
    """A module with these attributes."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def make(name="resnet18", **options):
    """torchvision's model with every tensor cut to at most three distinct values: names count."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for key, value in kind.items():
                if value is not None and value.ndim:
                    kind[key] = torch.randn(3)
                elif value is not None:
                    kind[key] = torch.tensor(7)
        for key, value in module._parameters.items():
            if value is not None:
                module._parameters[key] = nn.Parameter(value)
    return model


def transformers_resnet(model):
    """The attributes of transformers' ResNetForImageClassification."""

    def layer(convolution, normalization):
        return Parts(convolution=convolution, normalization=normalization)

    def block(b):
        convolutions = [layer(b.conv1, b.bn1), layer(b.conv2, b.bn2)]
        if hasattr(b, "conv3"):
            convolutions.append(layer(b.conv3, b.bn3))
        shortcut = layer(*b.downsample) if b.downsample else nn.Identity()
        return Parts(shortcut=shortcut, layer=nn.Sequential(*convolutions))

    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    resnet = Parts(
        embedder=Parts(embedder=layer(model.conv1, model.bn1)),
        encoder=Parts(
            stages=nn.ModuleList(
                [Parts(layers=nn.Sequential(*map(block, stage))) for stage in stages]
            )
        ),
    )
    return Parts(resnet=resnet, classifier=nn.Sequential(nn.Flatten(), model.fc))


def mmpretrain(model):
    fc, model.fc = model.fc, nn.Identity()
    return Parts(backbone=model, head=Parts(fc=fc))


def data_parallel_features(model):
    model.features = nn.DataParallel(model.features)
    return model


def distributed(model):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for module in model.modules():  # it broadcasts what must not be views of one number
            module.requires_grad_(True)
        return nn.parallel.DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


WRAPPERS = {
    "plain": ("resnet18", lambda m: m),
    "DataParallel": ("resnet18", nn.DataParallel),
    "DistributedDataParallel": ("resnet18", distributed),
    "AveragedModel": ("resnet18", torch.optim.swa_utils.AveragedModel),
    "compile": ("resnet18", torch.compile),
    "compiled DataParallel": ("resnet18", lambda m: torch.compile(nn.DataParallel(m))),
    "features in DataParallel": ("vgg11_bn", data_parallel_features),
    "Lightning": ("resnet18", lambda m: Parts(model=m, criterion=nn.Linear(2, 3))),
    "net": ("vgg11", lambda m: Parts(net=m)),
    "mmpretrain": ("resnet50", mmpretrain),
    "transformers, basic": ("resnet18", transformers_resnet),
    "transformers, bottleneck": ("resnet50", transformers_resnet),
}


@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_of_wrapped_modules(tmp_path, wrapper, suffix):
    name, wrap = WRAPPERS[wrapper]
    model = make(name)
    want = model.state_dict()
    given = wrap(model).state_dict()
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file({k: v.clone() for k, v in given.items()}, path)
    else:
        torch.save(given, path)
    file = weight_file.read(path)
    assert file.arrays.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(file.arrays[key], value.numpy())
    assert (file.note == "") == (wrapper == "plain")
    assert "\n" not in file.note


def mlp():
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


def with_fc(model, fc):
    model.fc = fc
    return model


def moco(model):
    other = make()
    module = Parts(encoder_q=with_fc(model, nn.Linear(3, 128)), encoder_k=with_fc(other, mlp()))
    module.register_buffer("queue", torch.zeros(3, 5))
    return Parts(module=module)


SELF_SUPERVISED = {
    "MoCo": moco,
    "MoCo v3": lambda m: Parts(base_encoder=with_fc(m, mlp()), momentum_encoder=make()),
    "SimSiam": lambda m: Parts(encoder=with_fc(m, mlp()), predictor=mlp()),
    "SimCLR": lambda m: Parts(backbone=with_fc(m, mlp())),
    "DINO": lambda m: Parts(backbone=with_fc(m, nn.Identity()), head=Parts(mlp=mlp())),
    "Barlow Twins": lambda m: Parts(backbone=with_fc(m, nn.Identity()), projector=mlp()),
    "SwAV": lambda m: Parts(**dict(with_fc(m, nn.Identity()).named_children()), prototypes=mlp()),
    "only a backbone": lambda m: with_fc(m, nn.Identity()),
}


@pytest.mark.parametrize("method", SELF_SUPERVISED)
def test_backbones_lose_their_projections(tmp_path, method):
    model = make()
    want = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    torch.save({"state_dict": SELF_SUPERVISED[method](model).state_dict()}, tmp_path / "w.ckpt")
    file = weight_file.read(tmp_path / "w.ckpt")
    assert file.arrays.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(file.arrays[key], value.numpy())


def small(classes=5, fill=None):
    """A ResNet-18 of four channels, in torch's shapes."""
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=classes)
    state_dict = {}
    for key, value in model.state_dict().items():
        shape = [n if key == "fc.weight" and i == 0 or n < 64 else n // 16
                 for i, n in enumerate(value.shape)]  # fmt: skip
        if key == "fc.bias":
            shape = [classes]
        state_dict[key] = torch.rand(shape) + 0.5 if value.ndim else torch.tensor(0)
        if fill is not None and value.ndim:
            state_dict[key].fill_(fill)
    return state_dict


def small_config(classes, path):
    config = fields.defaults("resnet18")
    config.model.width, config.model.num_classes = 1 / 16, classes
    config.init.weights = str(path)
    return config


def test_a_backbone_starts_training_with_a_new_head_and_is_not_converted(tmp_path):
    backbone = {k: v for k, v in small().items() if not k.startswith("fc.")}
    path = tmp_path / "dino.pth"
    torch.save({"teacher": {f"module.backbone.{k}": v for k, v in backbone.items()}}, path)
    initial = read_initial_weights(small_config(7, path))
    assert "no classifier: the head starts from random values" in initial.summary
    assert "module.backbone.conv1.weight to conv1.weight" in initial.summary
    assert "fc" not in initial.params
    np.testing.assert_array_equal(
        initial.params["layer1"][0]["conv1"]["kernel"],
        np.einsum("oihw->hwio", backbone["layer1.0.conv1.weight"].numpy()),
    )
    with pytest.raises(UserError, match=r"resnet18, .* without a classifier; .*main --weights"):
        convert.main([f"--from={path}", f"--to={tmp_path}/w.safetensors"])


@pytest.mark.parametrize(
    ("raw", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "ema"), ("weights", "")],
)
def test_averages_come_first_and_either_is_chosen_by_its_key(tmp_path, raw, average):
    path = tmp_path / "w.th"
    entries = {raw: small(fill=1.0), "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}
    if average:
        averaged = {f"module.{k}": v for k, v in small(fill=2.0).items()}
        entries[average] = {"n_averaged": torch.tensor(9), **averaged}
    torch.save(entries, path)
    file = weight_file.read(path)
    assert file.is_ema == bool(average)
    assert file.arrays["conv1.weight"].flat[0] == (2 if average else 1)
    if average:
        assert f"EMA weights from '{average}'; --weights_key={raw} chooses others" in file.note
        assert "skipped 1: n_averaged" in file.note
        assert weight_file.read(path, average).is_ema
    file = weight_file.read(path, raw)
    assert not file.is_ema
    assert file.arrays["conv1.weight"].flat[0] == 1
    with pytest.raises(UserError, match=rf"no state dict 'nope' \(--weights_key\): use {raw}"):
        weight_file.read(path, "nope")


def test_several_state_dicts_of_unknown_names_want_a_choice(tmp_path):
    torch.save({"a": small(fill=1.0), "b": {"c": small(fill=2.0)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"choose one: --weights_key=a or b\.c"):
        weight_file.read(tmp_path / "w.pth")
    assert weight_file.read(tmp_path / "w.pth", "b.c").arrays["bn1.bias"][0] == 2
    assert weight_file.read(tmp_path / "w.pth", "b").arrays["bn1.bias"][0] == 2


METADATA = {
    "args": argparse.Namespace(lr=0.1, output_dir=pathlib.PosixPath("/runs"), nested=[None]),
    "best_acc1": np.float64(76.1),
    "int": np.int64(3),
    "mean": np.array([0.485, 0.456], np.float32),
    "accuracy": torch.tensor(76.1),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_what_scripts_save_beside_tensors_is_ignored(tmp_path, zipped):
    torch.save(
        {"model": small(fill=1.0), **METADATA}, tmp_path / "w.bin",
        _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    file = weight_file.read(tmp_path / "w.bin")
    assert len(file.arrays) == 122
    assert file.note == ""


class HistoryBuffer:
    """As mmengine's: an array, and functions of the class by name."""

    def __init__(self):
        self.history, self.methods = np.zeros(3), {"mean": HistoryBuffer.mean}

    def mean(self): ...


def test_the_log_in_a_checkpoint_of_mmengine(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    monkeypatch.setattr(HistoryBuffer.mean, "__module__", module.__name__)
    saved = {"state_dict": small(), "message_hub": {"loss": HistoryBuffer()}}
    torch.save(saved, tmp_path / "w.pth")
    assert b"getattr" in (tmp_path / "w.pth").read_bytes()
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert len(weight_file.read(tmp_path / "w.pth").arrays) == 122


def test_names_of_old_numpy(tmp_path):
    data = pickle.dumps(np.float64(1), protocol=2)
    assert b"numpy._core.multiarray" in data
    torch.save({"model": small(), "best": np.float64(1)}, tmp_path / "new.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    old = (tmp_path / "new.pth").read_bytes().replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "old.pth").write_bytes(old)
    assert len(weight_file.read(tmp_path / "old.pth").arrays) == 122


def test_parameters_and_narrow_types(tmp_path):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        kernel = nn.Parameter(torch.tensor([0.5, -2.0]).to(dtype), requires_grad=dtype.itemsize > 1)
        torch.save({"conv1.weight": kernel}, tmp_path / "w.pth")
        array = weight_file.read(tmp_path / "w.pth").arrays["conv1.weight"]
        assert array.dtype == np.float32
        assert array.tolist() == [0.5, -2.0]
        save_file({"conv1.weight": kernel.data}, tmp_path / "w.safetensors")
        array = weight_file.read(tmp_path / "w.safetensors").arrays["conv1.weight"]
        assert array.dtype == np.float32
        assert array.tolist() == [0.5, -2.0]


@pytest.mark.parametrize(
    ("make_tensor", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.empty(3, device="meta"), "no values"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(3, dtype=torch.complex32), "complex32"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_named(tmp_path, make_tensor, words):
    torch.save({"conv1.weight": make_tensor(), "fc.bias": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth: conv1\.weight .*{words}"):
        weight_file.read(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_named_and_the_safety_stays_on(tmp_path, zipped):
    torch.save(make(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        weight_file.read(tmp_path / "w.pth")
    message = str(caught.value)
    assert "torchvision.models.resnet.ResNet" in message
    assert "torch.save(model.state_dict(), FILE)" in message
    for wrong in ("\x1b", "\n", "weights_only", "Weights only", "trust", "safe_globals"):
        assert wrong not in message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_truncated_files(tmp_path, zipped, share):
    path = tmp_path / "w.pth"
    torch.save(small(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"cannot be read: it is .*(cut off|damaged)") as caught:
        weight_file.read(path)
    assert "weights_only" not in str(caught.value)


def test_a_damaged_byte_of_a_zip(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(small(), path)
    data = bytearray(path.read_bytes())
    start = data.index(b"data.pkl")
    data[start + 200 : start + 260] = b"\x00" * 60
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read") as caught:
        weight_file.read(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_pickles(tmp_path, protocol):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"conv1.weight": [1.0]}, protocol))
    with pytest.raises(
        UserError, match="is a pickle not written by torch, or of a protocol above 2"
    ):
        weight_file.read(tmp_path / "w.pkl")


def test_what_is_read_fits(tmp_path):
    given = small()
    torch.save(
        {"model_ema": {f"module._orig_mod.{k}": v for k, v in given.items()}}, tmp_path / "w.pth"
    )
    file = weight_file.read(tmp_path / "w.pth")
    config = small_config(5, "").model
    assert state_dicts.identify(file.arrays)["name"] == "resnet18"
    params, _ = state_dicts.from_torch(file.arrays, config)
    np.testing.assert_array_equal(params["fc"]["kernel"], given["fc.weight"].numpy().T)
