"""VGG-16 (Simonyan & Zisserman 2014, arXiv:1409.1556) as torchvision trained it: the V1 weights.

Source: github.com/pytorch/vision, references/classification, and its VGG16_Weights table.
Published top-1: 71.59 %, top-5: 90.38 % (single centre crop of 224 from 256).

    batch   lr     schedule              momentum  weight decay          dropout  epochs
    256     0.01   x0.1 at 30 and 60     0.9       1e-4, all parameters  0.5      90
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config(arg: str = "", model: str = "vgg16", base_lr: float = 0.01) -> ConfigDict:
    c = defaults(model)
    c.epochs = 90.0
    c.batch_size = 256

    c.optim.name = "sgd"
    c.optim.base_lr = base_lr
    c.optim.momentum = 0.9
    c.optim.schedule = "step"
    c.optim.milestones = (30.0, 60.0)
    c.optim.decay_factor = 0.1
    c.optim.weight_decay = 1e-4
    c.optim.decay_bias_and_norm = True

    c.augment.image_size = 224
    c.eval.resize = 256
    c.eval.image_size = 224

    c.model.dropout = 0.5
    c.model.dtype = "bfloat16"
    return c
