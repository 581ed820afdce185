"""A method of your own that matches the means and the spreads of embeddings: one class, registered by one line."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hf_condense import Loss, Method, MethodConfig, MethodInfo, Run, condense_dataset, option, register_method
from hf_condense.demo_data import load_demo
from hf_condense.testing import check_method


@dataclass(frozen=True)
class SpreadMatchingConfig(MethodConfig):
    """The options, each with its default, meaning and range; a role says what the engine uses it for."""

    steps: int = option(100, "Updates of the images.", ge=1, tiny=4)
    lr_img: float = option(1.0, "Learning rate of the images, in normalised units.", gt=0, role="image_rate")
    batch_real: int = option(64, "Real images per class and step.", ge=2, role="batch_real", tiny=6)
    weight: float = option(0.1, "Weight of the spreads relative to the means.", ge=0)


@register_method
class SpreadMatching(Method[SpreadMatchingConfig]):
    """Match the mean and the spread of each class; everything else is the work of the engine."""

    info = MethodInfo(
        name="spread",
        title="Spread matching (an example)",
        kind="synthetic",
        summary="Matches the mean and the standard deviation of the embeddings of each class.",
        paper="hf_condense, examples/new_method.py",
        authors="you",
        venue="none",
        year=2026,
        link="https://example.org",
        cost="that of dm",
    )
    Config = SpreadMatchingConfig

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield one loss for each chunk of classes that this process works on."""
        run.network("network", t)  # fresh random weights, keyed by the step
        for classes in run.chunks():
            with torch.no_grad():
                real = run.embed(run.real_batch(classes, self.batch_real, t).flatten(0, 1))  # (k * B, D)
            images, labels = run.synthetic.of(classes)
            embedded = run.embed(images)  # (n, D)
            total = torch.zeros((), device=run.device)
            for c, target in zip(classes, real.chunk(len(classes)), strict=True):
                synthetic = embedded[labels == c]  # (ipc, D)
                total = total + (target.mean(0) - synthetic.mean(0)).square().sum()
                if len(synthetic) > 1:
                    total = total + self.config.weight * (target.std(0) - synthetic.std(0)).square().sum()
            yield Loss(total, total.detach())


def main(fast: bool = False) -> None:
    """Condense with the new method, then check that it keeps the rules that every method keeps."""
    small = condense_dataset(load_demo()["train"], "spread", ipc=2, network="convnet-w16", steps=2 if fast else 100)
    print(small, small.recipe.options)
    check_method("spread")
    print("it passes every check: counts, seeds, resume, odd inputs, saving and loading")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    main(parser.parse_args().fast)
