"""Files as torch writes them, read by `weight_file.read`."""

import pickle

import jax
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config import fields
from imagenet_jax.errors import UserError
from imagenet_jax.weights import state_dicts, weight_file

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5)


def check(loaded, model, tolerance=0.0):
    """The file's weights are the model's, and make a whole set of ours."""
    for key, value in model.state_dict().items():
        np.testing.assert_allclose(loaded[key], value.numpy(), rtol=tolerance)
    config = fields.defaults("resnet18").model
    config.num_classes = 5
    params, _ = state_dicts.from_torch(loaded, config)
    want = model.state_dict()["fc.weight"].numpy().T
    np.testing.assert_allclose(params["fc"]["kernel"], want, rtol=tolerance)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: {"state_dict": d, "epoch": 3},
        lambda d: {"model": {f"module.{k}": v for k, v in d.items()}},
    ],
    ids=["plain", "state_dict", "DataParallel"],
)
def test_pth(tmp_path, resnet18, wrap):
    torch.save(wrap(resnet18.state_dict()), tmp_path / "w.pth")
    check(weight_file.read(tmp_path / "w.pth").arrays, resnet18)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16(tmp_path, resnet18, suffix):
    from safetensors.torch import save_file

    half = {k: v.bfloat16() if v.ndim else v for k, v in resnet18.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(half, path)
    else:
        save_file(half, path)
    check(weight_file.read(path).arrays, resnet18, tolerance=2**-8)


def test_torch_loads_what_we_save_strictly(tmp_path):
    from safetensors.torch import load_file

    config = fields.defaults("resnet18").model
    config.num_classes = 5
    model = jax.jit(lambda: nnx.state(models.build(config, rngs=nnx.Rngs(0))))()
    params, batch_stats = (nnx.to_pure_dict(s) for s in nnx.split_state(model, nnx.Param, ...))
    weight_file.save(state_dicts.to_torch(params, batch_stats, config), tmp_path / "w.safetensors")
    torchvision.models.resnet18(num_classes=5).load_state_dict(
        load_file(tmp_path / "w.safetensors"), strict=True
    )


class _Payload:
    def __reduce__(self):
        return (pytest.fail, ("code in the file was run",))


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x, 2))])
def test_code_in_a_pickle_is_not_run(tmp_path, save):
    save({"conv1.weight": _Payload()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth cannot be read"):
        weight_file.read(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}])
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="has no state dict"):
        weight_file.read(tmp_path / "w.pth")
