"""Distances between samples, against closed forms."""

import math

import pytest
import torch

from offdiff.distances import energy_distance, to_nearest, wasserstein


def test_wasserstein_of_a_shift() -> None:
    a = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert wasserstein(a + torch.tensor([0.5, 0.0, -1.0]), a) == pytest.approx(0.5, rel=1e-5)
    assert wasserstein(a[:0], a) is None


def test_wasserstein_of_two_normals_of_one_mean() -> None:
    # The difference of their standard deviations times E|z|.
    many = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0))
    expected = math.sqrt(2 / math.pi)
    assert wasserstein(many, 2 * many.flip(0)) == pytest.approx(expected, rel=0.01)


def test_energy_distance_of_points_by_hand() -> None:
    a, b = torch.tensor([[[0.0]], [[2.0]]]), torch.tensor([[[1.0]], [[4.0]]])
    # Between: 1, 4, 1, 2, mean 2; within: 2 and 3.
    assert energy_distance(a, b) == pytest.approx(2 * 2 - 2 - 3)


def test_nearest_reference_over_several_chunks() -> None:
    references = torch.full((10_000, 1), 9.0)
    references[5_000], references[9_999] = 3.0, -1.0
    assert to_nearest(torch.tensor([[-1.0], [2.0], [9.0]]), references) == pytest.approx(1 / 3)
