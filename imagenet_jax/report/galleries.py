"""Pictures of the page as HTML: samples, confused pairs, filters, feature maps, Grad-CAM."""

from collections.abc import Iterable, Sequence

import numpy as np

from imagenet_jax.markup import data_uri, escape
from imagenet_jax.report.predictions import Explained, Pair, Sample

_PIXELATED_SIDE = 64  # smaller images are shown pixel by pixel


def show_samples(samples: Sequence[Sample]) -> str:
    """Return a grid of images with their predicted and true classes."""
    return _gallery((_image(s.pixels, s.name), _verdict(s)) for s in samples)


def show_pairs(pairs: Sequence[Pair]) -> str:
    """Return a row for each pair of confused classes: how often, and some of its images."""
    rows = []
    for pair in pairs:
        images = _gallery((_image(s.pixels, s.name), f"{s.confidence:.1%}") for s in pair.samples)
        count = f"{pair.count:,} image{'' if pair.count == 1 else 's'}, {pair.fraction:.1%}"
        rows.append(
            f'<div class="pair"><p><b>{escape(pair.true)}</b> taken for '
            f'<b>{escape(pair.predicted)}</b><br><span class="muted">{count} of '
            f"{escape(pair.true)}</span></p>{images}</div>"
        )
    return "".join(rows)


def show_filters(explained: Explained) -> str:
    """Return the kernels of the first convolution as colors."""
    count, height, width = explained.filters.shape[:3]
    of = f" of {explained.filters_count:,}" if count < explained.filters_count else ""
    return (
        f"<p>{count:,}{of} filters of <code>{escape(explained.filters_layer)}</code>, "
        f"{height}x{width} pixels, each scaled separately; mid-gray is 0.</p>"
        + _gallery(
            ((_image(f, f"filter {i}"), "") for i, f in enumerate(explained.filters)), "small"
        )
    )


def show_feature_maps(explained: Explained) -> str:
    """Return channels of some layers for one image."""
    parts = [show_samples([explained.subject])]
    for layer in explained.feature_maps:
        count, height, width = layer.maps.shape
        parts.append(
            f"<h3><code>{escape(layer.layer)}</code></h3><p>{count} of {layer.channels:,} "
            f"channels, {height}x{width}, each scaled to its own range.</p>"
            + _gallery(((_image(m, f"channel {i}"), "") for i, m in enumerate(layer.maps)), "small")
        )
    return "".join(parts)


def show_cams(explained: Explained) -> str:
    """Return each image next to its Grad-CAM map of the predicted class."""
    pairs = (
        (
            f'<div class="beside">{_image(s.pixels, s.name)}{_image(cam, "Grad-CAM")}</div>',
            _verdict(s),
        )
        for s, cam in explained.cams
    )
    return (
        "<p>Evidence for the predicted class in the output of "
        f"<code>{escape(explained.cam_layer)}</code> (Selvaraju et al. 2017), from blue (none) to "
        f"red (most).</p>{_gallery(pairs, 'wide')}"
    )


def _gallery(figures: Iterable[tuple[str, str]], size: str = "") -> str:
    """Return a grid of (image, caption), both HTML."""
    content = "".join(
        f"<figure>{image}" + (f"<figcaption>{text}</figcaption>" if text else "") + "</figure>"
        for image, text in figures
    )
    return f'<div class="gallery {size}">{content}</div>'


def _verdict(sample: Sample) -> str:
    """Return the predicted class with its confidence, and the true class if it is another."""
    guess = f"{escape(sample.predicted)} {sample.confidence:.1%}"
    if sample.is_right:
        return f'<span class="right">{guess}</span>'
    return f'<span class="wrong">{guess}</span><br>is {escape(sample.true)}'


def _image(pixels: np.ndarray, name: str) -> str:
    small = ' class="pixels"' if max(pixels.shape[:2]) <= _PIXELATED_SIDE else ""
    text = escape(name)
    return f'<img{small} src="{data_uri(pixels)}" alt="{text}" title="{text}" loading="lazy">'
