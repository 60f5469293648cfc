"""ResNet-34 (He et al. 2015, arXiv:1512.03385) by the recipe of configs/resnet50.py.

Source: github.com/pytorch/vision, references/classification, and its ResNet34_Weights table, V1.
Published top-1: 73.31 %, top-5: 91.42 % (single centre crop of 224 from 256).
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config(variant: str = "v1") -> ConfigDict:
    return resnet50.get_config(variant, model="resnet34")
