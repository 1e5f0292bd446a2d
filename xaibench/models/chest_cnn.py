"""The small network of the generated chest pictures."""

from typing import Literal

from torch import nn

from .smallcnn import SmallCNN


class ChestCNN(SmallCNN):
    """`SmallCNN` with a choice of how places are put together: inputs [B,3,64,64] -> outputs [B,num_classes].

    num_classes: outputs. pool: `max` over places finds a finding anywhere; `mean` adds up what all places show, as a
        score of the whole picture does.
    """

    def __init__(self, num_classes: int = 8, pool: Literal["max", "mean"] = "max") -> None:
        super().__init__(num_classes)
        if pool == "mean":
            self.add_module("pool", nn.AvgPool2d(8))
