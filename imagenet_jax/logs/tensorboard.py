"""TensorBoard: scalars, histograms and images as event files."""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from imagenet_jax.logs import event_files
from imagenet_jax.logs.writers import Histogram, Values, Writer, curves


class TensorBoardWriter(Writer):
    """Event files, one per start; points after `resume_step` of the run before are dropped."""

    def __init__(self, directory: Path, resume_step: int = 0):
        event_files.truncate(directory, resume_step)
        self._file = event_files.new_event_file(directory, resume_step)

    def write(self, step: int, split: str, values: Values) -> None:
        group, numbers = curves(split, values)
        event = _event(step)
        for name, value in numbers.items():
            event.summary.value.add(tag=f"{group}/{name}", simple_value=value)
        self._add(event)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        event = _event(step)
        for name, (counts, edges) in histograms.items():
            _fill(event.summary.value.add(tag=name).histo, np.asarray(counts), np.asarray(edges))
        self._add(event)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        event = _event(step)
        several = pixels.ndim == 4
        for i, picture in enumerate(pixels if several else [pixels]):
            tag = f"{name}/{i}" if several else name  # as TensorBoard's own writers number them
            png = io.BytesIO()
            Image.fromarray(picture).save(png, "PNG")
            height, width, colours = picture.shape
            image = event.summary.value.add(tag=tag).image
            image.height, image.width, image.colorspace = height, width, colours
            image.encoded_image_string = png.getvalue()
        self._add(event)

    def _add(self, event: Event) -> None:
        self._file.write(event_files.frame(event.SerializeToString()))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _event(step: int) -> Event:
    return Event(wall_time=time.time(), step=step)


def _fill(histo: Any, counts: np.ndarray, edges: np.ndarray) -> None:
    """HistogramProto: bucket i ends at bucket_limit[i]; sums are as of the bins' middles.

    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/histogram.proto
    """
    middles = (edges[:-1] + edges[1:]) / 2
    histo.min, histo.max, histo.num = float(edges[0]), float(edges[-1]), float(counts.sum())
    histo.sum = float((counts * middles).sum())
    histo.sum_squares = float((counts * middles**2).sum())
    histo.bucket_limit.extend(edges[1:].astype(float).tolist())
    histo.bucket.extend(counts.astype(float).tolist())
