"""ResNet-50 with Adam (Kingma & Ba 2014, arXiv:1412.6980): the ablation of the optimizer.

Everything but the optimizer and its learning rate is configs/resnet50.py. No accuracy is published
for this recipe; with SGD it is 76.13 %.

    batch   lr      b1   b2     eps   schedule            weight decay
    256     0.001   0.9  0.999  1e-8  x0.1 at 30 and 60   1e-4 (L2, in the gradient)
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config(arg: str = "") -> ConfigDict:
    c = resnet50.get_config()
    c.optim.name = "adam"
    c.optim.base_lr = 0.001
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    return c
