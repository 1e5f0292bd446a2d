"""A small network as matrices: what slow references of the propagation rules are written on.

Every value is a flat vector of one sample. A layer is ("affine", W [K,D], b [K]), ("relu",), or ("max", windows): for
each output the places that it looks at.
"""

import torch
from torch import nn

SHAPE = (3, 7, 7)


def network() -> nn.Sequential:
    """Two convolutions, overlapping maximum pooling, average pooling, two linear layers; biases of both signs."""
    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(3, 4, 2, stride=1),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
    ).double()
    for layer in module:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, 0, 0.2)
    return module


@torch.no_grad()
def layers(module: nn.Sequential, shape: tuple[int, ...] = SHAPE) -> list[tuple]:
    """The layers of a sequential network as matrices, found by asking each about unit vectors."""
    found = []
    for layer in module:
        size = torch.Size(shape).numel()
        basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
        output = layer(basis[:1])
        if isinstance(layer, nn.ReLU):
            found.append(("relu",))
        elif isinstance(layer, nn.MaxPool2d):
            found.append(("max", [basis_place.nonzero().flatten() for basis_place in layer(basis).flatten(1).T]))
        elif not isinstance(layer, nn.Flatten):
            bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
            found.append(("affine", layer(basis).flatten(1).T - bias[:, None], bias))
        shape = output.shape[1:]
    return found


def forward(found: list[tuple], x: torch.Tensor) -> list[torch.Tensor]:
    """The values of one sample before each layer, and the logits."""
    values = [x.flatten()]
    for kind, *parts in found:
        x = values[-1]
        if kind == "affine":
            x = parts[0] @ x + parts[1]
        elif kind == "relu":
            x = x.clamp(min=0)
        else:
            x = torch.stack([x[window].max() for window in parts[0]])
        values.append(x)
    return values
