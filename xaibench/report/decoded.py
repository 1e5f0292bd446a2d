"""What was decoded from paths, as a sheet of pictures and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ..engine.decoding import Decoded
from .figures import png, style


def write(folder: Path, title: str, pictures: Mapping[int, torch.Tensor], found: Sequence[Decoded]) -> Path:
    """Write decoded.png and decoded.csv there, and return the path of the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("sample", "network", "response", "before", "correlation", "similarity")
    rows = [[getattr(one, name) for name in names] for one in found]
    pd.DataFrame(rows, columns=names).to_csv(folder / "decoded.csv", index=False, float_format="%.6g")
    with style():
        (folder / "decoded.png").write_bytes(png(sheet(title, pictures, found)))
    return folder / "decoded.png"


def sheet(title: str, pictures: Mapping[int, torch.Tensor], found: Sequence[Decoded]) -> Figure:
    """A row per image: the image, and what was decoded from each network, with its response and correlation."""
    networks = list(dict.fromkeys(one.network for one in found))
    cells = {(one.sample, one.network): one for one in found}
    figure = Figure(figsize=(1.7 * (len(networks) + 1), 2.1 * len(pictures) + 0.4), layout="constrained")
    panels = figure.subplots(len(pictures), len(networks) + 1, squeeze=False)
    for row, (sample, image) in zip(panels, pictures.items()):
        row[0].imshow(_rgb(image))
        row[0].set_title(f"image {sample}")
        for axes, network in zip(row[1:], networks):
            one = cells[sample, network]
            axes.imshow(_rgb(one.pixels))
            axes.set_title(
                f"{network}\n{one.response:.3g} (image {one.before:.3g}), r {one.correlation:.2f}", fontsize=7
            )
    for axes in panels.flat:
        axes.set_axis_off()
    figure.suptitle(title)
    return figure


def _rgb(pixels: torch.Tensor) -> np.ndarray:
    """Pixels [C,H,W] as imshow takes them; the first channel alone where there are not three."""
    pixels = pixels.clamp(0, 1)
    return (pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)).permute(1, 2, 0).numpy()
