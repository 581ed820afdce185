"""Checkpoints of a run: one safetensors file that is replaced atomically, so that a kill always leaves a whole one."""

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
    """The state of a run after some steps.

    Attributes:
        step: Steps that are done.
        identity: The facts that identify the run (method, options, seed, content, ...). JSON values.
        plan: How the work of a step is cut. A resumed run must cut it in the same way to repeat the same bits.
        tensors: The synthetic set, the optimiser's state and the method's state, by dotted name.
        processes: Number of processes of the run that wrote it.
    """

    step: int
    identity: dict[str, Any]
    plan: Plan
    tensors: dict[str, Tensor]
    processes: int = 1

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix and a dot, without that prefix."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}

    def write(self, folder: Path) -> None:
        """Write the checkpoint into a folder. An earlier one stays whole until the new one replaces it."""
        run = {"step": self.step, "identity": self.identity, "plan": self.plan.to_dict(), "processes": self.processes}
        facts = json.dumps(run, sort_keys=True)
        # Cloning matters: a method's state may hold one tensor under two names, which safetensors refuses.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        content = save(tensors, metadata={"hf_condense_checkpoint": facts})
        with atomic_file(folder / FILE_NAME) as file:
            file.write_bytes(content)


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of a folder, if there is one.

    Args:
        folder: Where checkpoints are written.
        identity: The facts that identify this run.

    Returns:
        The checkpoint, or None if the folder has none.

    Raises:
        ValueError: If the checkpoint belongs to another run (the message names every difference) or cannot be read.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["hf_condense_checkpoint"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        plan, processes = Plan(**facts["plan"]), facts.get("processes", 1)
        checkpoint = Checkpoint(facts["step"], facts["identity"], plan, tensors, processes)
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a checkpoint ({error}); remove it to start again") from error
    saved = _flat(checkpoint.identity)
    current = _flat(json.loads(json.dumps(identity)))  # in JSON, tuples become lists
    differences = [
        f"{name}: {saved.get(name)!r} in the checkpoint, {current.get(name)!r} in this run"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            f"{file} belongs to another run ({'; '.join(differences)}); pass another checkpoint_dir, or remove the file"
        )
    return checkpoint


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts to dotted names, so that a message can name a single option."""
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
    """Restore the state of an optimiser from what `optimiser_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
