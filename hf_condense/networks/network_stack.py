"""Several networks of one architecture as one module: small networks keep a GPU waiting, a stack of them does not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from hf_condense.base.memory import memory_budget
from hf_condense.networks.network_facts import activation_bytes, parameter_bytes

# Measured on one core (images of 32 x 32, five networks): together, they take a tenth to a third less time at width 8
# and ten images a batch, but about half as much again at width 32.
_SLOWER_TOGETHER = {"cpu"}
# On a GPU, an update of one network takes a hundred launches and more, of several microseconds each. By arithmetic, a
# batch with more activations than this keeps a large GPU busy for about as long, so a stack saves little.
_SMALL_BATCH_BYTES = 64 * 2**20
_COPIES_OF_WEIGHTS = 4  # the weights, their gradients, and up to two moments of the optimiser


class NetworkStack(nn.Module):
    """Some networks of one architecture, computed together. Its parameters and buffers have a first dimension more.

    Args:
        nets: M networks on the CPU, which differ in their weights only. The first one holds all weights afterwards.

    Example:
        >>> stack = NetworkStack([nn.Sequential(nn.Flatten(), nn.Linear(12, 5)) for _ in range(3)])
        >>> stack(torch.zeros(7, 3, 2, 2)).shape, stack(torch.zeros(7, 3, 3, 2, 2)).shape
        (torch.Size([7, 3, 5]), torch.Size([7, 3, 5]))
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(nets))
        self.net = nets[0]
        # Data is replaced, not the parameters themselves, so that layers that share one still do.
        for name, tensor in (*self.net.named_parameters(), *self.net.named_buffers()):
            tensor.data = (parameters if name in parameters else buffers)[name].detach()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of every network.

        Args:
            images: Images that all networks see (B, C, H, W), or those of each network (B, M, C, H, W).

        Returns:
            (B, M, K).
        """
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        each = vmap(partial(functional_call, self.net), in_dims=(0, 1 if images.ndim == 5 else None), out_dims=1)
        logits: Tensor = each(tensors, images)
        return logits


def networks_together(
    make: Callable[[], nn.Module], device: torch.device, image_shape: tuple[int, int, int], batch: int, rows: int
) -> int:
    """Return how many networks should be trained at a time: a rule from shapes, device and memory.

    It is 1 where a stack saves no time, and for networks that cannot be computed together. Those with dropout cannot:
    they would not draw what each of them draws alone. Neither can those whose code depends on the values of tensors.

    Args:
        make: Makes one of them, in training mode and on the CPU.
        device: Where they run.
        image_shape: (C, H, W).
        batch: Images in a batch, >= 1.
        rows: Images that each network is trained on.
    """
    if device.type in _SLOWER_TOGETHER:
        return 1
    with warnings.catch_warnings():
        # So says vmap of an operation that it can only compute for one network after the other.
        warnings.filterwarnings("error", message="There is a performance drop")
        try:
            stack = NetworkStack([make(), make()]).to(device)
            # Each of the two has images of its own, as in training.
            batch_bytes = batch * activation_bytes(stack, (2, *image_shape)) // 2
        except Exception:  # whatever vmap, or a user's network under it, raises
            return 1
    if batch_bytes > _SMALL_BATCH_BYTES:
        return 1
    weight_bytes = parameter_bytes(stack) // 2
    data_bytes = 4 * rows * math.prod(image_shape)
    # The sets of several networks are there twice while they are joined.
    return max(1, memory_budget(device) // (batch_bytes + _COPIES_OF_WEIGHTS * weight_bytes + 2 * data_bytes))
