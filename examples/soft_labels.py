"""Train on a set with soft labels of views: in a plain loop, and in the Trainer of transformers if it is installed."""

import argparse
import importlib.util
import tempfile

import datasets
import torch
import torch.nn.functional as F
from torch import nn

from hf_condense import TrainingViews, condense_dataset, evaluate
from hf_condense.demo_data import load_demo


class Student(nn.Module):
    """A small network that returns a loss, as the Trainer expects it."""

    def __init__(self, num_classes: int, temperature: float) -> None:
        """Make the layers."""
        super().__init__()
        self.temperature = temperature
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
            *(nn.Flatten(), nn.Linear(512, num_classes)),
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return logits, and the loss if there are labels: probabilities (n, K)."""
        logits = self.net(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits / self.temperature, labels) * self.temperature**2, "logits": logits}


def train_in_a_loop(views: TrainingViews, epochs: int) -> Student:
    """Train a student in plain PyTorch."""
    student = Student(views.num_classes, views.temperature)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.utils.data.DataLoader(views, batch_size=50, shuffle=True):
            optimiser.zero_grad()
            student(**batch)["loss"].backward()
            optimiser.step()
    return student


def train_with_trainer(views: TrainingViews, epochs: int) -> Student:
    """Train a student with the Trainer of transformers."""
    from transformers import Trainer, TrainingArguments

    student = Student(views.num_classes, views.temperature)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        Trainer(model=student, args=arguments, train_dataset=views).train()
    return student


def main(fast: bool = False) -> None:
    """Compose a set of MNIST's digits, train on it in both ways, and compare it with random rows."""
    ds = load_demo()
    if fast:
        ds = datasets.DatasetDict({name: rows.shuffle(seed=0).select(range(200)) for name, rows in ds.items()})
    small = condense_dataset(
        ds["train"],
        "rded",
        ipc=2 if fast else 10,
        network="convnet-w8" if fast else "convnet-w32",
        augment="crop",  # mirroring changes the meaning of a digit
        teacher_updates=20 if fast else 1000,
        pictures=4 if fast else 300,
    )
    print(small)
    views = TrainingViews(small)
    test = ds["test"].with_format("torch")
    images = (test["image"][:].float() / 255 - small.recipe.mean[0]) / small.recipe.std[0]
    trainings = {"plain loop": train_in_a_loop}
    if importlib.util.find_spec("transformers"):
        trainings["Trainer"] = train_with_trainer
    for name, train in trainings.items():
        student = train(views, epochs=2 if fast else 100).eval().cpu()
        with torch.no_grad():
            logits = student(images)["logits"]
        print(f"{name}: test accuracy {(logits.argmax(1) == test['label'][:]).float().mean():.3f}")
    network = "convnet-w8" if fast else "convnet-w32"
    print(evaluate(small, ds["test"], networks=network, recipe="soft", epochs=1 if fast else None, seeds=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    main(parser.parse_args().fast)
