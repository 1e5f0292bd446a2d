"""From a data set's image to what the network sees, and the same geometry for masks."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from PIL import Image

from ..errors import UserError

# What torchvision's weights were measured with, unless they say otherwise.
IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "resize": 256,
    "crop": 224,
    "interpolation": "bilinear",
}

Picture = TypeVar("Picture", Image.Image, torch.Tensor, Image.Image | torch.Tensor)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as float32 in [0, 1]: uint8 is divided by 255, floats are taken to be there already."""
    # Divided, as in the presets of torchvision's weights; its to_dtype multiplies, and differs in the last bit.
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, crop the centre, scale to [0, 1], normalise.

    resize: length of the short side in pixels, or None to keep the size.
    crop: side of the centre crop, or None.
    mean, std: per channel, in units of [0, 1]; empty tuples leave the values as they are.
    interpolation: of the resizing; some of torchvision's weights were measured with bicubic.
    """

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UserError(
                f"model.mean has {len(self.mean)} values and model.std {len(self.std)}: one per channel each"
            )
        if any(s <= 0 for s in self.std):
            raise UserError(f"model.std={list(self.std)}: every value must be positive")
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"model.{name}={value}: expected a positive number of pixels or null")

    def image(self, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """A PIL image, or a tensor [C,H,W] in [0, 1], -> normalised float32 [C,h,w]."""
        return self.normalise(scaled(self.pixels(image)))

    def valid(self, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor | None:
        """Which places [h,w] of the input are real, bool; None where all are."""
        return None

    def pixels(self, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """The geometry alone: a PIL image -> uint8 [C,h,w]; a tensor [C,H,W] keeps its type.

        Raises UserError for words.
        """
        if isinstance(image, tuple):
            raise UserError("the data set's inputs are sentences: expected a model for them, such as lstm_sentiment")
        if isinstance(image, Image.Image) and len(self.mean) == 3 and image.mode != "RGB":
            image = image.convert("RGB")
        # PIL is resized as PIL (antialiased, 8 bit), which is what torchvision's own weights were measured with.
        image = self._framed(image, self.interpolation)
        if isinstance(image, torch.Tensor):
            return image
        from torchvision.transforms.v2 import functional

        return functional.pil_to_tensor(image)

    def inputs(self, pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What `pixels` returned, of a batch [B,C,h,w], as the network is trained on it, of the type of `like`."""
        return self.normalise(scaled(pixels.to(like.device))).to(like)

    def truth(self, mask: torch.Tensor, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """The mask of an image, in the geometry of its input."""
        return self.mask(mask)

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask [H,W], bool or float, through the same geometry, nearest neighbour -> [h,w] of its type."""
        values = mask[None].to(torch.uint8 if mask.dtype == torch.bool else mask.dtype)
        return self._framed(values, "nearest-exact")[0].to(mask.dtype)

    def _framed(self, image: Picture, interpolation: str) -> Picture:
        """Resized and cropped."""
        if self.resize is None and self.crop is None:
            return image
        # Takes seconds to import, which a report of generated images need not wait for.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        if self.resize is not None:
            image = functional.resize(image, [self.resize], InterpolationMode(interpolation), antialias=True)
        return image if self.crop is None else functional.center_crop(image, [self.crop, self.crop])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values [..., C,H,W] in [0, 1] -> normalised values."""
        if not self.mean:
            return pixels
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def denormalise(self, inputs: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalise`."""
        if not self.mean:
            return inputs
        return inputs * self._channels(self.std, inputs) + self._channels(self.mean, inputs)

    def _channels(self, values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        if len(values) != like.shape[-3]:
            raise UserError(
                f"the image has {like.shape[-3]} channels but model.mean has {len(values)} values: "
                "expected one per channel"
            )
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
