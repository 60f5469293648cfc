"""Batches: the same whatever the hosts, threads and workers; exact coverage; bounded memory."""

import threading
import time

import numpy as np
import pytest
from conftest import tiny_config
from damaged_source import Damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.data import pipeline, sources
from imagenet_jax.data.sampler import permutation
from imagenet_jax.errors import UserError


class Recording:
    """A source that notes what is read."""

    def __init__(self, source, length=None):
        self._source, self._length = source, length or len(source)
        self.name, self.class_names = source.name, source.class_names
        self.fingerprint = source.fingerprint
        self.reads = []
        self._lock = threading.Lock()

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        with self._lock:
            self.reads.append(index)
        return self._source[index]

    def labels(self):
        return self._source.labels()[: self._length]


@pytest.fixture(scope="module")
def digits(digits_path):
    return sources.open_source(tiny_config(digits_path).data, "train")


def _train(source, config, *, steps=6, batch_size=8, start=0, index=0, count=1):
    return list(
        pipeline.train_batches(
            source,
            pipeline.make_sampler(source, config.data, seed=config.seed, batch_size=batch_size),
            config,
            total_steps=steps,
            start_step=start,
            process_index=index,
            process_count=count,
        )
    )


def _assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 1000),
    threads=st.integers(1, 16),
    processes=st.sampled_from([1, 2, 4, 8]),
    length=st.integers(9, 40),
    start=st.integers(0, 6),
    remainder=st.sampled_from(["carry", "drop"]),
    repeats=st.integers(1, 3),
    balance=st.sampled_from(["none", "over", "under"]),
)
def test_global_batches_do_not_depend_on_who_loads_them(
    digits, seed, threads, processes, length, start, remainder, repeats, balance
):
    config = tiny_config("")
    config.data.repeated_aug, config.data.balance = repeats, balance
    if balance == "under":
        config.data.remainder = remainder = "carry"  # a balanced epoch may be below a batch
    config.seed, config.data.remainder, config.data.threads = seed, remainder, 1
    source = Recording(digits, length)
    whole = _train(source, config)
    config.data.threads = threads
    shares = [
        _train(source, config, start=start, index=i, count=processes) for i in range(processes)
    ]
    joined = [
        {name: np.concatenate([share[k][name] for share in shares]) for name in whole[0]}
        for k in range(len(whole) - start)
    ]
    _assert_equal(joined, whole[start:])


def test_worker_processes_load_the_same_batches(digits):
    config = tiny_config("")
    want = _train(digits, config)
    config.data.workers = 2
    # That they begin at step 0 is tested with undecodable records.
    _assert_equal(_train(digits, config, start=3), want[3:])


def test_no_image_is_lost_when_batches_run_across_epochs(digits):
    config = tiny_config("")
    source = Recording(digits, 20)
    config.data.threads = 1
    _train(source, config, steps=5, batch_size=8)  # two epochs of 20
    assert source.reads == [*permutation(20, 0, 0), *permutation(20, 0, 1)]


def test_the_remainder_of_an_epoch_is_dropped_when_asked(digits):
    config = tiny_config("")
    config.data.remainder, config.data.threads = "drop", 1
    source = Recording(digits, 20)
    _train(source, config, steps=4, batch_size=8)
    assert source.reads == [*permutation(20, 0, 0)[:16], *permutation(20, 0, 1)[:16]]


def test_a_process_reads_only_its_rows_and_resuming_reads_nothing_again(digits):
    config = tiny_config("")
    config.data.threads = 1
    source = Recording(digits, 40)
    _train(source, config, steps=5, start=2, index=1, count=2)
    order = permutation(40, 0, 0)
    assert source.reads == [i for k in (2, 3, 4) for i in order[8 * k + 4 : 8 * k + 8]]


def test_crops_of_a_record_change_with_the_epoch(digits):
    config = tiny_config("")
    config.augment.crop_scale = (0.2, 0.9)
    a, b = _train(Recording(digits, 8), config, steps=2)
    rows = [list(permutation(8, 0, epoch)).index(3) for epoch in (0, 1)]
    assert a["label"][rows[0]] == b["label"][rows[1]]
    assert (a["image"][rows[0]] != b["image"][rows[1]]).any()


@settings(max_examples=25)
@given(length=st.integers(1, 50), rows=st.integers(1, 9), processes=st.sampled_from([1, 2, 4]))
def test_evaluation_covers_every_record_once(digits, length, rows, processes):
    config = tiny_config("")
    config.eval.batch_size = rows * processes
    shares = []
    for i in range(processes):
        source = Recording(digits, length)
        batches = pipeline.eval_batches(source, config, process_index=i, process_count=processes)
        shares.append((list(batches), source.reads))
    assert sorted(r for _, reads in shares for r in reads) == list(range(length))
    assert len({len(batches) for batches, _ in shares}) == 1
    assert sum(b["mask"].sum() for batches, _ in shares for b in batches) == length
    labels = np.concatenate(
        [shares[i][0][k]["label"] for k in range(len(shares[0][0])) for i in range(processes)]
    )
    masks = np.concatenate(
        [shares[i][0][k]["mask"] for k in range(len(shares[0][0])) for i in range(processes)]
    )
    assert labels[masks == 1].tolist() == [digits[i]["label"] for i in range(length)]
    assert (labels[masks == 0] == 0).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_record_is_named_once_and_cleanly(digits, workers):
    config = tiny_config("")
    config.data.workers = workers
    with pytest.raises(UserError) as e:
        _train(Damaged(digits, every=1), config)
    assert "digit" in str(e.value) and "cannot be decoded" in str(e.value)
    assert "--config.data.undecodable=skip" in str(e.value)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_undecodable_records_are_skipped_by_name_and_change_nothing_else(digits, workers):
    config = tiny_config("")
    good = _train(Recording(digits, 40), config, steps=10)
    config.data.undecodable, config.data.workers = "skip", workers
    source = Damaged(digits, every=7)
    got = _train(source, config, steps=10)
    mean = np.round(np.array(config.data.mean) * 255).astype(np.uint8)
    order = [*permutation(40, 0, 0), *permutation(40, 0, 1)]
    for step, (batch, want) in enumerate(zip(got, good, strict=True)):
        here = np.array(order[8 * step : 8 * step + 8])
        assert batch["mask"].tolist() == (here % 7 != 0).tolist()
        assert batch["skipped"] == [digits[int(i)]["id"] for i in here if i % 7 == 0]
        np.testing.assert_array_equal(batch["label"], want["label"])
        for row, index in enumerate(here):
            expected = (
                want["image"][row] if index % 7 else np.broadcast_to(mean, want["image"][row].shape)
            )
            np.testing.assert_array_equal(batch["image"][row], expected)


def test_undecodable_records_of_evaluation_are_masked_and_named(digits):
    config = tiny_config("")
    config.data.undecodable, config.eval.batch_size = "skip", 16
    batches = list(pipeline.eval_batches(Damaged(digits, every=9), config))
    masks = np.concatenate([b["mask"] for b in batches])
    assert masks.tolist() == [float(i < 40 and i % 9 != 0) for i in range(48)]
    names = [name for b in batches for name in b["skipped"]]
    assert names == [digits[i]["id"] for i in range(0, 40, 9)]


class Unlabelled(Damaged):
    def __getitem__(self, index):
        return self._source[index] | {"label": -1}


def test_a_label_that_is_no_class_is_named(digits):
    with pytest.raises(UserError, match=r"digit_\d+\.png has label -1, not one of the 10 classes"):
        _train(Unlabelled(digits, every=1), tiny_config(""))


def test_prefetch_is_bounded_in_bytes(digits):
    """With room for two batches no more than two are made ahead of the consumer."""
    config = tiny_config("")
    config.augment.image_size = 256  # 1.5 MiB a batch of 8
    config.data.prefetch_mb, config.data.threads = 3, 4
    source = Recording(digits)
    order = pipeline.make_sampler(source, config.data, seed=0, batch_size=8)
    batches = pipeline.train_batches(source, order, config, total_steps=50)
    next(batches)
    time.sleep(1.0)
    # One handed out, two waiting, and one that a thread holds until there is room.
    assert len(source.reads) <= 8 * 4
