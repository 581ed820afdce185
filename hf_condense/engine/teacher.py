"""A network that is trained on the real set: it gives coresets features and synthetic images soft labels."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from hf_condense.base.cache import cache_enabled, cache_folder, cached_tensors, content_key
from hf_condense.base.processes import broadcast
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.training import TrainingSet, train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.source.class_source import batches

logger = logging.getLogger("hf_condense")

_BATCH = 64  # images in one forward pass


def network_key(run: Run, updates: int) -> str:
    """Return the cache key of a trained network and of its features."""
    return content_key(
        content=run.source.content_hash,
        shape=list(run.source.image_shape),
        network=run.factory.name,
        updates=updates,
        seed=run.seed,
        device=run.device.type,
        torch=torch.__version__,
        whitened=run.source.whitening is not None,
    )


def trained_network(run: Run, updates: int) -> nn.Module:
    """Return the run's network, trained on the whole source, in evaluation mode, on the device.

    Its weights are cached. There is no barrier in here: callers must let the main process go first.

    Args:
        run: The run.
        updates: Training updates by the recipe `dc`, >= 0.
    """
    net = run.factory.build(run.seed, "features").to(run.device)
    if not cache_enabled(run.cache and run.factory.named):
        _train(run, net, updates)
        return net.eval()
    file = cache_folder("networks") / f"{network_key(run, updates)}.safetensors"

    def make() -> dict[str, Tensor]:
        _train(run, net, updates)
        return {name: tensor.cpu() for name, tensor in net.state_dict().items()}

    net.load_state_dict(cached_tensors(file, make))
    return net.eval()


def _train(run: Run, net: nn.Module, updates: int) -> None:
    if updates:
        whole = TrainingSet(run.source, run.source.labels, run.num_classes)
        with torch.enable_grad():
            train_network(net, whole, RECIPES["dc"], run.seed, "features", max_updates=updates)


@torch.no_grad()
def teacher_logits(run: Run, synthetic: SyntheticSet, updates: int) -> Tensor:
    """Return the logits of a trained network for the decoded rows of a set.

    Args:
        run: The run.
        synthetic: The set.
        updates: Training updates of the network, >= 0.

    Returns:
        float32 (rows, K).
    """
    with run.accelerator.main_process_first():  # the others then read its weights from the cache
        teacher = trained_network(run, updates)
    logits = [teacher(images).float() for images in synthetic.all()[0].split(_BATCH)]
    return broadcast(run.accelerator, torch.cat(logits))  # without a cache, each process has trained its own teacher


def features_of(run: Run, kind: str, updates: int) -> Tensor:
    """Return a feature for every image of the source, in its order.

    Args:
        run: The run.
        kind: `"network"` (embeddings of the run's network, which is trained on the whole source), `"pixels"`
            (normalised pixels), or the name of a numeric column of the dataset.
        updates: Training updates of that network, >= 0.

    Returns:
        (N, D), on the CPU.

    Raises:
        ValueError: If there is no such column, or its rows are not vectors of equal length.
    """
    if kind == "pixels":
        return torch.cat([images.flatten(1).cpu() for images, _ in batches(run.source, _BATCH)])
    if kind != "network":
        return run.numeric_column(kind)
    if not cache_enabled(run.cache and run.factory.named):
        return _embedded(run, updates)
    file = cache_folder("features") / f"{network_key(run, updates)}.safetensors"
    # The other processes wait for the main one and then read the file.
    with run.accelerator.main_process_first():
        return cached_tensors(file, lambda: {"features": _embedded(run, updates)})["features"]


@torch.no_grad()
def _embedded(run: Run, updates: int) -> Tensor:
    """Return embeddings of the source by a network that was trained on it: (N, D)."""
    net = trained_network(run, updates)
    return torch.cat([net.embed(images).float().cpu() for images, _ in batches(run.source, _BATCH)])  # type: ignore[operator]
