"""VGG-13 with batch norm (Simonyan & Zisserman 2014, arXiv:1409.1556) by the recipe of
configs/vgg16.py at ten times its learning rate.

Source: github.com/pytorch/vision, references/classification, and its VGG13_BN_Weights table, V1.
Published top-1: 71.59 %, top-5: 90.37 % (single centre crop of 224 from 256).
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config(arg: str = "") -> ConfigDict:
    return vgg16.get_config(model="vgg13_bn", base_lr=0.1)
