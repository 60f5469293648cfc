"""The order of the records in a run, and the random numbers of each, as functions of the seed.

They do not depend on hosts, devices, threads, or where a run was resumed. Random words come from
SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), used as a
hash of a counter, because the random generators of libraries may change between versions.
"""

import copy
import threading
from collections import OrderedDict
from fractions import Fraction

import numpy as np

_SHUFFLE, _RECORD, _MIX = 1, 2, 3  # each use has its own random stream
_ROUNDING = Fraction(1, 2**50)  # relative error of a float after a few operations
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd


def steps_per_epoch(length: int, batch_size: int, remainder: str = "carry") -> Fraction:
    """Return the number of batches in one pass over `length` records.

    "carry" fills the last batch of an epoch with records of the next epoch, so that no record is
    lost and the number may be fractional. "drop" drops the records that do not fill a batch.
    """
    return Fraction(length, batch_size) if remainder == "carry" else Fraction(length // batch_size)


def in_steps(epochs: float, steps_per_epoch: Fraction | float) -> Fraction:
    """Convert a duration from epochs to steps.

    The product is exact, except that it is rounded to a whole number if it differs only by the
    rounding error of `epochs`: epochs = steps / steps_per_epoch gives `steps`. Callers round
    fractions; `math.ceil` gives the number of steps that start before `epochs` have passed.
    """
    steps = Fraction(epochs) * Fraction(steps_per_epoch)
    whole = Fraction(round(steps))
    return whole if abs(steps - whole) <= abs(whole) * _ROUNDING else steps


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, a uniformly random permutation i64[length]."""
    words = _words(_key(seed, _SHUFFLE, epoch), length)
    return np.argsort(words, kind="stable")


def record_uniforms(
    seed: int, epochs: np.ndarray, indices: np.ndarray, copies: np.ndarray, count: int
) -> np.ndarray:
    """Return the random numbers of record indices[n] in epoch epochs[n]: f64[N, count] in [0, 1).

    Appearances of a record in the same epoch (copies[n] = 0, 1, ...) get different numbers.
    """
    key = _key(seed, _RECORD, epochs, indices) + _GAMMA * (copies * count).astype(np.uint64)
    return (_words(key[:, None], count) >> np.uint64(11)) * 2.0**-53


def _key(*parts: int | np.ndarray) -> np.ndarray:
    """Return a hash of the parts: u64[1] or, if a part is an array, u64[N]."""
    key = np.zeros(1, np.uint64)  # overflow wraps around silently in arrays, scalars would warn
    for part in parts:
        key = _mix(key + _GAMMA + _mix(np.atleast_1d(np.asarray(part, np.uint64)) + _GAMMA))
    return key


def _words(key: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` outputs of SplitMix64 seeded with `key`, along a last axis."""
    return _mix(key + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def _mix(z: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer: flipping a bit of z flips about half the bits of the result."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Sampler:
    """The sequence of records of a whole run: position 0, 1, 2, ... -> (epoch, index, copy).

    Row r of batch k is position k * batch_size + r.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        remainder: str = "carry",
        repeats: int = 1,
        balance: str = "none",
        labels: np.ndarray | None = None,
    ):
        """Create the order of a run.

        Args:
          length: number of records.
          batch_size: size of the global batch.
          remainder: see `steps_per_epoch`.
          repeats: copies of a record in a global batch (Hoffer et al. 2020, arXiv:1901.09335;
            Berman et al. 2019, arXiv:1902.05509). Copies do not make an epoch longer, so it shows
            about 1 / repeats of the records. All copies of a record are in the same batch, even
            if the batch crosses epochs. If `repeats` does not divide `batch_size`, one record of
            each batch has only batch_size % repeats copies. Copies are at least
            batch_size // repeats rows apart, because mixup pairs neighboring rows.
          balance: "over": in each epoch, every class has as many positions as the largest class,
            and its records appear equally often, or once more. "under": every class has as many
            positions as the smallest class, with different records in each epoch.
          labels: i[length], required unless `balance` is "none".
        """
        self.seed, self.batch_size, self.repeats, self.balance = seed, batch_size, repeats, balance
        self.shift, self.drops = 0, remainder == "drop"
        self.length, self._labels = length, labels
        positions = length
        if labels is not None and balance != "none":
            sizes = _class_sizes(labels)
            positions = int(len(sizes) * (sizes.max() if balance == "over" else sizes.min()))
        self.steps_per_epoch = steps_per_epoch(positions, batch_size, remainder)
        self.records_per_epoch = int(self.steps_per_epoch * batch_size)
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def shifted(self, shift: int) -> "Sampler":
        """Return the same order with batch k starting at position k * batch_size + shift.

        It continues a run whose first steps had a different batch size.
        """
        moved = copy.copy(self)
        moved.shift = shift
        return moved

    def rows(self, batch: int, rows: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the `records` of `rows` of a batch. The first batch is 0."""
        first = batch * self.batch_size + self.shift
        return self.records(first + rows.start, first + rows.stop)

    def records(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (epochs, indices, copies) of positions start .. stop - 1: i64[stop - start] each.

        `copies` numbers the appearances of a record in an epoch, from 0.
        """
        batches, rows = np.divmod(np.arange(start, stop), self.batch_size)
        repeat, record = self._split_rows(rows)
        # The first position of each record if all its copies were adjacent.
        firsts = batches * self.batch_size + record * self.repeats
        epochs = firsts // self.records_per_epoch
        ranks = self._records_before(firsts) - self._records_before(epochs * self.records_per_epoch)
        indices, copies = np.empty_like(ranks), np.empty_like(ranks)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            of_epoch, again = self._epoch(int(epoch))
            indices[here] = of_epoch[ranks[here]]
            copies[here] = again[ranks[here]] * self.repeats + repeat[here]
        return epochs, indices, copies

    def _split_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (repeat, record) of rows of a batch: all first copies, all second copies, ..."""
        complete, left = divmod(self.batch_size, self.repeats)
        # The last record has only `left` copies, so only the first `left` repeats include it.
        split = left * (complete + 1)
        repeat, record = np.divmod(rows, complete + 1)
        later, place = np.divmod(rows - split, max(complete, 1))
        return np.where(rows < split, repeat, left + later), np.where(rows < split, record, place)

    def _records_before(self, positions: np.ndarray) -> np.ndarray:
        """Return how many records have their first position (see `records`) before `positions`."""
        batches, rows = np.divmod(positions, self.batch_size)
        return batches * -(-self.batch_size // self.repeats) + -(-rows // self.repeats)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._draw(epoch)
                while len(self._epochs) > 2:  # a batch may cross the end of an epoch
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (indices, copies) of all positions of an epoch."""
        order = permutation(self.length, self.seed, epoch)
        if self._labels is None or self.balance == "none":
            return order, np.broadcast_to(0, len(order))
        by_class = order[np.argsort(self._labels[order], kind="stable")]
        counts = _class_sizes(self._labels)
        starts = np.cumsum(counts) - counts
        # The rank of each record within its class, in the order of this epoch.
        rank = np.arange(len(by_class)) - np.repeat(starts, counts)
        if self.balance == "under":
            chosen = np.zeros(self.length, bool)
            chosen[by_class[rank < counts.min()]] = True
            order = order[chosen[order]]
            return order, np.broadcast_to(0, len(order))
        size = np.repeat(counts, counts)
        times = counts.max() // size + (rank < counts.max() % size)
        indices = np.repeat(by_class, times)
        copies = np.arange(len(indices)) - np.repeat(np.cumsum(times) - times, times)
        mixed = np.argsort(_words(_key(self.seed, _MIX, epoch), len(indices)), kind="stable")
        return indices[mixed], copies[mixed]

    def __getstate__(self) -> dict:
        """Return the state for a worker process, which computes permutations itself."""
        return self.__dict__ | {"_epochs": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _class_sizes(labels: np.ndarray) -> np.ndarray:
    """Return the number of records of each class, in label order, without empty classes."""
    counts = np.bincount(labels)
    return counts[counts > 0]
