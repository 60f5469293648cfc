"""Names that other libraries and training scripts give to weights, turned into torchvision's.

Sources: torch's DataParallel, AveragedModel and compile; ResNet, ConvNeXt, Swin and ViT of
transformers (modeling_resnet.py, ...); mmpretrain's ImageClassifier; Swin of timm;
github.com/facebookresearch/ConvNeXt; github.com/microsoft/Swin-Transformer; the published code of
DeiT III, MoCo, SimSiam, SimCLR, DINO, SwAV and Barlow Twins. ViTs get timm's names, which our
modules have.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from imagenet_jax.errors import UserError, shorten
from imagenet_jax.models import families

# The first convolution of a model, and the prefixes of its name if the model is part of a module.
TIMM_FIRST = "conv_stem"  # in timm's MobileNets and EfficientNets; others write _conv_stem
_FIRSTS = (TIMM_FIRST, f"_{TIMM_FIRST}", *(family.first for family in families()))
_FIRST = rf"(?:{'|'.join(map(re.escape, _FIRSTS))})(?:\.0)?\.weight$"
_PREFIX = r"((?:(?:model|net|network|backbone|resnet|vgg|encoder_q|base_encoder|encoder)\.)+)"
_HEAD = r"(?:fc|last_linear|classifier|head)\.(?:weight|bias)$"
_PART = re.compile(r"(.+)\[\d\]")  # the name of a part of an array: see `join_parts`


class _Rule(NamedTuple):
    """Replace `pattern` by `to` in each name. All patterns are regular expressions.

    Attributes:
      pattern: what to replace; {0} stands for the text that the first group of `where` matched.
      to: the replacement, which may contain {0}; None drops entries whose name has the pattern.
      where: apply the rule only if this pattern is in some name.
      unless: do not apply the rule if this pattern, which may contain {0}, is in some name.
    """

    pattern: str
    to: str | Callable[[re.Match[str]], str] | None
    where: str = ""
    unless: str = ""


def _rules_if(
    where: str, *changes: tuple[str, str | Callable[[re.Match[str]], str] | None]
) -> list[_Rule]:
    """Return a rule with this `where` for each (pattern, to); patterns begin at a dot or the start.

    A change that renames the entry that `where` matches must come last.
    """
    return [_Rule(rf"(?:^|(?<=\.)){pattern}", to, where=where) for pattern, to in changes]


# ConvNeXt under the names of other libraries, half renamed, and under torchvision's names.
_CONVNEXT = r"stages\.\d+\.(?:(?:blocks|layers)\.)?\d+\.(?:dwconv|conv_dw)\.weight$"
_CONVNEXT_PARTS = r"features\.\d+\.\d+\.(?:dwconv|conv_dw)\.weight$"
_TORCHVISION_CONVNEXT = r"features\.1\.0\.block\.0\.weight$"
_BLOCK = r"(?<=features)(\.\d+\.\d+)\."
_SWIN = r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table$"

_RULES = (
    # Prefixes of torch's DataParallel, DistributedDataParallel, AveragedModel and compile.
    _Rule(r"(?:^|(?<=\.))(?:(?:module|_orig_mod)\.)+", ""),
    # The update counter of AveragedModel, and the operation counters of the profiler thop.
    _Rule(r"(?:^|\.)(?:n_averaged|total_ops|total_params)$", None),
    # The DenseNets that torchvision publishes: norm.1 instead of norm1.
    _Rule(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    # ConvNeXt of its authors, timm and transformers.
    _Rule(r"(?:convnext\.)?encoder\.(?=stages\.)", "", where=_CONVNEXT),
    _Rule(r"(?:convnext\.)?embeddings\.patch_embeddings\.", "features.0.0.", where=_CONVNEXT),
    _Rule(r"(?:convnext\.)?embeddings\.layernorm\.", "features.0.1.", where=_CONVNEXT),
    _Rule(r"(?:downsample_layers\.0|stem)\.(?=[01]\.)", "features.0.", where=_CONVNEXT),
    _Rule(
        r"(?:downsample_layers\.(\d)|stages\.(\d)\.downsampl(?:e|ing_layer))\.(?=[01]\.)",
        lambda m: f"features.{2 * int(m[1] or m[2])}.",
        where=_CONVNEXT,
    ),
    _Rule(
        r"stages\.(\d+)\.(?:(?:blocks|layers)\.)?(?=\d+\.)",
        lambda m: f"features.{2 * int(m[1]) + 1}.",
        where=_CONVNEXT,
    ),
    _Rule(_BLOCK + "(?:gamma|layer_scale_parameter)$", r"\1.layer_scale", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:layer)?norm\.", r"\1.block.2.", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:pwconv|mlp\.fc)1\.", r"\1.block.3.", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:pwconv|mlp\.fc)2\.", r"\1.block.5.", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:dwconv|conv_dw)\.", r"\1.block.0."),
    _Rule(
        r"(?:^|(?<=\.))(?:convnext\.)?(?:head\.norm|norm|layernorm)\.(?=\w+$)",
        "classifier.0.",
        where=_TORCHVISION_CONVNEXT,
    ),
    _Rule(
        r"(?:^|(?<=\.))(?:head\.fc|head|classifier)\.(?=[a-z]+$)",
        "classifier.2.",
        where=_TORCHVISION_CONVNEXT,
    ),
    # ResNet of transformers.
    _Rule(r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    _Rule(r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    _Rule(r"^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    _Rule(r"^(layer\d+\.\d+)\.shortcut\.convolution\.", r"\1.downsample.0."),
    _Rule(r"^(layer\d+\.\d+)\.shortcut\.normalization\.", r"\1.downsample.1."),
    _Rule(
        r"^(layer\d+\.\d+)\.layer\.(\d+)\.convolution\.", lambda m: f"{m[1]}.conv{int(m[2]) + 1}."
    ),
    _Rule(
        r"^(layer\d+\.\d+)\.layer\.(\d+)\.normalization\.", lambda m: f"{m[1]}.bn{int(m[2]) + 1}."
    ),
    _Rule(r"^classifier\.1\.", "fc.", where=r"^conv1\.weight$"),
    # Swin of transformers, in its authors' names.
    *_rules_if(
        r"\.attention\.self\.relative_position_bias_table$",
        (r"swin\.", ""),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"embeddings\.norm\.", "patch_embed.norm."),
        (r"encoder\.layers\.", "layers."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"layernorm\.", "norm."),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
        (r"classifier\.", "head."),
        (r"attention\.self\.query\.(\w+)$", r"attn.qkv.\1[0]"),
        (r"attention\.self\.key\.(\w+)$", r"attn.qkv.\1[1]"),
        (r"attention\.self\.value\.(\w+)$", r"attn.qkv.\1[2]"),
        (r"attention\.self\.", "attn."),
    ),
    # Swin of its authors, who merge patches at the end of a stage, and of timm, at the start.
    *_rules_if(
        r"(?:^|\.)layers\.0\.downsample\.reduction\.weight$",
        (r"layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1]) + 2}."),
    ),
    *_rules_if(
        _SWIN,
        (r"layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1])}."),
        (r"patch_embed\.proj\.", "features.0.0."),
        (r"patch_embed\.norm\.", "features.0.2."),
        (r"head\.fc\.", "head."),
        (r"mlp\.fc1\.", "mlp.0."),
        (r"mlp\.fc2\.", "mlp.3."),
        (r"attn_mask$", None),
        (r"layers\.(\d+)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
    ),
    # ViT of torchvision, the authors of DeiT III and transformers, in timm's names.
    *_rules_if(
        r"(?:^|\.)conv_proj\.weight$",
        (r"class_token$", "cls_token"),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"encoder\.ln\.", "norm."),
        (r"self_attention\.in_proj_", "attn.qkv."),
        (r"self_attention\.out_proj\.", "attn.proj."),
        (r"ln_([12])\.", r"norm\1."),
        (r"mlp\.(?:0|linear_1)\.", "mlp.fc1."),
        (r"mlp\.(?:3|linear_2)\.", "mlp.fc2."),
        (r"heads\.head\.", "head."),
        (r"heads\.pre_logits\.", "pre_logits.fc."),
        (r"conv_proj\.", "patch_embed.proj."),
    ),
    *_rules_if(r"(?:^|\.)blocks\.0\.gamma_1$", (r"gamma_([12])$", r"ls\1.gamma")),
    *_rules_if(
        r"(?:^|\.)embeddings\.patch_embeddings\.projection\.weight$",
        (r"vit\.", ""),
        (r"embeddings\.cls_token$", "cls_token"),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"attention\.attention\.query\.(\w+)$", r"attn.qkv.\1[0]"),
        (r"attention\.attention\.key\.(\w+)$", r"attn.qkv.\1[1]"),
        (r"attention\.attention\.value\.(\w+)$", r"attn.qkv.\1[2]"),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"layernorm\.", "norm."),
        (r"classifier\.", "head."),
        (r"pooler\.dense\.", None),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    ),
    # mmpretrain.
    _Rule(r"^head\.fc\.", "backbone.fc.", where=r"^backbone\.conv1\.weight$"),
    # Contrastive learning: fc is a projection head, not a classifier.
    _Rule(r"^(?:encoder_q|base_encoder)\.fc\.", None),
    _Rule(r"^encoder\.fc\.", None, where=r"^predictor\."),
    # A classifier next to a ResNet that has none.
    _Rule(f"^(?={_HEAD})", "{0}", where=rf"^{_PREFIX}conv1\.weight$", unless=f"^{{0}}{_HEAD}"),
    # A model inside a larger module: drop the other parts, then the prefix.
    _Rule(r"^(?!{0})", None, where=f"^{_PREFIX}{_FIRST}"),
    _Rule(r"^{0}", "", where=f"^{_PREFIX}{_FIRST}"),
    # Other names of the classifier of a ResNet; heads of self-supervised learning.
    _Rule(r"^(?:last_linear|classifier|head)\.(weight|bias)$", r"fc.\1", where=r"^conv1\.weight$"),
    _Rule(
        r"^(?:fc\.\d+|head\.mlp|head\.last_layer|projection_head|projector|prototypes|predictor)\.",
        None,
        where=r"^conv1\.weight$",
    ),
)


def rename(names: Iterable[str], *, origin: str) -> tuple[dict[str, str], str]:
    """Return ({name: torchvision's name}, a note on what was renamed or skipped, or "").

    Skipped names are not in the dict. Names NAME[0], NAME[1], ... are those of parts of the array
    NAME: see `join_parts`.

    Raises UserError, naming `origin`, if two entries would get the same name.
    """
    current = {name: name for name in names}
    skipped: list[str] = []
    for rule in _RULES:
        found = (re.search(rule.where, name) for name in current.values())
        where = next((match for match in found if match), None)
        if where is None:
            continue
        group = where[1] if where.groups() else ""
        pattern, unless = (
            text.replace("{0}", re.escape(group)) for text in (rule.pattern, rule.unless)
        )
        if unless and any(re.search(unless, name) for name in current.values()):
            continue
        if rule.to is None:
            matches = [old for old, name in current.items() if re.search(pattern, name)]
            skipped += matches
            current = {old: name for old, name in current.items() if old not in set(matches)}
        else:
            to = rule.to.replace("{0}", group) if isinstance(rule.to, str) else rule.to
            current = {old: re.sub(pattern, to, name) for old, name in current.items()}
    olds: dict[str, str] = {}
    for old, name in current.items():
        if name in olds:
            raise UserError(f"{origin} has two entries for {name}: {olds[name]} and {old}")
        olds[name] = old
    renamed = [(old, name) for old, name in current.items() if old != name]
    notes = []
    if renamed:
        notes.append(f"renamed {len(renamed)}, such as {renamed[0][0]} to {renamed[0][1]}")
    if skipped:
        notes.append(f"skipped {len(skipped)}: {shorten(skipped)}")
    return current, "; ".join(notes)


def join_parts(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenate arrays that `rename` named NAME[0], NAME[1], ... into one array NAME.

    The parts are joined along the first axis. Parts of different shapes fit no model and keep their
    names.
    """
    parts: dict[str, list[str]] = {}
    for key in sorted(arrays):
        if match := _PART.fullmatch(key):
            parts.setdefault(match[1], []).append(key)
    joined = dict(arrays)
    for name, keys in parts.items():
        if arrays[keys[0]].ndim and len({arrays[key].shape for key in keys}) == 1:
            joined[name] = np.concatenate([joined.pop(key) for key in keys])
    return joined
