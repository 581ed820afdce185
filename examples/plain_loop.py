"""Train on the 8-bit rows of a saved set with plain PyTorch, by the recipe `dc`, and test on real images.

Nothing here comes from hf_condense, so the accuracies check those of `evaluate` (see independent_check.py).
"""

import argparse
import json

import datasets
import numpy as np
import torch
from torch import nn


def tensors(rows: datasets.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the grey images of a dataset, 0 black and 1 white, (N, 1, H, W), and their labels (N,)."""
    pixels = np.stack([np.asarray(picture) for picture in rows["image"]])
    return torch.from_numpy(pixels)[:, None] / 255, torch.tensor(rows["label"])


def accuracy(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], width: int, epochs: int
) -> float:
    """Train one ConvNet of depth 3 with instance norm for 28 x 28 images, and return its test accuracy."""
    layers: list[nn.Module] = []
    for channels, padding in ((1, 3), (width, 1), (width, 1)):  # a padding of 3 makes 32 x 32 of 28 x 28
        conv = nn.Conv2d(channels, width, 3, padding=padding)
        layers += [conv, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))
    images, labels = train
    for rate in (0.01, 0.001):  # half of the epochs each, with a new optimiser
        optimiser = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs // 2):
            for rows in torch.randperm(len(labels)).split(256):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
                optimiser.step()
    with torch.no_grad():
        logits = torch.cat([net(part) for part in test[0].split(256)])
    return float((logits.argmax(1) == test[1]).float().mean())


def main(folder: str, real_folder: str, seeds: int, width: int, epochs: int) -> None:
    """Print the accuracies of some networks as JSON."""
    real = datasets.load_dataset(real_folder)
    (whole, _), test = tensors(real["train"]), tensors(real["test"])
    images, labels = tensors(datasets.load_dataset(folder, split="train"))
    mean, std = whole.mean(), whole.std()
    train, test = ((images - mean) / std, labels), ((test[0] - mean) / std, test[1])
    accuracies = []
    for seed in range(seeds):
        torch.manual_seed(1000 + seed)
        accuracies.append(accuracy(train, test, width, epochs))
    print(json.dumps(accuracies))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder of the set, as save_condensed writes it")
    parser.add_argument("real", help="folder of the real images, with the splits train and test")
    parser.add_argument("--seeds", type=int, default=5, help="networks")
    parser.add_argument("--width", type=int, default=32, help="filters of a layer")
    parser.add_argument("--epochs", type=int, default=300, help="passes over the set")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.real, arguments.seeds, arguments.width, arguments.epochs)
