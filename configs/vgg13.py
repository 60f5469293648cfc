"""VGG-13 (Simonyan & Zisserman 2014, arXiv:1409.1556) by the recipe of configs/vgg16.py.

Source: github.com/pytorch/vision, references/classification, and its VGG13_Weights table, V1.
Published top-1: 69.93 %, top-5: 89.25 % (single centre crop of 224 from 256).
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config(arg: str = "") -> ConfigDict:
    return vgg16.get_config(model="vgg13")
