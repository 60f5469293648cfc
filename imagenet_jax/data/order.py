"""Which record comes when, and the random numbers it gets: pure functions of the seed.

Nothing here depends on hosts, devices, threads or on where a run was resumed, nor on a library's
generators, which may change between versions: words come from SplitMix64 (Steele, Lea & Flood 2014,
"Fast splittable pseudorandom number generators"), used as a hash of a counter.
"""

import threading
from collections import OrderedDict

import numpy as np

_SHUFFLE, _RECORD = 1, 2  # keep the two families of streams apart
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd


def steps_per_epoch(length: int, batch_size: int, remainder: str = "carry") -> float:
    """Batches in one pass over `length` records.

    "carry" fills the last batch of an epoch from the next one, so the number is fractional and no
    record is lost; "drop" leaves out what does not fill a batch.
    """
    return length / batch_size if remainder == "carry" else float(length // batch_size)


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """i64[length]: the order of one epoch, a uniformly random permutation of (seed, epoch)."""
    words = _words(_key(seed, _SHUFFLE, epoch), length)
    return np.argsort(words, kind="stable")


def record_uniforms(seed: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """f64[N, count] in [0, 1): the random numbers of record indices[n] in epoch epochs[n]."""
    words = _words(_key(seed, _RECORD, epochs, indices)[:, None], count)
    return (words >> np.uint64(11)) * 2.0**-53


def _key(*parts: int | np.ndarray) -> np.ndarray:
    """u64: a hash of the parts, each mixed in before the next."""
    key = np.zeros(1, np.uint64)  # arrays wrap around silently where scalars would warn
    for part in parts:
        key = _mix(key + _GAMMA + _mix(np.atleast_1d(np.asarray(part, np.uint64)) + _GAMMA))
    return key


def _words(key: np.ndarray, count: int) -> np.ndarray:
    """The first `count` outputs of SplitMix64 seeded with `key`, along a last axis."""
    return _mix(key + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of z moves half of the bits of the result."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Order:
    """The sequence of records of a whole run: position 0, 1, 2, ... -> (epoch, index)."""

    def __init__(self, length: int, *, seed: int, batch_size: int, remainder: str = "carry"):
        """`length` records; see `steps_per_epoch` for `remainder`."""
        self.seed = seed
        self._length = length
        self._per_epoch = length if remainder == "carry" else length // batch_size * batch_size
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def records(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, indices), i64[stop - start] each, of the run's positions start to stop."""
        epochs, places = np.divmod(np.arange(start, stop), self._per_epoch)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[places[here]]
        return epochs, indices

    def _permutation(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = permutation(self._length, self.seed, epoch)
                while len(self._epochs) > 2:  # batches run across the end of an epoch
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def __getstate__(self) -> dict:
        """For worker processes: permutations are cheaper made again than sent."""
        return self.__dict__ | {"_epochs": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
