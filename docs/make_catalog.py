"""Write imagenet_jax/weights/catalog.json from the tables of torchvision and timm.

  python -m docs.make_catalog     # needs the extra parity

The catalog has every ImageNet weight of torchvision's models that we have, and the weights of timm
and transformers that are listed here. `identify` finds our model from the keys and shapes of an
empty model; a listed model that we do not have is an error. torchvision's table gives file, hash
prefix, preprocessing and accuracy. timm's table gives the repository, the normalization and the
interpolation.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagenet_jax.config.fields import IMAGENET_MEAN, IMAGENET_STD, defaults
from imagenet_jax.errors import UserError
from imagenet_jax.files import write_atomically
from imagenet_jax.weights.catalog import FILE
from imagenet_jax.weights.library_names import rename
from imagenet_jax.weights.state_dicts import identify

# Weight, image size, crop share and top-1 and top-5 accuracy at the size where timm's top-1 is
# best, from results/results-imagenet.csv of huggingface/pytorch-image-models at aa4b585
# (2026-08-08).
_TIMM = """
    resnet18.a1_in1k 288 1 73.164 91.054
    resnet18.a2_in1k 288 1 72.364 90.620
    resnet18.a3_in1k 224 0.95 68.250 88.172
    resnet34.a1_in1k 288 1 77.930 93.758
    resnet34.a2_in1k 288 1 77.150 93.288
    resnet34.a3_in1k 224 0.95 72.996 91.116
    resnet50.a1_in1k 288 1 81.240 95.112
    resnet50.a2_in1k 288 1 80.774 94.978
    resnet50.a3_in1k 224 0.95 78.052 93.780
    resnet50.a1h_in1k 224 1 80.654 95.312
    resnet50.b1k_in1k 288 1 80.708 95.430
    resnet50.c1_in1k 288 1 80.928 95.554
    resnet50.d_in1k 288 1 81.012 95.456
    resnet50.ra_in1k 288 0.95 79.864 94.970
    resnet50.ram_in1k 288 0.95 79.982 95.038
    resnet50.gluon_in1k 224 0.875 77.580 93.704
    resnet50.fb_swsl_ig1b_ft_in1k 224 0.875 81.146 95.980
    resnet50.fb_ssl_yfcc100m_ft_in1k 224 0.875 79.252 94.826
    resnet101.a1_in1k 288 1 82.326 95.630
    resnet101.a1h_in1k 288 1 82.796 96.324
    resnet152.a1_in1k 288 1 82.742 95.734
    resnet152.a1h_in1k 288 1 83.494 96.522
    resnet50d.a1_in1k 288 1 81.466 95.218
    resnet50d.ra2_in1k 288 0.95 81.354 95.742
    resnet50d.ra4_e3600_r224_in1k 288 1 81.840 95.926
    seresnet50.a1_in1k 288 1 81.114 95.122
    seresnet50.ra2_in1k 288 0.95 81.288 95.652
    resnext50_32x4d.a1_in1k 288 1 81.480 95.152
    resnext50_32x4d.a1h_in1k 288 1 82.016 95.934
    resnext101_32x8d.fb_swsl_ig1b_ft_in1k 224 0.875 84.276 97.188
    wide_resnet50_2.racm_in1k 288 0.95 82.260 96.062
    densenet121.ra_in1k 288 0.95 76.486 93.378
    mobilenetv2_100.ra_in1k 224 0.875 72.910 91.000
    mobilenetv3_large_100.ra_in1k 224 0.875 75.784 92.528
    mobilenetv3_large_100.ra4_e3600_r224_in1k 256 1 77.182 93.328
    mobilenetv3_small_100.lamb_in1k 224 0.875 67.636 87.638
    efficientnet_b0.ra_in1k 224 0.875 77.698 93.538
    efficientnet_b0.ra4_e3600_r224_in1k 256 1 79.364 94.754
    efficientnet_b1.ft_in1k 256 1 78.806 94.346
    efficientnet_b1.ra4_e3600_r240_in1k 288 1 81.444 95.698
    efficientnet_b2.ra_in1k 288 1 80.612 95.320
    efficientnet_b3.ra2_in1k 320 1 82.296 96.124
    efficientnet_b4.ra2_in1k 384 1 83.468 96.574
    efficientnet_lite0.ra_in1k 224 0.875 75.488 92.508
    tf_mobilenetv3_large_100.in1k 224 0.875 75.510 92.600
    tf_mobilenetv3_small_100.in1k 224 0.875 67.922 87.686
    tf_efficientnet_b0.in1k 224 0.875 76.542 93.008
    tf_efficientnet_b0.aa_in1k 224 0.875 76.882 93.270
    tf_efficientnet_b0.ap_in1k 224 0.875 77.100 93.258
    tf_efficientnet_b0.ns_jft_in1k 224 0.875 78.680 94.372
    tf_efficientnet_b1.ns_jft_in1k 240 0.882 81.388 95.756
    tf_efficientnet_b2.ns_jft_in1k 260 0.890 82.412 96.238
    tf_efficientnet_b3.ns_jft_in1k 300 0.904 84.054 96.926
    tf_efficientnet_b4.ns_jft_in1k 380 0.922 85.156 97.482
    tf_efficientnet_b5.ns_jft_in1k 456 0.934 86.096 97.744
    tf_efficientnet_b6.ns_jft_in1k 528 0.942 86.476 97.864
    tf_efficientnet_b7.ns_jft_in1k 600 0.949 86.850 98.080
    tf_efficientnet_lite0.in1k 224 0.875 74.846 92.180
    tf_efficientnet_lite1.in1k 240 0.882 76.674 93.232
    tf_efficientnet_lite2.in1k 260 0.890 77.470 93.756
    tf_efficientnet_lite3.in1k 300 0.904 79.808 94.908
    tf_efficientnet_lite4.in1k 380 0.920 81.540 95.668
    vit_tiny_patch16_224.augreg_in21k_ft_in1k 224 0.9 75.452 92.858
    vit_small_patch16_224.augreg_in1k 224 0.9 78.842 94.280
    vit_small_patch16_224.augreg_in21k_ft_in1k 224 0.9 81.402 96.150
    vit_base_patch16_224.augreg_in1k 224 0.9 79.154 94.108
    vit_base_patch16_224.augreg_in21k_ft_in1k 224 0.9 84.534 97.300
    vit_base_patch16_224.augreg2_in21k_ft_in1k 224 0.9 85.108 97.530
    vit_base_patch16_224.orig_in21k_ft_in1k 224 0.9 81.782 96.122
    vit_base_patch32_224.augreg_in21k_ft_in1k 224 0.9 80.732 95.574
    vit_large_patch16_224.augreg_in21k_ft_in1k 224 0.9 85.856 97.822
    deit_tiny_patch16_224.fb_in1k 224 0.9 72.190 91.100
    deit_small_patch16_224.fb_in1k 224 0.9 79.856 95.056
    deit_base_patch16_224.fb_in1k 224 0.9 81.980 95.740
    deit3_small_patch16_224.fb_in1k 224 0.9 81.382 95.454
    deit3_base_patch16_224.fb_in1k 224 0.9 83.800 96.584
    deit3_large_patch16_224.fb_in1k 224 0.9 84.772 97.048
    convnext_tiny.fb_in1k 288 1 82.694 96.144
    convnext_tiny.in12k_ft_in1k 288 1 84.448 97.328
    convnext_small.fb_in1k 288 1 83.704 96.816
    convnext_base.fb_in1k 288 1 84.466 96.982
    convnext_large.fb_in1k 288 1 84.862 97.210
    convnext_tiny.fb_in22k_ft_in1k 224 0.875 82.900 96.616
    convnext_small.fb_in22k_ft_in1k 288 1 85.276 97.678
    convnext_base.fb_in22k_ft_in1k 288 1 86.302 98.088
    convnext_large.fb_in22k_ft_in1k 288 1 87.012 98.212
    swin_tiny_patch4_window7_224.ms_in1k 224 0.9 81.388 95.540
    swin_small_patch4_window7_224.ms_in1k 224 0.9 83.228 96.326
    swin_base_patch4_window7_224.ms_in1k 224 0.9 83.604 96.450
    swin_base_patch4_window7_224.ms_in22k_ft_in1k 224 0.9 85.276 97.566
    resnetv2_50x1_bit.goog_in21k_ft_in1k 448 1 80.386 95.694
    resnetv2_50x3_bit.goog_in21k_ft_in1k 448 1 83.982 97.130
    resnetv2_101x1_bit.goog_in21k_ft_in1k 448 1 82.332 96.524
    resnetv2_101x3_bit.goog_in21k_ft_in1k 448 1 84.430 97.380
    resnetv2_152x2_bit.goog_in21k_ft_in1k 448 1 84.468 97.432
    resnetv2_152x4_bit.goog_in21k_ft_in1k 480 1 84.936 97.456
"""
# Our names of timm's models of which others have the same keys; those of EfficientNets are timm's.
_SAME_KEYS = {
    "mobilenetv3_large_100": "timm_mobilenet_v3_large",
    "mobilenetv3_small_100": "timm_mobilenet_v3_small",
    "tf_mobilenetv3_large_100": "tf_mobilenet_v3_large",
    "tf_mobilenetv3_small_100": "tf_mobilenet_v3_small",
    "efficientnet_lite0": "timm_efficientnet_lite0",
    **{f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}" for i in range(5)},
    **{f"{tf}efficientnet_b{i}": f"{tf}efficientnet_b{i}" for i in range(8) for tf in ("", "tf_")},
}
_TIMM_SOURCE = "timm results/results-imagenet.csv, 2026-08-08"

# Repository, model, image size, shorter side before the center crop, interpolation, and whose mean
# and deviation, by preprocessor_config.json. No accuracy is published for them. transformers makes
# images of google/vit and microsoft/swin square without a crop.
_TRANSFORMERS = """
    microsoft/resnet-18 resnet18 224 256 bicubic imagenet
    microsoft/resnet-34 resnet34 224 256 bicubic imagenet
    microsoft/resnet-50 resnet50 224 256 bicubic imagenet
    microsoft/resnet-101 resnet101 224 256 bicubic imagenet
    microsoft/resnet-152 resnet152 224 256 bicubic imagenet
    microsoft/swin-tiny-patch4-window7-224 swin_t 224 224 bicubic imagenet
    microsoft/swin-small-patch4-window7-224 swin_s 224 224 bicubic imagenet
    microsoft/swin-base-patch4-window7-224 swin_b 224 224 bicubic imagenet
    facebook/convnext-tiny-224 convnext_tiny 224 256 bicubic imagenet
    facebook/convnext-small-224 convnext_small 224 256 bicubic imagenet
    facebook/convnext-base-224 convnext_base 224 256 bicubic imagenet
    facebook/convnext-large-224 convnext_large 224 256 bicubic imagenet
    facebook/deit-tiny-patch16-224 vit_ti16 224 256 bicubic imagenet
    facebook/deit-small-patch16-224 vit_s16 224 256 bicubic imagenet
    facebook/deit-base-patch16-224 vit_b16 224 256 bicubic imagenet
    google/vit-base-patch16-224 vit_b16 224 224 bilinear half
    google/vit-base-patch16-384 vit_b16 384 384 bilinear half
    google/vit-base-patch32-384 vit_b32 384 384 bilinear half
    google/vit-large-patch16-224 vit_l16 224 224 bilinear half
    google/vit-large-patch16-384 vit_l16 384 384 bilinear half
"""
_NORMALIZATION = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ([0.5] * 3, [0.5] * 3)}
# torchvision's models normalize again (transform_input) to (x - 0.5) / 0.5 of RGB in [0, 1].
_TRANSFORM_INPUT = ("googlenet", "inception_v3")


def make() -> list[dict[str, Any]]:
    """Return the rows of the catalog."""
    return [*_torchvision(), *_timm(), *_transformers()]


def _torchvision() -> Iterator[dict[str, Any]]:
    from torchvision import models as library

    # RegNets, which are not ours, cannot be built without memory.
    for model in library.list_models(module=library, exclude="regnet*"):
        try:
            found = _identify(f"torchvision/{model}")
        except UserError:  # not one of our models
            continue
        for weight in library.get_model_weights(model):
            transforms, metrics = weight.transforms(), weight.meta["_metrics"]["ImageNet-1K"]
            tag = weight.name.removeprefix("IMAGENET1K_").lower()
            if math.isnan(metrics["acc@1"]):  # VGG-16's features, without a classifier
                continue
            half = model in _TRANSFORM_INPUT
            size = _learned_size(found["model"], transforms.crop_size[0])
            yield found | {
                "fields": found["fields"] | size,
                "name": f"torchvision/{model}.{tag}",
                "url": weight.url,
                "sha256": weight.url.rpartition("-")[2].removesuffix(".pth"),
                "resize": transforms.resize_size[0],
                "image_size": transforms.crop_size[0],
                "interpolation": transforms.interpolation.value,
                "mean": [0.5] * 3 if half else list(transforms.mean),
                "std": [0.5] * 3 if half else list(transforms.std),
                "top1": metrics["acc@1"],
                "top5": metrics["acc@5"],
                "source": "torchvision's table of weights",
            }


def _timm() -> Iterator[dict[str, Any]]:
    from timm.models import get_pretrained_cfg

    for name, size, crop, top1, top5 in map(str.split, _TIMM.strip().splitlines()):
        cfg = get_pretrained_cfg(name)
        assert cfg is not None, name
        model = name.partition(".")[0]
        yield _identify(f"timm/{model}") | {
            "name": f"timm/{name}",
            "url": f"https://huggingface.co/{cfg.hf_hub_id}",
            "sha256": "",
            "resize": math.floor(int(size) / float(crop)),  # as timm's transforms_factory.py
            "image_size": int(size),
            "interpolation": cfg.interpolation,
            "mean": list(cfg.mean),
            "std": list(cfg.std),
            "top1": float(top1),
            "top5": float(top5),
            "source": _TIMM_SOURCE,
        }


def _transformers() -> Iterator[dict[str, Any]]:
    for row in _TRANSFORMERS.strip().splitlines():
        name, model, size, resize, interpolation, normalization = row.split()
        mean, std = _NORMALIZATION[normalization]
        yield {
            "model": model,
            "fields": _learned_size(model, int(size)),
            "name": name,
            "url": f"https://huggingface.co/{name}",
            "sha256": "",
            "resize": int(resize),
            "image_size": int(size),
            "interpolation": interpolation,
            "mean": list(mean),
            "std": list(std),
            "top1": None,
            "top5": None,
            "source": "",
        }


def _learned_size(model: str, size: int) -> dict[str, int]:
    """Return the field of models with position embeddings, which are for images of that size."""
    usual = defaults(model).model.get("image_size", size)
    return {} if usual == size else {"image_size": size}


def empty_state_dict(name: str) -> dict[str, np.ndarray]:
    """Return the state dict of the model "torchvision/NAME" or "timm/NAME", zeros in no memory."""
    import timm
    import torch
    import torchvision

    library, _, model = name.partition("/")
    with torch.device("meta"):
        if library == "timm":
            network = timm.create_model(model)
        else:
            options = {"init_weights": False} if model in _TRANSFORM_INPUT else {}
            network = torchvision.models.get_model(model, **options)
    zero = np.zeros((), np.float32)
    return {k: np.broadcast_to(zero, tuple(v.shape)) for k, v in network.state_dict().items()}


def _identify(name: str) -> dict[str, Any]:
    """Return {"model", "fields"} of a model of another library.

    Raises UserError if we do not have it.
    """
    given = empty_state_dict(name)
    names, _note = rename(given, origin=name)
    state_dict = {new: given[old] for old, new in names.items()}
    found = identify(state_dict, _SAME_KEYS.get(name.removeprefix("timm/"), ""), origin=name)
    usual = defaults(found["name"]).model
    fields = {k: v for k, v in found.items() if k != "name" and usual.get(k) != v}
    return {"model": found["name"], "fields": fields}


def main() -> None:
    rows = ",\n".join(json.dumps(row) for row in make())
    write_atomically(FILE, f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
