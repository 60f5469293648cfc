"""VGG-11 with batch norm (Simonyan & Zisserman 2014, arXiv:1409.1556) by the recipe of
configs/vgg16.py at ten times its learning rate.

Source: github.com/pytorch/vision, references/classification, and its VGG11_BN_Weights table, V1.
Published top-1: 70.37 %, top-5: 89.81 % (single centre crop of 224 from 256).
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config(arg: str = "") -> ConfigDict:
    return vgg16.get_config(model="vgg11_bn", base_lr=0.1)
