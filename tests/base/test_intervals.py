"""Confidence intervals agree with tables, with integration, and with what they promise."""

from __future__ import annotations

import math
import random

import pytest

from hf_condense.base.intervals import mean_interval, t_quantile
from tests.reference.intervals import probability_within


@pytest.mark.parametrize(
    ("degrees", "level", "expected"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.99, 2.750)],
)
def test_quantiles_are_those_of_printed_tables(degrees, level, expected):
    assert t_quantile(degrees, level) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("degrees", [2, 3, 4, 7, 10, 25])
def test_quantiles_agree_with_integration(degrees):
    for level in (0.5, 0.95, 0.99):
        assert probability_within(t_quantile(degrees, level), degrees) == pytest.approx(level, abs=1e-9)


def test_many_degrees_give_the_normal_distribution():
    assert t_quantile(2000) == pytest.approx(1.959964, abs=2e-3)


def test_an_interval_of_two_values_is_that_of_the_formula():
    low, high = mean_interval([1.0, 3.0])
    assert (low + high) / 2 == 2
    assert high - low == pytest.approx(2 * math.tan(0.95 * math.pi / 2))  # t with one degree is Cauchy; the error is 1


def test_a_single_value_has_no_interval():
    assert mean_interval([0.5]) is None


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_intervals_cover_the_mean_as_often_as_they_promise():
    draw = random.Random(0)
    trials = 2000
    intervals = [mean_interval([draw.gauss(1, 2) for _ in range(4)]) for _ in range(trials)]
    covered = sum(low <= 1 <= high for low, high in intervals) / trials
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))
