"""VGG-19 with batch norm (Simonyan & Zisserman 2014, arXiv:1409.1556) by the recipe of
configs/vgg16.py at ten times its learning rate.

Source: github.com/pytorch/vision, references/classification, and its VGG19_BN_Weights table, V1.
Published top-1: 74.22 %, top-5: 91.84 % (single centre crop of 224 from 256).
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config(arg: str = "") -> ConfigDict:
    return vgg16.get_config(model="vgg19_bn", base_lr=0.1)
