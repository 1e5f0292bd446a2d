"""What several tests of methods need: the methods' yamls, and images to fit them on."""

from pathlib import Path

import torch
import yaml

from tests.methods.nets import SIZE
from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.models.preprocessing import Preprocessing

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"))
LAYER = "features.3"


def settings(name: str) -> dict:
    """The yaml of a method as plain data."""
    return yaml.safe_load(next(path for path in YAMLS if path.stem == name).read_text())


class Noise(Dataset):
    """Uniform images with five labels."""

    def __init__(self, count: int = 40, size: tuple[int, int, int] = SIZE) -> None:
        self.images = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], index % 5)


def samples(count: int = 40) -> Samples:
    return Samples(Noise(count), Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3), range(count))


def fitted(method, network) -> dict[str, torch.Tensor]:
    return method.fit(network, samples(), torch.Generator().manual_seed(0))
