"""A runner that is killed at any moment and started again ends as if nobody had disturbed it."""

import sys

import kills
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes, as Linux does")
def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    assert kills.run(tmp_path, 10) == 10
