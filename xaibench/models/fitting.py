"""Networks that are fitted to all training samples at once instead of being trained for epochs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import UserError


@runtime_checkable
class Fittable(Protocol):
    """A network that knows how to be fitted, such as `models.dnnr.DNNR`."""

    def fit(self, inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        """Take what is to be known from inputs [n,C,H,W] and their real labels [n], in place."""


@runtime_checkable
class Sized(Protocol):
    """A network the sizes of whose state are those of the samples that it was fitted to."""

    def take_sizes(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make room for a state dict, in place."""


@dataclass(frozen=True)
class Fitting:
    """The recipe of a network without epochs: `Fittable.fit` gets all training samples.

    seed: of what the fit draws.
    """

    seed: int = 0
    epochs: ClassVar[int] = 1
    select: ClassVar[Literal["last"]] = "last"
    loss: ClassVar[Literal["auto"]] = "auto"
    reads_vectors: ClassVar[bool] = False
    validates: ClassVar[bool] = False
    initial: ClassVar[None] = None
    frozen: ClassVar[None] = None

    def described(self) -> dict[str, Any]:
        """The parameters, as keys have them."""
        return {"fit": True, **asdict(self)}

    def fit(self, module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, seed: int | None = None) -> None:
        """Fit a network in place; it ends up in evaluation mode without gradients.

        inputs [n,C,H,W], labels [n]. seed: instead of the recipe's. Raises UserError for a network that has no `fit`,
        and for labels that are classes.
        """
        if not isinstance(module, Fittable):
            raise UserError(
                f"model.recipe: {type(module).__name__} cannot be fitted without epochs: expected a network with "
                "`fit`, such as dnnr, or xaibench.models.recipe.Recipe"
            )
        if not labels.is_floating_point():
            raise UserError(
                f"{type(module).__name__} is fitted to real values, and the labels are classes: use model=mlp, which "
                "model.hidden=[] makes linear"
            )
        with torch.no_grad():
            module.fit(inputs, labels, self.seed if seed is None else seed)
        module.eval().requires_grad_(False)
