"""Train with `transformers`' `Trainer` on a condensed set, which takes the place of the training set as it is.

`transformers` is not needed by hf_condense; without it, this example says so and ends.
"""

import argparse
import importlib.util

import torch
from torch import nn

from hf_condense import condense_dataset
from hf_condense.demo_data import load_demo


class SmallNetwork(nn.Module):
    """A convolutional network with the interface that `Trainer` expects: it returns the loss and the logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
            *(nn.Flatten(), nn.Linear(256, num_classes)),
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return loss and logits for images (n, 1, H, W) and labels (n,)."""
        logits = self.body(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def to_inputs(rows: dict) -> dict[str, list[torch.Tensor]]:
    """Return images in [-1, 1] and labels, under the names that the network takes."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    pixels = [pil_to_tensor(image).float() / 127.5 - 1 for image in rows["image"]]
    return {"pixel_values": pixels, "labels": [torch.tensor(label) for label in rows["label"]]}


def main(fast: bool = False) -> None:
    """Condense, then train by `Trainer` on the result and test on real images."""
    if importlib.util.find_spec("transformers") is None:
        print("skipped: this example needs transformers; install it with: pip install transformers")
        return
    from transformers import Trainer, TrainingArguments

    ds = load_demo()
    # No flips: mirroring changes a digit's meaning.
    learned = {"network": "convnet-w32", "steps": 100, "augment": "color_crop_cutout_scale_rotate"}
    small = condense_dataset(ds["train"], "random" if fast else "dm", 1, **({} if fast else learned))
    arguments = TrainingArguments(
        output_dir="trainer_output",
        max_steps=3 if fast else 300,
        learning_rate=0.003,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=200,
        remove_unused_columns=False,  # the transform needs the columns that the network does not know
        report_to="none",
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=SmallNetwork(10),
        args=arguments,
        train_dataset=small.with_transform(to_inputs),  # the only line that differs from training on ds["train"]
        eval_dataset=ds["test"].select(range(50 if fast else 1000)).with_transform(to_inputs),
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())},
    )
    trainer.train()
    print(f"trained on {len(small)} rows; test accuracy {trainer.evaluate()['eval_accuracy']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    main(parser.parse_args().fast)
