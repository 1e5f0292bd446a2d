"""Train the two checkpoints of smallcnn that the package bundles: one per task of the shapes data set.

    python scripts/train_smallcnn.py --tasks object & python scripts/train_smallcnn.py --tasks scene & wait

It uses one thread, so that the numbers do not depend on the cores there are; each task takes about ten minutes of
one core. Batch normalisation speeds the training up and is folded into the convolutions at the end, so that the
network which is benchmarked has none.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from xaibench.datasets.shapes import SIDE, SPLITS, draw
from xaibench.models.batch_norm import add_batch_norm, fold_batch_norm
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.smallcnn import SmallCNN

CHECKPOINTS = Path(__file__).parent.parent / "xaibench" / "models" / "checkpoints"
TASKS = ("object", "scene")
NORMALISATION = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--output", type=Path, default=CHECKPOINTS, help="folder for the checkpoints")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    data = {split: generate(split) for split in SPLITS}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks:
        start = time.monotonic()
        model = train(data, task, arguments.epochs)
        test = data["test"]
        print(f"{task}: {time.monotonic() - start:.0f} s of training")
        print(f"{task}: accuracy on test images {accuracy(model, test['image'], test[task]):.2%}")
        print(f"{task}: accuracy once the object is removed {accuracy(model, test['background'], test[task]):.2%}")
        save_file(model.state_dict(), arguments.output / f"smallcnn_{task}.safetensors")


def generate(split: str) -> dict[str, torch.Tensor]:
    """A whole split: uint8 `image` [N,3,64,64], labels `object` and `scene` [N].

    The test split also has `background`, the same images without their objects.
    """
    start, count = time.monotonic(), len(SPLITS[split])
    data = {
        "image": torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8),
        "background": torch.empty(count if split == "test" else 0, 3, SIDE, SIDE, dtype=torch.uint8),
        "object": torch.empty(count, dtype=torch.int64),
        "scene": torch.empty(count, dtype=torch.int64),
    }
    for index, position in enumerate(SPLITS[split]):
        drawing = draw(0, position)
        data["image"][index] = torch.from_numpy(drawing.image)
        data["object"][index], data["scene"][index] = drawing.object_label, drawing.scene_label
        if split == "test":
            data["background"][index] = torch.from_numpy(drawing.background)
    seconds = time.monotonic() - start
    print(f"{split}: {count} images, {1000 * seconds / count:.2f} ms each", flush=True)
    return data


def train(data: dict[str, dict[str, torch.Tensor]], task: str, epochs: int) -> SmallCNN:
    """AdamW with a one-cycle learning rate; each batch is turned or mirrored and its colour channels are permuted."""
    torch.manual_seed(0)
    model = SmallCNN()
    add_batch_norm(model)
    model = model.to(memory_format=torch.channels_last)
    images, labels = data["train"]["image"], data["train"][task]
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.006, total_steps=epochs * steps)
    for epoch in range(epochs):
        model.train()
        losses = []
        for batch in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            loss = nn.functional.cross_entropy(model(inputs(augment(images[batch]))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        validation = accuracy(model, data["validation"]["image"], data["validation"][task])
        print(f"{task}: epoch {epoch + 1}, loss {np.mean(losses):.4f}, validation {validation:.2%}", flush=True)
    fold_batch_norm(model.eval())
    return model.to(memory_format=torch.contiguous_format)


def augment(images: torch.Tensor) -> torch.Tensor:
    """No class has a preferred direction, handedness or colour."""
    images = torch.rot90(images, int(torch.randint(4, ())), (2, 3))
    if torch.rand(()) < 0.5:
        images = images.flip(3)
    return images[:, torch.randperm(3)]


def inputs(images: torch.Tensor) -> torch.Tensor:
    return NORMALISATION.normalise(images.float() / 255).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    predicted = torch.cat([model(inputs(part)).argmax(1) for part in images.split(250)])
    return (predicted == labels).float().mean().item()


if __name__ == "__main__":
    main()
