"""The other ResNets (He et al. 2015, arXiv:1512.03385) as torchvision trained them.

    python -m imagenet_jax.main --config=configs/resnet.py:resnet101

Source: github.com/pytorch/vision, references/classification, and its tables of weights. Accuracies
are of a single center crop of 224 from 256. configs/resnet50.py has more recipes, which train any
ResNet: --config=configs/resnet50.py:a3 --config.model.name=resnet18.

    batch   lr     schedule              momentum  weight decay          epochs
    256     0.1    x0.1 at 30 and 60     0.9       1e-4, all parameters  90

ResNeXts train for 100 epochs, with another x0.1 at 90. Variants that end in _v2 have the recipe of
configs/resnet50.py:v2, with which torchvision renewed these weights:
pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives.
"""

from ml_collections import ConfigDict

from configs.resnet50 import v2
from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

VARIANTS = {
    "resnet18": "ResNet-18: 69.76 %, top-5 89.08 %",
    "resnet34": "ResNet-34: 73.31 %, top-5 91.42 %",
    "resnet101": "ResNet-101: 77.37 %, top-5 93.55 %",
    "resnet152": "ResNet-152: 78.31 %, top-5 94.05 %",
    "resnext50_32x4d": "ResNeXt-50 32x4d: 77.62 %, top-5 93.70 %",
    "resnext101_32x8d": "ResNeXt-101 32x8d: 79.31 %, top-5 94.53 %",
    "resnet101_v2": "ResNet-101: 81.89 %, top-5 95.78 %, V2 weights",
    "resnet152_v2": "ResNet-152: 82.28 %, top-5 96.00 %, V2 weights",
    "resnext50_32x4d_v2": "ResNeXt-50 32x4d: 81.20 %, top-5 95.34 %, V2 weights",
    "wide_resnet50_2": "Wide ResNet-50-2: 78.47 %, top-5 94.09 %",
    "wide_resnet101_2": "Wide ResNet-101-2: 78.85 %, top-5 94.28 %",
}


def get_config(variant: str = "resnet18") -> ConfigDict:
    pick_variant(variant, VARIANTS)
    model = variant.removesuffix("_v2")
    c = defaults(model)
    c.model.dtype = "bfloat16"
    if variant.endswith("_v2"):
        v2(c)
        return c
    c.update(batch_size=256, epochs=90.0)
    c.optim.update(name="sgd", base_lr=0.1, momentum=0.9)
    c.optim.update(schedule="step", milestones=(30.0, 60.0), decay_factor=0.1)
    if model.startswith("resnext"):
        c.epochs, c.optim.milestones = 100.0, (30.0, 60.0, 90.0)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
