"""The bundled transformer: a vision transformer small enough to benchmark on a laptop."""

import torch
from torch import nn

# Of the four convolutions that make a token of each patch of so many pixels a side.
STRIDES = {2: (1, 1, 2, 1), 4: (1, 2, 2, 1), 8: (2, 2, 2, 1)}


class SmallViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) whose patches are embedded by convolutions (Xiao et al. 2021).

    Inputs [B,3,side,side] -> logits [B,num_classes]. Four 3x3 convolutions make a token of `width` numbers for each
    `patch` x `patch` pixels, of which it sees the surroundings as well (31x31 pixels for patches of 8); with a single
    linear map of each patch, as in the first paper, so small a network does not learn contours in the time there is. In
    front of them stands a class token, a learned position is added to each, and after `depth` blocks with the
    normalisation first, the head reads the class token. Every activation is a GELU.

    num_classes: outputs. width: numbers per token. depth: blocks. heads: of each attention. side: of an image.
    patch: 2, 4 or 8, a divisor of the side. Raises ValueError for another one.
    """

    def __init__(
        self, num_classes: int = 10, width: int = 96, depth: int = 4, heads: int = 4, side: int = 64, patch: int = 8
    ) -> None:
        super().__init__()
        if patch not in STRIDES or side % patch:
            raise ValueError(f"patch={patch}: expected one of {list(STRIDES)} that divides side={side}")
        widths = (3, width // 4, width // 2, width, width)
        stem: list[nn.Module] = []
        for inputs, outputs, stride in zip(widths, widths[1:], STRIDES[patch]):
            stem += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*stem[:-1])
        self.embedding = Embedding((side // patch) ** 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(self.stem(inputs).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class Embedding(nn.Module):
    """Patches [B,n,width] -> tokens [B,1+n,width]: the class token in front, and a learned position for each."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + patches, width))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1) + self.position


class Block(nn.Module):
    """Tokens [B,n,width] -> [B,n,width]: attention and two linear layers, each around a normalised copy and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.norm2(tokens))
