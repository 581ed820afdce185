"""Train on a saved set without hf_condense, with plain `load_dataset` and plain PyTorch."""

import argparse
from pathlib import Path

import datasets
import torch
from torch import nn
from torchvision.transforms import v2


def main(folder: Path, fast: bool = False) -> float:
    """Train a small network on a folder written by `save_condensed` and return the last training accuracy.

    The classes should be a `ClassLabel`; text labels need numbers first.
    """
    small = datasets.load_dataset(str(folder), split="train")
    image = next(name for name, feature in small.features.items() if isinstance(feature, datasets.Image))
    label = next(name for name, feature in small.features.items() if isinstance(feature, datasets.ClassLabel))
    classes = small.features[label].num_classes
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
    small = small.with_transform(lambda rows: {"x": [transform(x) for x in rows[image]], "y": rows[label]})

    net = nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LazyLinear(classes))
    net(small[:2]["x"][0][None])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    correct = 0
    for _ in range(2 if fast else 100):
        correct = 0
        for batch in torch.utils.data.DataLoader(small, batch_size=32, shuffle=True):
            logits = net(batch["x"])
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits, batch["y"]).backward()
            optimiser.step()
            correct += int((logits.argmax(1) == batch["y"]).sum())
    print(f"trained on {len(small)} rows; training accuracy {correct / len(small):.2f}")
    return correct / len(small)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("condensed/quickstart"),
        help="folder of the set; default: what quickstart.py writes here, condensed/quickstart",
    )
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.fast)
