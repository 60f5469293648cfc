"""The VGGs (Simonyan & Zisserman 2014, arXiv:1409.1556) as torchvision trained them (V1 weights).

    python -m imagenet_jax.main --config=configs/vgg.py:vgg16_bn

Source: github.com/pytorch/vision, references/classification, and its tables of weights. Accuracies
are of a single center crop of 224 from 256.

    batch   lr                   schedule           momentum  weight decay          dropout  epochs
    256     0.01, 0.1 with norm  x0.1 at 30 and 60  0.9       1e-4, all parameters  0.5      90
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

VARIANTS = {
    "vgg11": "VGG-11: 69.02 %, top-5 88.63 %",
    "vgg11_bn": "VGG-11 with batch norm: 70.37 %, top-5 89.81 %",
    "vgg13": "VGG-13: 69.93 %, top-5 89.25 %",
    "vgg13_bn": "VGG-13 with batch norm: 71.59 %, top-5 90.37 %",
    "vgg16": "VGG-16: 71.59 %, top-5 90.38 %",
    "vgg16_bn": "VGG-16 with batch norm: 73.36 %, top-5 91.52 %",
    "vgg19": "VGG-19: 72.38 %, top-5 90.88 %",
    "vgg19_bn": "VGG-19 with batch norm: 74.22 %, top-5 91.84 %",
}


def get_config(model: str = "vgg16") -> ConfigDict:
    pick_variant(model, VARIANTS)
    c = defaults(model)
    c.model.update(dropout=0.5, dtype="bfloat16")
    c.update(batch_size=256, epochs=90.0)
    c.optim.update(name="sgd", base_lr=0.1 if model.endswith("_bn") else 0.01, momentum=0.9)
    c.optim.update(schedule="step", milestones=(30.0, 60.0), decay_factor=0.1)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
