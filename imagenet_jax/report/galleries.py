"""Pictures of the page: samples, confused pairs, filters, feature maps, Grad-CAM."""

from collections.abc import Sequence

import numpy as np

from imagenet_jax.markup import data_uri, escape
from imagenet_jax.report.records import Explained, Pair, Sample

_PIXELATED = 64  # a side of fewer pixels is shown pixel by pixel


def samples(chosen: Sequence[Sample]) -> str:
    """A grid of images with what they are and what they were taken for."""
    figures = "".join(
        f"<figure>{_image(s.pixels, s.name)}<figcaption>{_verdict(s)}</figcaption></figure>"
        for s in chosen
    )
    return f'<div class="gallery">{figures}</div>'


def pairs(found: Sequence[Pair]) -> str:
    """A row for each pair: how often, and some of its images."""
    rows = []
    for pair in found:
        images = "".join(
            f"<figure>{_image(sample.pixels, sample.name)}"
            f"<figcaption>{sample.confidence:.1%}</figcaption></figure>"
            for sample in pair.samples
        )
        number = f"{pair.images:,} image{'' if pair.images == 1 else 's'}, {pair.share:.1%}"
        rows.append(
            f"<div class=pair><p><b>{escape(pair.true)}</b> taken for "
            f"<b>{escape(pair.predicted)}</b><br><span class=muted>{number} of "
            f'{escape(pair.true)}</span></p><div class="gallery">{images}</div></div>'
        )
    return "".join(rows)


def filters(explained: Explained) -> str:
    """Kernels of the first convolution as colours."""
    shown = len(explained.filters)
    images = "".join(
        f"<figure>{_image(kernel, f'filter {i}')}</figure>"
        for i, kernel in enumerate(explained.filters)
    )
    height, width = explained.filters.shape[1:3]
    of = f" of {explained.filters_count:,}" if shown < explained.filters_count else ""
    return (
        f"<p>{shown:,}{of} filters of {height}x{width} pixels of <code>"
        f"{escape(explained.filters_layer)}</code>, each scaled by itself: mid-grey is 0.</p>"
        f'<div class="gallery small">{images}</div>'
    )


def feature_maps(explained: Explained) -> str:
    """Channels of some layers for one image."""
    parts = [samples([explained.subject])]
    for layer in explained.feature_maps:
        height, width = layer.maps.shape[1:]
        images = "".join(
            f"<figure>{_image(one, f'channel {i}')}</figure>" for i, one in enumerate(layer.maps)
        )
        parts.append(
            f"<h3><code>{escape(layer.layer)}</code></h3><p>{len(layer.maps)} of "
            f"{layer.channels:,} channels, {height}x{width}; each scaled to its own range.</p>"
            f'<div class="gallery small">{images}</div>'
        )
    return "".join(parts)


def cams(explained: Explained) -> str:
    """Each image beside where the model looked for the class that it predicts."""
    figures = "".join(
        f'<figure><div class="beside">{_image(s.pixels, s.name)}'
        f"{_image(cam, 'Grad-CAM')}</div>"
        f"<figcaption>{_verdict(s)}</figcaption></figure>"
        for s, cam in explained.cams
    )
    return (
        f"<p>What speaks for the predicted class at <code>{escape(explained.cam_layer)}</code> "
        "(Selvaraju et al. 2017), from blue (nothing) to red (the most).</p>"
        f'<div class="gallery wide">{figures}</div>'
    )


def _verdict(sample: Sample) -> str:
    """What it was taken for, how surely, and what it is."""
    guess = f"{escape(sample.predicted)} {sample.confidence:.1%}"
    if sample.is_right:
        return f'<span class="right">{guess}</span>'
    return f'<span class="wrong">{guess}</span><br>is {escape(sample.true)}'


def _image(pixels: np.ndarray, name: str) -> str:
    small = ' class="pixels"' if max(pixels.shape[:2]) <= _PIXELATED else ""
    text = escape(name)
    return f'<img{small} src="{data_uri(pixels)}" alt="{text}" title="{text}" loading="lazy">'
