"""Codewords as files: what comes back, how small they are, and that damage is noticed."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.pointcloud.codec import PRECISIONS, BadCodeword, Codeword, Unencodable, pack, rounded, unpack

VALUES = np.random.default_rng(0).normal(0, 0.3, 512).astype(np.float32)


def codeword(values=VALUES):
    return Codeword(values, np.array([500_000.25, 5e6, -1e-9]), 2.5, b"12345678", 7)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_was_packed_comes_back(precision):
    data = pack(codeword(), precision)
    found = unpack(data)
    np.testing.assert_array_equal(found.values_W, rounded(VALUES, precision))
    np.testing.assert_array_equal(found.centre_3, codeword().centre_3)
    assert (found.scale, found.fingerprint, found.version, found.precision) == (2.5, b"12345678", 7, precision)
    np.testing.assert_array_equal(rounded(found.values_W, precision), found.values_W)


def test_sizes_and_errors():
    sizes = [len(pack(codeword(), precision)) for precision in PRECISIONS]
    assert sizes == sorted(sizes, reverse=True)
    # 2,048 points as float32 are 24,576 bytes; normal numbers pack to less than two and one bytes each.
    assert 24_576 / sizes[1] > 24
    assert 24_576 / sizes[2] > 43
    assert np.abs(rounded(VALUES, "fp32") - VALUES).max() == 0
    assert np.abs(rounded(VALUES, "fp16") - VALUES).max() < 5e-4
    assert np.abs(rounded(VALUES, "int8") - VALUES).max() <= np.abs(VALUES).max() / 127 / 2 + 1e-7


def test_numbers_beyond_a_precision():
    large = VALUES * 1e6
    with pytest.raises(Unencodable):
        pack(codeword(large), "fp16")
    assert np.abs(unpack(pack(codeword(large), "int8")).values_W - large).max() < 1e4
    assert (unpack(pack(codeword(VALUES * 0), "int8")).values_W == 0).all()
    for bad in (np.nan, np.inf):
        with pytest.raises(Unencodable):
            pack(codeword(np.where(VALUES > 0.5, np.float32(bad), VALUES)), "fp32")


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-60_000, 60_000, width=16)),
    st.sampled_from(PRECISIONS),
)
def test_any_numbers(values, precision):
    found = unpack(pack(codeword(values), precision)).values_W
    step = {"fp32": 0, "fp16": 0, "int8": np.abs(values).max() / 127 / 2}[precision]
    np.testing.assert_allclose(found, values, atol=step * 1.01 + 1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_damage_is_noticed(precision):
    data = pack(codeword(), precision)
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        place = chance.randrange(len(damaged))
        if chance.random() < 0.5:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            del damaged[place : place + chance.randrange(1, 9)]
        with pytest.raises(BadCodeword):
            unpack(damaged)
