"""Which record comes when, and the random numbers it gets: pure functions of the seed.

Nothing here depends on hosts, devices, threads or on where a run was resumed, nor on a library's
generators, which may change between versions: words come from SplitMix64 (Steele, Lea & Flood 2014,
"Fast splittable pseudorandom number generators"), used as a hash of a counter.
"""

import copy
import threading
from collections import OrderedDict
from fractions import Fraction

import numpy as np

_SHUFFLE, _RECORD, _MIX = 1, 2, 3  # keep the families of streams apart
_ROUNDING = Fraction(1, 2**50)  # relative error of a float after a few operations
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd


def steps_per_epoch(length: int, batch_size: int, remainder: str = "carry") -> Fraction:
    """Batches in one pass over `length` records.

    "carry" fills the last batch of an epoch from the next one, so the number is fractional and no
    record is lost; "drop" leaves out what does not fill a batch.
    """
    return Fraction(length, batch_size) if remainder == "carry" else Fraction(length // batch_size)


def in_steps(epochs: float, steps_per_epoch: Fraction | float) -> Fraction:
    """Return `epochs` in steps: every duration of a config is converted here.

    The product is exact. If it differs from a whole number by no more than the rounding of
    `epochs`, as with epochs = steps / steps_per_epoch, it is that whole number. The caller rounds
    fractions: `math.ceil` gives the first step that starts after `epochs`.
    """
    steps = Fraction(epochs) * Fraction(steps_per_epoch)
    whole = Fraction(round(steps))
    return whole if abs(steps - whole) <= abs(whole) * _ROUNDING else steps


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """i64[length]: the order of one epoch, a uniformly random permutation of (seed, epoch)."""
    words = _words(_key(seed, _SHUFFLE, epoch), length)
    return np.argsort(words, kind="stable")


def record_uniforms(
    seed: int, epochs: np.ndarray, indices: np.ndarray, copies: np.ndarray, count: int
) -> np.ndarray:
    """f64[N, count] in [0, 1): the random numbers of record indices[n] in epoch epochs[n].

    The record's further appearances, copies[n] > 0, take the numbers that follow.
    """
    key = _key(seed, _RECORD, epochs, indices) + _GAMMA * (copies * count).astype(np.uint64)
    return (_words(key[:, None], count) >> np.uint64(11)) * 2.0**-53


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


class Sampler:
    """The sequence of records of a whole run: position 0, 1, 2, ... -> (epoch, index, copy)."""

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
        """`length` records; see `steps_per_epoch` for `remainder`.

        Args:
          repeats: copies of a record in a global batch. An epoch has as many positions as without
            copies and shows about 1 / repeats of the records (Hoffer et al. 2020,
            arXiv:1901.09335; Berman et al. 2019, arXiv:1902.05509). All copies of a record are in
            one batch, also in a batch that runs across epochs. If `repeats` does not divide
            `batch_size`, one record of each batch has only batch_size % repeats copies. Copies
            are at least batch_size // repeats rows apart: mixup pairs neighbors, which should be
            different images.
          balance: "over": in an epoch every class has as many positions as the largest, its records
            coming equally often, give or take one; "under": as many as the smallest, other
            records in each epoch.
          labels: i[length], for balance.
        """
        self.seed, self.batch_size, self.repeats, self.balance = seed, batch_size, repeats, balance
        self.shift, self.drops = 0, remainder == "drop"
        self.length, self._labels = length, labels
        positions = balanced_length(labels, balance) if labels is not None else length
        self.steps_per_epoch = steps_per_epoch(positions, batch_size, remainder)
        self.records_per_epoch = (
            positions if remainder == "carry" else positions // batch_size * batch_size
        )
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def shifted(self, shift: int) -> "Sampler":
        """Return the same order for a run whose batch k starts at k * batch_size + shift.

        Such a run had another batch size in its first steps.
        """
        moved = copy.copy(self)
        moved.shift = shift
        return moved

    def rows(self, batch: int, rows: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `records` of some rows of batch 0, 1, ... of the run."""
        first = batch * self.batch_size + self.shift
        return self.records(first + rows.start, first + rows.stop)

    def records(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(epochs, indices, copies), i64[stop - start] each, of the run's positions start to stop.

        Copies number a record's appearances in its epoch, from 0.
        """
        batches, rows = np.divmod(np.arange(start, stop), self.batch_size)
        repeat, record = self._layout(rows)
        # The first position of each record if its copies came one after the other.
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

    def _layout(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(repeat, record) of rows of a batch: the records' first copies, then the second, ..."""
        complete, left = divmod(self.batch_size, self.repeats)
        split = left * (complete + 1)  # the record that has only `left` copies comes last
        repeat, record = np.divmod(rows, complete + 1)
        later, place = np.divmod(rows - split, max(complete, 1))
        return np.where(rows < split, repeat, left + later), np.where(rows < split, record, place)

    def _records_before(self, positions: np.ndarray) -> np.ndarray:
        """Records whose first position (see `records`) is before each of the positions."""
        batches, rows = np.divmod(positions, self.batch_size)
        return batches * -(-self.batch_size // self.repeats) + -(-rows // self.repeats)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._draw(epoch)
                while len(self._epochs) > 2:  # batches run across the end of an epoch
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices, copies) of an epoch."""
        order = permutation(self.length, self.seed, epoch)
        if self._labels is None or self.balance == "none":
            return order, np.broadcast_to(0, len(order))
        by_class = order[np.argsort(self._labels[order], kind="stable")]
        counts = class_sizes(self._labels)
        starts = np.cumsum(counts) - counts
        # Each record's place among those of its class, in this epoch's order.
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
        """For worker processes: permutations are cheaper made again than sent."""
        return self.__dict__ | {"_epochs": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def balanced_length(labels: np.ndarray, balance: str) -> int:
    """Positions of an epoch in which each class that is there has equally many, see `Sampler`."""
    counts = class_sizes(labels)
    each = {"over": counts.max(), "under": counts.min()}
    return int(len(counts) * each[balance]) if balance in each else len(labels)


def class_sizes(labels: np.ndarray) -> np.ndarray:
    """i64[K]: records of each of the K classes that have any, in the order of labels."""
    counts = np.bincount(labels)
    return counts[counts > 0]
