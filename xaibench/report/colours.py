"""The colours of figures and maps: told apart by colour-blind readers, and centred where zero means something."""

import matplotlib
import numpy as np

# Okabe and Ito's blue, vermilion, green and purple, and three greys.
ACCENT, OTHER = "#0072b2", "#d55e00"
SERIES = (ACCENT, OTHER, "#009e73", "#cc79a7")
INK, MUTED, LINE = "#1d232b", "#66707c", "#d7dce1"
# Of maps: blue for evidence against, white for none, red for evidence in favour; from pale to dark where no sign is.
DIVERGING, SEQUENTIAL = "RdBu_r", "BuPu"
# A few extreme pixels would leave the rest of a map white.
PERCENTILE = 99


def is_signed(maps: np.ndarray) -> bool:
    """Whether maps speak against the class anywhere, and therefore want a scale that is centred at 0."""
    return bool((maps < 0).any())


def scale_of(attribution: np.ndarray) -> float:
    """What the darkest colour of a map stands for: the 99th percentile of its absolute values, 0 if none is finite."""
    finite = attribution[np.isfinite(attribution)]
    return float(np.percentile(np.abs(finite), PERCENTILE)) if finite.size else 0.0


def painted(attribution: np.ndarray, signed: bool) -> np.ndarray:
    """One map [H,W] as RGB uint8 [H,W,3], scaled by its own `scale_of`.

    signed: 0 is white, positive red and negative blue; otherwise from 0, pale, to dark. Not finite is grey.
    """
    finite = np.isfinite(attribution)
    shares = np.where(finite, attribution, 0.0) / (scale_of(attribution) or 1.0)
    colours = matplotlib.colormaps[DIVERGING](shares / 2 + 0.5) if signed else matplotlib.colormaps[SEQUENTIAL](shares)
    colours[~finite, :3] = 0.5
    return (colours[..., :3] * 255).round().astype(np.uint8)


def stops(name: str, count: int = 9) -> list[str]:
    """A colour scale as hexadecimal colours, for a gradient."""
    return [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0, 1, count))]
