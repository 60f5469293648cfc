"""The other ResNets (He et al. 2015, arXiv:1512.03385) as torchvision trained them.

    python -m imagenet_jax.main --config=configs/resnet.py:resnet101
    python -m imagenet_jax.main --config=configs/resnet.py:resnext50_32x4d_v2

Source: github.com/pytorch/vision, references/classification, and its tables of weights. Accuracies
are of a single center crop of 224, from 256 (V1) or 232 (V2). configs/resnet50.py has more recipes,
which train any ResNet: --config=configs/resnet50.py:a3 --config.model.name=resnet18.

          batch   lr    schedule              weight decay          epochs
    V1    256     0.1   x0.1 at 30 and 60     1e-4, all parameters  90
    V2    1,024   0.5   cosine, 5 of warm-up  2e-5, no norms        600

V1: ResNeXts train for 100 epochs, with another x0.1 at 90. The published weights of Wide ResNets
were trained for 256 epochs by a cosine with warm restarts (pull request 912), which is not
reproduced here.

V2 is that of configs/resnet50.py, except for what torchvision's weights name (issue 3995, pull
requests 4964 and 5935): only ResNeXt-101 64x4d has repeated augmentation, as ResNet-50 does, and
those trained "with FixRes" have crops of 176 instead of 224.
"""

from ml_collections import ConfigDict

from configs import resnet50
from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

VARIANTS = {
    "resnet18": "ResNet-18: 69.76 %, top-5 89.08 %",
    "resnet34": "ResNet-34: 73.31 %, top-5 91.42 %",
    "resnet101": "ResNet-101: 77.37 %, top-5 93.55 %",
    "resnet101_v2": "ResNet-101: 81.89 %, top-5 95.78 %, V2",
    "resnet152": "ResNet-152: 78.31 %, top-5 94.05 %",
    "resnet152_v2": "ResNet-152: 82.28 %, top-5 96.00 %, V2",
    "resnext50_32x4d": "ResNeXt-50 32x4d: 77.62 %, top-5 93.70 %",
    "resnext50_32x4d_v2": "ResNeXt-50 32x4d: 81.20 %, top-5 95.34 %, V2",
    "resnext101_32x8d": "ResNeXt-101 32x8d: 79.31 %, top-5 94.53 %",
    "resnext101_32x8d_v2": "ResNeXt-101 32x8d: 82.83 %, top-5 96.23 %, V2",
    "resnext101_64x4d_v2": "ResNeXt-101 64x4d: 83.25 %, top-5 96.45 %, V2",
    "wide_resnet50_2": "Wide ResNet-50-2: 78.47 %, top-5 94.09 %",
    "wide_resnet50_2_v2": "Wide ResNet-50-2: 81.60 %, top-5 95.76 %, V2",
    "wide_resnet101_2": "Wide ResNet-101-2: 78.85 %, top-5 94.28 %",
    "wide_resnet101_2_v2": "Wide ResNet-101-2: 82.51 %, top-5 96.02 %, V2",
}
FIXRES = ("resnext101_32x8d_v2", "resnext101_64x4d_v2", "wide_resnet50_2_v2")


def get_config(variant: str = "resnet18") -> ConfigDict:
    pick_variant(variant, VARIANTS)
    c = defaults(variant.removesuffix("_v2"))
    c.model.dtype = "bfloat16"
    if not variant.endswith("_v2"):
        resnet50.v1(c)
        if variant.startswith("resnext"):
            c.epochs, c.optim.milestones = 100.0, (30.0, 60.0, 90.0)
        return c
    resnet50.v2(c)
    c.data.repeated_aug = 4 if variant == "resnext101_64x4d_v2" else 1
    c.augment.image_size = 176 if variant in FIXRES else 224
    return c
