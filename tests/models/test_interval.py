"""Intervals of paired differences."""

import numpy as np
import pytest

from models.interval import Z, paired


def test_differences_have_their_mean_and_half_of_its_interval():
    assert paired(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0, Z / np.sqrt(3)))
