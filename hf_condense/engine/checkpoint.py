"""Checkpoints of a run: one safetensors file that is replaced atomically, so that a kill always leaves a whole one."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hf_condense.base.files import atomic_file, check_readable
from hf_condense.engine.plan import Plan

logger = logging.getLogger("hf_condense")

FILE_NAME = "checkpoint.safetensors"
_FACTS = "hf_condense_checkpoint"  # in the metadata of the file
_DIGEST = "sha256"  # beside it, of the facts and the tensors
# What differs with the rows: presets scale options by the std.
_OF_DATA = frozenset({"mean", "std", "options.lr_img", "options.weight_decay"})


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after some steps.

    Attributes:
        step: Steps that are done.
        identity: The facts that identify the run (method, options, seed, content, ...). JSON values.
        plan: How the work of a step is cut. A resumed run must cut it in the same way to repeat the same bits.
        tensors: The synthetic set, the optimiser's state and the method's state, by dotted name.
        processes: Number of processes of the run that wrote it.
        seconds: How long the run has taken so far, with the calls before it was resumed.
        workers: Workers of a process, and processes, for which `method="auto"` chose the settings; None if it did not.
    """

    step: int
    identity: dict[str, Any]
    plan: Plan
    tensors: dict[str, Tensor]
    processes: int = 1
    seconds: float = 0.0
    workers: tuple[int, int] | None = None

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix and a dot, without that prefix."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}

    def write(self, folder: Path) -> None:
        """Write the checkpoint into a folder. An earlier one stays whole until the new one replaces it.

        Raises:
            FileExistsError: If the folder holds the checkpoint of another run, which has come since this one began.
            OSError: If the disk is full, or the file cannot be made; the message says what to do.
        """
        if (other := _identity_in(folder)) is not None and (differences := _differences(other, self.identity)):
            raise FileExistsError(
                f"another run has written its checkpoint to {folder} since this one began, and it is not replaced "
                f"({'; '.join(differences.values())}); runs at the same time each need a checkpoint_dir= of their own"
            )
        run = {
            "step": self.step,
            "identity": self.identity,
            "plan": self.plan.to_dict(),
            "processes": self.processes,
            "seconds": self.seconds,
            "workers": self.workers,
        }
        facts = json.dumps(run, sort_keys=True)
        # Cloning matters: a method's state may hold one tensor under two names, which safetensors refuses.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        content = save(tensors, metadata={_FACTS: facts, _DIGEST: _digest(facts, tensors)})
        with atomic_file(folder / FILE_NAME) as file:
            file.write_bytes(content)


def read_checkpoint(folder: Path, identity: dict[str, Any], *, steps_are_chosen: bool = False) -> Checkpoint | None:
    """Read the checkpoint of a folder, if there is one.

    Args:
        folder: Where checkpoints are written.
        identity: The facts that identify this run.
        steps_are_chosen: Whether `method="auto"` chose the number of steps, by its budget.

    Returns:
        The checkpoint, or None if the folder has none.

    Raises:
        ValueError: If the checkpoint belongs to another run (the message names every difference) or is damaged.
        OSError: If the file cannot be opened; the message says what to do.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return None
    check_readable(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        if metadata.get(_DIGEST) != _digest(metadata[_FACTS], tensors):
            raise ValueError("its content is not what was written")
        facts = json.loads(metadata[_FACTS])
        plan, processes = Plan(**facts["plan"]), facts.get("processes", 1)
        since = facts.get("seconds", 0.0), facts.get("workers") and tuple(facts["workers"])
        checkpoint = Checkpoint(facts["step"], facts["identity"], plan, tensors, processes, *since)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read as a checkpoint ({error}): it is damaged, or of another version of hf_condense; "
            "remove it to start again"
        ) from error
    if differences := _differences(checkpoint.identity, identity):
        remedy = "pass what it has"
        if steps_are_chosen and "steps" in differences:
            differences["steps"] += " (method='auto' chose other steps for another budget)"
            remedy = "pass the budget= that it had" + (", and what else it has" if len(differences) > 1 else "")
        found = "; ".join(differences.values())
        raise ValueError(
            f"{file} belongs to another run ({found}). To go on with that one, {remedy}; to start this one, pass "
            "another checkpoint_dir=, or remove the file"
        )
    return checkpoint


def _digest(facts: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a checkpoint's facts and of its tensors on the CPU, with their names, dtypes and shapes."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def workers_in(folder: Path) -> tuple[int, int] | None:
    """Return for how many workers and processes `method="auto"` chose the settings of the run in a folder, or None.

    The same call then makes the same choice, on a machine with more cores, too.
    """
    workers = _facts_in(folder).get("workers")
    return (workers[0], workers[1]) if workers else None


def _identity_in(folder: Path) -> dict[str, Any] | None:
    """Return the identity of the checkpoint in a folder, or None if there is none that can be read."""
    identity: dict[str, Any] | None = _facts_in(folder).get("identity")
    return identity


def _facts_in(folder: Path) -> dict[str, Any]:
    """Return the facts of the checkpoint in a folder, which are none if it is missing or cannot be read."""
    try:
        with safe_open(folder / FILE_NAME, framework="pt") as opened:
            facts: dict[str, Any] = json.loads(opened.metadata()[_FACTS])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):  # missing or damaged: no loss
        return {}
    return facts if isinstance(facts, dict) else {}


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, str]:
    """Return what differs between the identity in a checkpoint and that of this run, one sentence for each fact."""
    before, now = _flat(saved), _flat(json.loads(json.dumps(current)))  # in JSON, tuples become lists
    differences = {
        name: f"{name}: {before.get(name)!r} in the checkpoint, {now.get(name)!r} in this run"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }
    if "method" in differences:  # options of another method differ as a matter of course
        differences = {name: text for name, text in differences.items() if not name.startswith("options.")}
    if "content_hash" in differences:
        differences = {name: text for name, text in differences.items() if name not in _OF_DATA}
        differences["content_hash"] = "another dataset, or other rows of it"
    # Only with some options do steps identify a run: where one run has such options, these are the difference.
    if len(differences) > 1 and None in (before.get("steps"), now.get("steps")):
        differences.pop("steps", None)
    return differences


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts to dotted names, so that a message can name a single option."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat


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
