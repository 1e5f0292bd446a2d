"""The words for fills of pictures; what the linear imputer should find, by a direct solve of its definition."""

import numpy as np
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from xaibench.perturb import fills

FILLS = [word for word in fills.FILLS if word not in fills.OF_WORDS]
WEIGHTS = {(y, x): 1 / 12 if y and x else 1 / 6 for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x}


def solved(image, mask):
    """Each removed pixel is the weighted mean of the neighbours that exist: one sparse system, solved directly."""
    _, height, width = image.shape
    removed = [tuple(pixel) for pixel in mask[0].nonzero().tolist()]
    row_of = {pixel: row for row, pixel in enumerate(removed)}
    matrix, known = lil_matrix((len(removed), len(removed))), np.zeros((len(removed), len(image)))
    for row, (y, x) in enumerate(removed):
        for (down, across), weight in WEIGHTS.items():
            neighbour = (y + down, x + across)
            if not (0 <= neighbour[0] < height and 0 <= neighbour[1] < width):
                continue
            matrix[row, row] += weight
            if neighbour in row_of:
                matrix[row, row_of[neighbour]] = -weight
            else:
                known[row] += weight * image[:, *neighbour].double().numpy()
    result = image.double().clone()
    result[:, mask[0] > 0] = torch.from_numpy(spsolve(matrix.tocsc(), known)).view(len(removed), -1).T
    return result
