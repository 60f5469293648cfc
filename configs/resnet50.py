"""ResNet-50 (He et al. 2015, arXiv:1512.03385) as torchvision trained it: the V1 weights.

Source: github.com/pytorch/vision, references/classification, and its ResNet50_Weights table.
Published top-1: 76.13 %, top-5: 92.86 % (single centre crop of 224 from 256).

    batch   lr    schedule              momentum  weight decay          epochs
    256     0.1   x0.1 at 30 and 60     0.9       1e-4, all parameters  90
"""

from ml_collections import ConfigDict

from imagenet_jax.defaults import defaults


def get_config(arg: str = "", model: str = "resnet50") -> ConfigDict:
    c = defaults(model)
    c.epochs = 90.0
    c.batch_size = 256

    c.optim.name = "sgd"
    c.optim.peak_lr = 0.1
    c.optim.momentum = 0.9
    c.optim.schedule = "step"
    c.optim.milestones = (30.0, 60.0)
    c.optim.factor = 0.1
    c.optim.weight_decay = 1e-4
    c.optim.decay_bias_and_norm = True

    c.augment.image_size = 224
    c.eval.resize = 256
    c.eval.image_size = 224

    c.model.dtype = "bfloat16"
    return c
