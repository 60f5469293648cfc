"""Order and random numbers: permutations, independence from the split, statistics."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.data.sampler import (
    Sampler,
    in_steps,
    permutation,
    record_uniforms,
    steps_per_epoch,
)

MASK = 2**64 - 1


def _splitmix64(state):
    """The published algorithm, one word at a time, in Python integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def _key(*parts):
    key = 0
    for part in parts:
        hashed = next(_splitmix64(part))
        key = next(_splitmix64((key + hashed) & MASK))
    return key


def test_words_are_splitmix64():
    for seed, epoch, index in [(0, 0, 0), (7, 3, 1_281_166), (2**40, 89, 5)]:
        words = _splitmix64(_key(seed, 2, epoch, index))
        want = [(next(words) >> 11) / 2**53 for _ in range(5)]
        got = record_uniforms(seed, np.array([epoch]), np.array([index]), np.array([0]), 5)[0]
        assert got.tolist() == want
    words = _splitmix64(_key(3, 1, 2))
    want = sorted(range(50), key=dict(enumerate(next(words) for _ in range(50))).get)
    assert permutation(50, seed=3, epoch=2).tolist() == want


@settings(max_examples=50)
@given(length=st.integers(1, 300), seed=st.integers(0, 2**62), epoch=st.integers(0, 1000))
def test_each_epoch_is_a_permutation(length, seed, epoch):
    assert sorted(permutation(length, seed, epoch)) == list(range(length))


def test_permutations_are_uniform():
    """Each of the 24 orders of 4 records equally often: chi-square with 23 degrees of freedom."""
    counts = {}
    for epoch in range(4800):
        key = tuple(permutation(4, 0, epoch))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert sum((c - 200) ** 2 / 200 for c in counts.values()) < 49.7  # 0.1 % level


def test_uniforms_are_uniform_and_uncorrelated():
    epochs, indices = np.divmod(np.arange(20_000), 5_000)
    u = record_uniforms(1, epochs, indices, np.zeros_like(epochs), 4)
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.003)
    columns = np.stack([*u.T, np.roll(u[:, 0], 1), np.roll(u[:, 0], 5_000)])
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.03  # neighbours in record, epoch and draw


@settings(max_examples=60)
@given(
    length=st.integers(1, 60),
    batch=st.integers(1, 20),
    remainder=st.sampled_from(["carry", "drop"]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_window_of_the_run_is_the_same_sequence(length, batch, remainder, seed, data):
    if remainder == "drop" and length < batch:
        return
    per_epoch = length if remainder == "carry" else length // batch * batch
    whole = [
        (epoch, int(i)) for epoch in range(4) for i in permutation(length, seed, epoch)[:per_epoch]
    ]
    sampler = Sampler(length, seed=seed, batch_size=batch, remainder=remainder)
    sampler = data.draw(st.sampled_from([sampler, pickle.loads(pickle.dumps(sampler))]))
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, len(whole)))
    epochs, indices, copies = sampler.records(start, stop)
    assert not copies.any()
    assert list(zip(epochs.tolist(), indices.tolist(), strict=True)) == whole[start:stop]


def test_whole_epochs_in_steps_are_those_of_integer_arithmetic():
    """Every epoch of every data set here; 1,328 images in batches of 320 make 249 in 60 epochs."""
    assert math.ceil(60 * (1328 / 320)) == 250  # what a product of floats gives
    for images in range(1300, 1340):
        for batch in (48, 96, 160, 192, 320, 384):
            per_epoch = steps_per_epoch(images, batch)
            for epoch in range(1, 91):
                want = -(-epoch * images // batch)
                assert math.ceil(in_steps(float(epoch), per_epoch)) == want


@settings(max_examples=200)
@given(
    images=st.integers(1, 2_000_000), batch=st.integers(1, 16_384), steps=st.integers(1, 1_000_000)
)
def test_epochs_that_are_steps_over_steps_per_epoch_are_these_steps(images, batch, steps):
    per_epoch = steps_per_epoch(images, batch)
    for epochs in (steps * batch / images, steps * (batch / images), steps / (images / batch)):
        assert in_steps(epochs, per_epoch) == steps


@settings(max_examples=200)
@given(images=st.integers(1, 2_000_000), batch=st.integers(1, 16_384), tenths=st.integers(1, 9_999))
def test_decimal_epochs_in_steps_are_rounded_where_the_decimal_is(images, batch, tenths):
    want = math.ceil(Fraction(tenths, 10) * images / batch)
    assert math.ceil(in_steps(tenths / 10, steps_per_epoch(images, batch))) == want


def test_steps_per_epoch_by_hand():
    assert steps_per_epoch(1_281_167, 256, "carry") == pytest.approx(5004.55859375)
    assert steps_per_epoch(1_281_167, 256, "drop") == 5004


@settings(max_examples=60)
@given(
    length=st.integers(1, 60),
    batch=st.integers(1, 20),
    repeats=st.integers(1, 6),
    remainder=st.sampled_from(["carry", "drop"]),
    seed=st.integers(0, 99),
    hosts=st.sampled_from([1, 2, 4]),
)
def test_all_copies_of_an_image_are_in_one_global_batch(
    length, batch, repeats, remainder, seed, hosts
):
    batch *= hosts
    if remainder == "drop" and length < batch:
        return
    sampler = Sampler(length, seed=seed, batch_size=batch, remainder=remainder, repeats=repeats)
    per_epoch = length if remainder == "carry" else length // batch * batch
    assert sampler.steps_per_epoch == Fraction(per_epoch, batch)
    seen = {}  # epoch -> its records in the order of their first copies
    for step in range(-(-12 * per_epoch // batch)):
        share = batch // hosts
        parts = [
            sampler.records(step * batch + h * share, step * batch + (h + 1) * share)
            for h in range(hosts)
        ]
        rows = list(zip(*np.concatenate(parts, axis=1).tolist(), strict=True))
        groups = {}
        for place, (epoch, index, copy) in enumerate(rows):
            groups.setdefault((epoch, index), []).append((copy, place))
            assert abs(epoch * per_epoch - step * batch) < per_epoch + batch
        sizes = [len(group) for group in groups.values()]
        assert sizes[:-1] == [repeats] * (len(sizes) - 1)
        assert sizes[-1] == (batch % repeats or repeats)
        for (epoch, index), group in groups.items():
            assert index not in seen.setdefault(epoch, [])  # no copy in any other batch
            seen[epoch].append(index)
            assert [copy for copy, _ in group] == list(range(len(group)))
            places = [place for _, place in group]
            assert (np.diff(places) >= batch // repeats).all()
    for epoch, indices in seen.items():
        assert indices == permutation(length, seed, epoch)[: len(indices)].tolist()
        assert len(indices) <= per_epoch


@pytest.mark.parametrize("batch, repeats", [(1024, 4), (2048, 3), (1000, 3), (96, 5)])
def test_as_many_copies_stay_together_as_where_an_epoch_starts_with_a_batch(batch, repeats):
    """The samplers of torchvision's references and of timm repeat each record in place, and each
    epoch starts with a new batch."""
    length, epochs = 12_345, 20

    def together(images):
        _, place, times = np.unique(images, return_inverse=True, return_counts=True)
        return (times[place] == repeats).sum()

    kept = theirs = rows = 0
    sampler = Sampler(length, seed=0, batch_size=batch, repeats=repeats)
    for step in range(epochs * length // batch):
        epoch, index, _ = sampler.records(step * batch, (step + 1) * batch)
        kept += together(epoch * length + index)
    for epoch in range(epochs):
        in_place = np.repeat(permutation(length, 0, epoch), repeats)[:length]
        for first in range(0, length - batch + 1, batch):
            theirs += together(in_place[first : first + batch])
            rows += batch
    share = kept / (epochs * length // batch * batch)
    assert share == (batch - batch % repeats) / batch
    assert share >= theirs / rows


def test_neighbors_of_a_batch_are_different_images_and_each_has_all_its_copies():
    sampler = Sampler(1000, seed=0, batch_size=48, repeats=3)
    for step in range(20):
        _, indices, copies = sampler.records(48 * step, 48 * step + 48)
        assert (indices != np.roll(indices, 1)).all()
        assert len(set(indices)) == 16
        assert sorted(zip(indices, copies, strict=True)) == sorted(
            (i, c) for i in set(indices) for c in range(3)
        )


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_over_sampling_shows_every_class_as_often_as_the_largest(sizes, repeats, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[permutation(len(labels), 1, 0)]
    sampler = Sampler(
        len(labels), seed=seed, batch_size=4, repeats=repeats, balance="over", labels=labels
    )
    present = [size for size in sizes if size]
    length = len(present) * max(present)
    assert sampler.steps_per_epoch == Fraction(length, 4)
    epochs, indices, copies = sampler.records(0, length)
    assert len(set(zip(epochs, indices, copies, strict=True))) == length
    if repeats == 1:
        assert np.bincount(labels[indices], minlength=len(sizes)).tolist() == [
            max(present) if size else 0 for size in sizes
        ]
        for label, size in enumerate(sizes):
            times = np.bincount(indices, minlength=len(labels))[labels == label]
            assert size == 0 or times.max() - times.min() <= 1
            assert size == 0 or times.min() >= max(present) // size
        # Copies are numbered from 0 without gaps: no two share their random numbers.
        for index in set(indices.tolist()):
            mine = copies[indices == index]
            assert sorted(mine) == list(range(len(mine)))


def test_over_sampling_picks_other_extras_and_another_order_each_epoch():
    labels = np.repeat([0, 1], [40, 30])
    sampler = Sampler(70, seed=0, batch_size=8, balance="over", labels=labels)
    epochs = [sampler.records(80 * e, 80 * (e + 1))[1] for e in range(2)]
    twice = [set(np.flatnonzero(np.bincount(indices, minlength=70) == 2)) for indices in epochs]
    assert len(twice[0]) == len(twice[1]) == 10 and twice[0] != twice[1]
    runs = np.flatnonzero(np.diff(labels[epochs[0]]) != 0)
    assert len(runs) > 20  # classes are mixed, not one after the other


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
)
def test_under_sampling_shows_as_many_of_each_class_as_the_smallest_has(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    sampler = Sampler(len(labels), seed=seed, batch_size=4, balance="under", labels=labels)
    present = [size for size in sizes if size]
    length = len(present) * min(present)
    _, indices, copies = sampler.records(0, length)
    assert not copies.any() and len(set(indices.tolist())) == length
    assert np.bincount(labels[indices], minlength=len(sizes)).tolist() == [
        min(present) if size else 0 for size in sizes
    ]


def test_under_sampling_covers_a_large_class_over_the_epochs():
    labels = np.repeat([0, 1], [40, 4])
    sampler = Sampler(44, seed=0, batch_size=8, balance="under", labels=labels)
    _, indices, _ = sampler.records(0, 8 * 60)
    assert set(indices.tolist()) == set(range(44))


def test_copies_take_the_numbers_that_follow():
    words = record_uniforms(3, np.array([1]), np.array([5]), np.array([0]), 12)[0]
    for copy in range(3):
        own = record_uniforms(3, np.array([1]), np.array([5]), np.array([copy]), 4)[0]
        assert own.tolist() == words[4 * copy : 4 * copy + 4].tolist()
