"""Networks that were trained on the real set, in the cache, and the rows of it that they may not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hf_condense.base.cache import cached_or_made, content_key
from hf_condense.base.devices import device_facts
from hf_condense.engine.run import Run
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource

CACHE_VERSION = 1  # version of the cached networks; increment when the same options start to give other weights
BATCH_SIZE = RECIPES["dc"].batch_size  # rows per training update
FORWARD_IMAGES = 64  # in one forward pass


def network_key(run: Run, updates: int, batch: int = BATCH_SIZE, *, network: str | None = None) -> str:
    """Return the cache key of a trained network and of its features.

    Args:
        run: The run.
        updates: Training updates of the network.
        batch: Rows per update.
        network: Canonical name of the network; None: that of the run's.
    """
    return content_key(
        format=CACHE_VERSION,
        recipe=dataclasses.asdict(RECIPES["dc"]),
        content=run.source.content_hash,
        shape=list(run.source.image_shape),
        network=run.factory.name if network is None else network,
        updates=updates,
        batch=batch,
        seed=run.seed,
        torch=torch.__version__,
        whitened=run.source.whitening is not None,
        **device_facts(run.device),
    )


def trained_network(run: Run, updates: int, batch: int = BATCH_SIZE) -> nn.Module:
    """Return the run's network, trained on the whole source, in evaluation mode, on the device.

    Its weights are cached. There is no barrier in here: callers should let the main process do it alone.

    Args:
        run: The run.
        updates: Training updates by the recipe `dc`, >= 0.
        batch: Rows per update, >= 1.
    """
    net = run.factory.build(run.seed, "features").to(run.device)

    def make() -> dict[str, Tensor]:
        _train(run, net, updates, batch)
        return cpu_state(net)

    net.load_state_dict(cached_tensors_of(run, "networks", network_key(run, updates, batch), make))
    return net.eval()


def cpu_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network by name, on the CPU."""
    return {name: tensor.cpu() for name, tensor in net.state_dict().items()}


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Return whether all numbers of a network's state are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def diverged_teacher(what: str, network: str, updates: int) -> ValueError:
    """Return the error for a teacher whose weights or logits are not finite: a set with its labels cannot be saved."""
    return ValueError(
        f"the {what} of the teacher, {network} after {updates:,} updates, are NaN or infinite; pass another network, "
        "or fewer teacher_updates"
    )


def cached_tensors_of(run: Run, kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, or made anew if the run does not use it or its network has no name."""
    return cached_or_made(kind, key, make, enabled=run.cache and run.factory.named)


def held_out_rows(run: Run) -> Tensor:
    """Return the positions of the training rows that are held out, sorted: int64 (n,); none if no class has two."""
    return run.source.held_out(run.seed, "held out")


def training_set_without(source: ClassSource, held_out: Tensor) -> TrainingSet:
    """Return a source as training data, without the rows at some positions."""
    seen = source.part(source.others(held_out), decoded=False)
    return TrainingSet(seen, seen.labels, len(source.class_names))


def _train(run: Run, net: nn.Module, updates: int, batch: int) -> None:
    if updates:
        whole = TrainingSet(run.source, run.source.labels, run.num_classes)
        with torch.enable_grad():
            recipe = dataclasses.replace(RECIPES["dc"], batch_size=batch)
            train_network(net, whole, recipe, run.seed, "features", max_updates=updates)
