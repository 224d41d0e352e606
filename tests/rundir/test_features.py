"""The file of what a model knows is small, and keeps distances."""

import pytest
import torch
from strategies import normal
from torch.nn.functional import normalize

from fmnist.config.factory import look_widths
from fmnist.functional import outliers
from fmnist.functional.types import ModelConfig
from fmnist.rundir import models


@pytest.mark.parametrize("channels", [(12, 24), (64, 128)])
def test_distances_are_kept(channels, tmp_path):
    config = ModelConfig(channels=channels, kernel_size=3, padding="same")
    looks = [normal(300, width, seed=i).relu() for i, width in enumerate(look_widths(config))]
    prototypes = tuple(map(normalize, looks))
    near = [look + normal(*look.shape, seed=9, scale=0.1) for look in looks]
    known = outliers.Familiar(prototypes, torch.arange(10.0 * len(looks)).reshape(-1, 10))
    path = tmp_path / "features.safetensors"
    models.save_features(path, known)
    read = models.load_features(path, config)
    torch.testing.assert_close(read.distances, known.distances)
    expected = outliers.distances(prototypes, near)
    torch.testing.assert_close(
        outliers.distances(read.prototypes, near), expected, atol=1e-3, rtol=0
    )
    assert path.stat().st_size < 2.3e6
