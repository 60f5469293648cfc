"""Renaming of other libraries' weights to torchvision's and timm's names.

Sources of the names: torch's DataParallel, AveragedModel and compile; transformers' ResNet
(modeling_resnet.py); mmpretrain's ImageClassifier; the published code of MoCo, SimSiam, SimCLR,
DINO, SwAV and Barlow Twins.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from imagenet_jax.errors import UserError
from imagenet_jax.models import families

# The first convolution of a model, and what may stand before its name.
_FIRST = rf"(?:{'|'.join(re.escape(family.first) for family in families())})\.weight$"
_PREFIX = r"((?:(?:model|net|network|backbone|resnet|vgg|encoder_q|base_encoder|encoder)\.)+)"
_HEAD = r"(?:fc|last_linear|classifier|head)\.(?:weight|bias)$"
_SHOWN = 3  # names in a message


class _Rule(NamedTuple):
    """Attributes:
    pattern: of the names to change; {0} stands for the first group of `where`.
    to: replacement of the match, which may contain {0}; None skips the entry.
    where: the rule applies only if this matches some name.
    unless: the rule does not apply if this, which may contain {0}, matches some name.
    """

    pattern: str
    to: str | Callable[[re.Match[str]], str] | None
    where: str = ""
    unless: str = ""


_RULES = (
    # torch: DataParallel, DistributedDataParallel, AveragedModel and compile, of any submodule.
    _Rule(r"(?:^|(?<=\.))(?:(?:module|_orig_mod)\.)+", ""),
    # AveragedModel's counter of updates, a profiler's counters of operations.
    _Rule(r"(?:^|\.)(?:n_averaged|total_ops|total_params)$", None),
    # transformers
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
    # mmpretrain
    _Rule(r"^head\.fc\.", "backbone.fc.", where=r"^backbone\.conv1\.weight$"),
    # Contrastive learning: this fc is a projection, not a classifier.
    _Rule(r"^(?:encoder_q|base_encoder)\.fc\.", None),
    _Rule(r"^encoder\.fc\.", None, where=r"^predictor\."),
    # A classifier beside a ResNet without one.
    _Rule(f"^(?={_HEAD})", "{0}", where=rf"^{_PREFIX}conv1\.weight$", unless=f"^{{0}}{_HEAD}"),
    # A network inside a larger module, whose other parts are not used.
    _Rule(r"^(?!{0})", None, where=f"^{_PREFIX}{_FIRST}"),
    _Rule(r"^{0}", "", where=f"^{_PREFIX}{_FIRST}"),
    # Other names of a ResNet's classifier; heads of self-supervised learning.
    _Rule(r"^(?:last_linear|classifier|head)\.(weight|bias)$", r"fc.\1", where=r"^conv1\.weight$"),
    _Rule(
        r"^(?:fc\.\d+|head\.mlp|head\.last_layer|projection_head|projector|prototypes|predictor)\.",
        None,
        where=r"^conv1\.weight$",
    ),
)


def rename(names: Iterable[str], *, origin: str) -> tuple[dict[str, str], str]:
    """Return ({name: its name in torchvision}, a note on what was renamed or skipped, or "").

    Raises UserError, naming `origin`, if two entries get one name.
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


def shorten(names: list[str]) -> str:
    """Return "a, b, c and 2 more"."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
