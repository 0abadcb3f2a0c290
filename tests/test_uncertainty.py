"""Standard errors and intervals, held against formulas, scipy's own tests, and draws whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from vitutils.uncertainty import binomial_error, holm, paired_interval


def test_binomial_error_is_the_usual_one_and_not_zero_at_the_ends():
    assert binomial_error(0.957, 360) == pytest.approx(math.sqrt(0.957 * 0.043 / 360), rel=0.02)
    assert binomial_error(1.0, 60) == pytest.approx(binomial_error(0.0, 60)) == pytest.approx(1 / 122)


@pytest.mark.parametrize("p, n", [(86.0, 100), (-0.1, 100), (0.5, 0), (math.nan, 10)])
def test_binomial_error_refuses_what_is_no_share(p, n):
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        binomial_error(p, n)


@pytest.mark.parametrize("spread", [0.0, 0.05], ids=["seeds alike", "seeds differ"])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(spread):
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        difficulty = 0.3 * rng.uniform(-1, 1, 200)  # of each image, for every network
        a, b = (
            rng.uniform(size=(3, 200)) < level + difficulty + spread * rng.normal(size=(3, 1)) for level in (0.6, 0.55)
        )
        found = paired_interval(a, b)
        held += found.low <= 0.05 <= found.high
    assert 0.91 < held / 400 < 0.99


def test_one_run_each_is_the_paired_t_test_over_images():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(2, 300)) < [[0.9], [0.8]]
    found, expected = paired_interval(torch.tensor(a), b), stats.ttest_rel(a.astype(float), b.astype(float))
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_pairing_counts_and_seeds_count():
    rng = np.random.default_rng(2)
    a = rng.uniform(size=(1, 500)) < 0.8
    b = a ^ (rng.uniform(size=(1, 500)) < 0.02)
    unpaired = math.hypot(a.std() / math.sqrt(500), b.std() / math.sqrt(500))
    assert paired_interval(a, b).error < unpaired / 2
    lucky = np.array([[1.0] * 500, [0.0] * 500])  # one seed all right, one all wrong
    assert paired_interval(lucky, a).high - paired_interval(lucky, a).low > 1


def test_equal_answers_are_no_difference_and_others_shapes_are_refused():
    a = torch.ones(2, 5, dtype=torch.bool)
    assert (paired_interval(a, a).mean, paired_interval(a, a).p) == (0.0, 1.0)
    for other in (torch.ones(2, 6), torch.ones(1, 2, 5), torch.ones(0, 5)):
        with pytest.raises(ValueError, match="seeds x images"):
            paired_interval(a, other)


def test_holm_corrects_for_how_many_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(..., "holm")
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.2, 5])
