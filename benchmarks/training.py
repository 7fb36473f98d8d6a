"""Images per second: the book's training loop against a plain DataLoader with per-sample PIL transforms.

Same network, optimiser, batch size and kinds of augmentation, on the same images, taking turns in one run.
`python benchmarks/training.py [rounds]`
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from repsim_utils.datasets.color_shape_digit import ColorShapeDigit
from repsim_utils.models.vision import build
from repsim_utils.training.vision import Recipe, train

RECIPE = Recipe(epochs=1, batch_size=256, lr=0.1, peak_epoch=0.5, flip=True, jitter=0.1, translate=2, cutout=4)


class PerSample(Dataset):
    """Images kept as PIL pictures, each transformed on its own when it is asked for."""

    def __init__(self, images, labels):
        self.images, self.labels = [to_pil_image(image) for image in images], labels.tolist()
        r = RECIPE
        shift = r.translate / images.shape[-1]
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(r.jitter, r.jitter, r.jitter),
                transforms.RandomAffine(0, translate=(shift, shift)),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
                transforms.RandomErasing(1.0, scale=(0.02, 0.02), ratio=(1, 1)),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def plain(model, loader):
    """One epoch as most tutorials have it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RECIPE.lr, momentum=0.9, weight_decay=5e-4)
    model.train()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y, label_smoothing=RECIPE.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(rounds: int) -> None:
    """Time both loops in turns and print the medians and the ratio."""
    data = ColorShapeDigit(10, split="train")
    labels, names = data.labels("shape", "digit")
    per_sample = PerSample(data.images, labels)

    def fresh():
        return build("small_resnet", len(names), seed=0)

    ways = {"book": lambda: train(fresh(), data.images, labels, RECIPE, seed=0, progress=False)}
    for workers in (0, 2):
        loader = DataLoader(per_sample, RECIPE.batch_size, shuffle=True, drop_last=True, num_workers=workers)
        model = fresh().to(memory_format=torch.contiguous_format)
        model.mean, model.std = 0.0, 1.0  # its images come normalised
        ways[f"plain, {workers} workers"] = lambda loader=loader, model=model: plain(model, loader)
    rates = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            rates[name].append(len(data) / (time.perf_counter() - start))
    book = statistics.median(rates["book"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:18} {rate:6.0f} images/s   book is {book / rate:.1f} times as fast")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
