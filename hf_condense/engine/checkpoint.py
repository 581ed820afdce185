"""Checkpoints of a run: one safetensors file, replaced at once, so that a kill at any moment leaves a whole one."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from hf_condense.base.cache import atomic_file
from hf_condense.engine.plan import Plan

logger = logging.getLogger("hf_condense")

FILE_NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands after some steps.

    Attributes:
        step: Steps that are done.
        identity: What makes the run this run (method, options, seed, content, ...): JSON values.
        plan: How the work of a step is cut; a resumed run must cut it in the same way to repeat the same bits.
        tensors: Synthetic set, optimiser and method state, by dotted name.
    """

    step: int
    identity: dict[str, Any]
    plan: Plan
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix, with the prefix taken off."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}

    def write(self, folder: Path) -> None:
        """Write into a folder, replacing an earlier checkpoint; that one stays whole until then."""
        facts = json.dumps({"step": self.step, "identity": self.identity, "plan": self.plan.to_dict()}, sort_keys=True)
        # Cloned, because a method's state may hold one tensor under two names, which safetensors refuses.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        content = save(tensors, metadata={"hf_condense_checkpoint": facts})
        with atomic_file(folder / FILE_NAME) as file:
            file.write_bytes(content)


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of a folder, if there is one.

    Args:
        folder: Where checkpoints are written.
        identity: What makes this run this run.

    Raises:
        ValueError: If the checkpoint is of another run (the message names every difference) or cannot be read.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["hf_condense_checkpoint"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        found = Checkpoint(facts["step"], facts["identity"], Plan(**facts["plan"]), tensors)
    except Exception as error:
        raise ValueError(f"{file} is no readable checkpoint ({error}); remove it to start anew") from error
    there, here = _flat(found.identity), _flat(json.loads(json.dumps(identity)))  # as JSON, tuples become lists
    differences = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise ValueError(
            f"{file} belongs to another run ({'; '.join(differences)}); pass another checkpoint_dir, or remove the file"
        )
    return found


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Lift values of nested dicts to the top, under dotted names, so that one option can be named."""
    nested = {name: value if isinstance(value, dict) else {"": value} for name, value in identity.items()}
    return {f"{name}.{key}".rstrip("."): value for name, values in nested.items() for key, value in values.items()}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as tensors by name."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser back the state of `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
