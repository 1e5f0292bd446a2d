"""How right a network answers labelled samples."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .classifier import Classifier
from .labelled import ImageSource, LabelledBatch
from .losses import OF_VECTORS, Loss, right


def accuracy(classifier: Classifier, batches: Iterable[LabelledBatch], loss: Loss = "auto") -> float:
    """How right a network answers samples, see `share_right`. loss: what it was trained by."""
    found = []
    for batch in batches:
        labels = batch.vectors if loss in OF_VECTORS and batch.vectors is not None else batch.labels
        found.append((classifier.asked(batch.questions).logits(batch.inputs), labels))
    return share_right(found, loss)


@torch.no_grad()
def accuracy_on(module: nn.Module, images: ImageSource, batch_size: int = 64, loss: Loss = "auto") -> float:
    """How right a network in evaluation mode answers images, see `share_right`."""
    like = next(module.parameters())
    batches = (images.batch(positions, like) for positions in torch.arange(len(images)).split(batch_size))
    return share_right([(module(inputs), labels) for inputs, labels in batches], loss)


def share_right(answers: Sequence[tuple[torch.Tensor, torch.Tensor]], loss: Loss) -> float:
    """The mean of how right answers are (`losses.right`), given batches of logits and labels. Of real labels [B] it is
    R squared, 1 - squared error / variance of the labels: 1 for all right, 0 for their mean, and below for worse."""
    if loss not in OF_VECTORS and answers[0][1].is_floating_point():
        values, labels = (torch.cat(column).double() for column in zip(*answers))
        errors = (values[:, 0] - labels).square().sum()
        return 1 - (errors / (labels - labels.mean()).square().sum()).item()
    rights = torch.cat([right(logits, labels, loss) for logits, labels in answers])
    return rights.sum().item() / len(rights)
