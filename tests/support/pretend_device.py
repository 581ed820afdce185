"""A pretend GPU: a device that refuses what a real one refuses, and counts what makes the host wait.

Inside `pretend_device()`, tensors say that they are on `cuda:0` but hold CPU tensors, on which every operation really
runs. So values are right, and with them the control flow that depends on values. What a GPU refuses raises
`DeviceError`: tensors of two devices in one operation, a generator of another device, float64 on MPS. It knows nothing
of kernels: cuDNN, Triton, memory and NCCL need a real GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from hf_condense.condensed.decoders.dct import _matrices
from hf_condense.condensed.decoders.siren import _coordinates
from hf_condense.networks.augment import _grid


def _names(text: str) -> set[str]:
    """Return the words of a text."""
    return set(text.split())


_CPU = torch.device("cpu")
# What C++ believes the device to be. Autograd then stays in the calling thread and asks no driver.
_META = torch.device("meta")
_COPIES = {"_to_copy", "copy_", "_copy_from"}
_MAY_MIX = {*_COPIES, "set_", "lift_fresh"}  # operations that take tensors of two devices
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_RETURN_NUMBERS = {"_local_scalar_dense", "equal", "is_same_size"}
# Operations that launch no kernel: views, and memory that nobody has written yet.
_NO_LAUNCH = _names(
    "view _unsafe_view reshape expand permute transpose t unsqueeze squeeze slice select split split_with_sizes "
    "unbind detach alias as_strided diagonal unfold narrow lift_fresh empty empty_like empty_strided new_empty "
    "new_empty_strided _reshape_alias chunk movedim set_data sym_size is_same_size resize_ is_pinned"
)
# Operations whose result, or its size, the host must know before it can go on.
_WAITS = _names(
    "_local_scalar_dense nonzero unique_consecutive _unique2 unique_dim masked_select equal is_nonzero "
    "repeat_interleave bincount _linalg_eigh _linalg_svd _linalg_check_errors"
)
_HALF_UNDER_AUTOCAST = _names("conv1d conv2d conv3d linear matmul __matmul__ mm bmm addmm baddbmm addbmm einsum")
_FLOAT_UNDER_AUTOCAST = _names(
    "layer_norm group_norm softmax log_softmax cross_entropy nll_loss exp log pow sum norm cumsum"
)


class DeviceError(RuntimeError):
    """The real device would have refused this."""


@dataclass
class Counts:
    """What a pretend device was asked for.

    Attributes:
        launches: Kernels by the name of their operation.
        waits: Moments at which the host waits for the device, by operation and place (`"copy_ at engine/loop.py:7"`).
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget everything."""
        self.launches.clear()
        self.waits.clear()


@contextmanager
def pretend_device(kind: str = "cuda", mixed_precision: str = "no") -> Iterator[Counts]:
    """Give a block a pretend GPU, which accelerators that are made in the block run on.

    Args:
        kind: Type of the device: `"cuda"`, or `"mps"`, which has no float64.
        mixed_precision: What the accelerators' autocast does: `"no"` or `"bf16"`.
    """
    counts = Counts()
    generator = torch.Generator()
    gigabytes = 80 * 2**30
    cuda = {
        "mem_get_info": lambda device=None: (gigabytes, gigabytes),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "get_rng_state": lambda device=0: generator.get_state(),
        "set_rng_state": lambda state, device=0: None,
        "default_generators": (generator,),
        "get_device_name": lambda device=None: "pretend device",
        "synchronize": lambda device=None: counts.waits.update([f"synchronize at {_place()}"]),
    }
    with ExitStack() as stack:
        for kept in (_grid, _matrices, _coordinates):  # constants, by the name of a device: a real one has the same
            kept.cache_clear()
            stack.callback(kept.cache_clear)
        stack.enter_context(_accelerate_on(torch.device(kind, 0), mixed_precision))
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        stack.enter_context(mock.patch.object(torch.mps, "_get_default_mps_generator", return_value=generator))
        stack.enter_context(mock.patch.multiple(Tensor, pin_memory=_pinned, is_pinned=_is_pinned))
        stack.callback(_PINNED.clear)
        stack.enter_context(mock.patch.object(_PretendTensor, "kind", kind))
        stack.enter_context(_torch_setting("_set_only_lift_cpu_tensors", torch._C._only_lift_cpu_tensors()))
        stack.callback(
            torch.__future__.set_overwrite_module_params_on_conversion,
            torch.__future__.get_overwrite_module_params_on_conversion(),
        )
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Dispatch(counts))
        yield counts


@contextmanager
def _torch_setting(setter: str, before: bool) -> Iterator[None]:
    """Switch a setting of torch on in a block."""
    change = getattr(torch._C, setter)
    change(True)
    try:
        yield
    finally:
        change(before)


@contextmanager
def _accelerate_on(device: torch.device, mixed_precision: str) -> Iterator[None]:
    """Let Accelerate believe that it runs on a device, in this block."""

    def autocast(self: Accelerator, *args: Any, **options: Any) -> AbstractContextManager[Any]:
        return _Autocast() if mixed_precision == "bf16" else nullcontext()

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        Accelerator(cpu=True, mixed_precision=mixed_precision)
        PartialState._shared_state["device"] = AcceleratorState._shared_state["device"] = device
        with mock.patch.object(Accelerator, "autocast", autocast):
            yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


class _PretendTensor(torch.Tensor):
    """A tensor that says it is on the device, and holds its values in a CPU tensor."""

    kind: ClassVar[str] = "cuda"
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _PretendTensor:
        tensor: _PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=_META,
        )
        return tensor

    def __init__(self, held: Tensor) -> None:
        if self.kind == "mps" and held.dtype in (torch.float64, torch.complex128):
            raise DeviceError("Cannot convert a MPS Tensor to float64 dtype as MPS does not support float64")
        self.held = held.detach()

    def __repr__(self) -> str:
        return f"{self.kind}: {self.held}"

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0)

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def is_meta(self) -> bool:
        return False

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Reached only when the mode is off, in a graph that outlives its block.
        return _Call(func, args, kwargs or {}).run()


class _Dispatch(TorchDispatchMode):
    """Run every operation as the device would, and count."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = _Call(func, args, kwargs or {})
        call.check()
        if call.launches:
            self.counts.launches[call.name] += 1
        if call.waits:
            self.counts.waits[f"{call.name} at {_place()}"] += 1
        return call.run()


class _Call:
    """One call of an operation."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = func._schema.name.split("::")[1]
        self.values = tree_flatten((args, kwargs))[0]
        tensors = [value for value in self.values if isinstance(value, Tensor)]
        self.on_device = [tensor for tensor in tensors if isinstance(tensor, _PretendTensor)]
        self.on_cpu = [tensor for tensor in tensors if not isinstance(tensor, _PretendTensor)]

    @property
    def returns_to_device(self) -> bool:
        """Whether the results are on the device."""
        device = self.kwargs.get("device")
        if device is None:
            return bool(self.on_device)
        return torch.device(device).type in (_PretendTensor.kind, "meta")

    @property
    def copies(self) -> bool:
        """Whether the call copies from one device to the other."""
        if self.name not in _COPIES:
            return False
        if self.name == "_to_copy":
            return bool(self.on_device) != self.returns_to_device
        return bool(self.on_device and self.on_cpu)

    @property
    def launches(self) -> bool:
        """Whether the device gets work."""
        return (bool(self.on_device) or self.returns_to_device) and self.name not in _NO_LAUNCH

    @property
    def waits(self) -> bool:
        """Whether the host waits for the device."""
        if self.copies:
            return not (self._asks_not_to_wait() and all(_is_pinned(tensor) for tensor in self.on_cpu))
        if not self.on_device:
            return False
        if self.name in _INDEXING:
            return self._fetches_indices()
        return self.name in _WAITS

    def _asks_not_to_wait(self) -> bool:
        position = 2 if self.name == "copy_" else len(self.args)
        return bool(self.kwargs.get("non_blocking", self.args[position] if len(self.args) > position else False))

    def _fetches_indices(self) -> bool:
        """Whether indices come from the CPU, or have a size that only the device knows."""
        indices = [index for index in self.args[1] if index is not None]
        mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if mask and len(self.args) > 2 and self.args[2].dim() == 0:
            return False  # a number is written under a mask
        return mask or any(not isinstance(index, _PretendTensor) for index in indices)

    def check(self) -> None:
        """Raise `DeviceError` for what the device refuses."""
        if self.returns_to_device:
            for value in self.values:
                if isinstance(value, torch.Generator):
                    raise DeviceError(f"{self.name}: expected a generator of {_PretendTensor.kind}; got one of the CPU")
        if not self.on_device or not self.on_cpu or self.name in _MAY_MIX:
            return
        if self.name in _INDEXING:
            if not isinstance(self.args[0], _PretendTensor):
                raise DeviceError(f"{self.name}: indices on the device into a tensor on the CPU")
            strangers = [value for value in self.args[2:3] if not isinstance(value, _PretendTensor) and value.dim()]
        else:
            strangers = [tensor for tensor in self.on_cpu if tensor.dim()]  # a number from the CPU is allowed
        if strangers:
            shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in (*self.on_device, *self.on_cpu)]
            raise DeviceError(f"{self.name}: expected all tensors to be on the same device; got {shapes}")

    def run(self) -> Any:
        """Run the operation on the CPU and return its results as tensors of the device that they belong to."""
        kwargs = {key: _CPU if key == "device" and value is not None else value for key, value in self.kwargs.items()}
        pinned = bool(kwargs.pop("pin_memory", False)) and not self.returns_to_device
        out = self.func(*tree_map(_unwrapped, self.args), **tree_map(_unwrapped, kwargs))
        if pinned:
            return _pinned(out)
        first = self.args[0] if self.args else None
        if torch.Tag.inplace_view in self.func.tags and isinstance(first, _PretendTensor):
            with no_dispatch():  # the shape of the wrapper follows that of what it holds
                self.func(*self.args, **self.kwargs)
            return first
        if "out" in self.kwargs:
            return self.kwargs["out"]
        if self.name.endswith("_") and isinstance(first, Tensor) and isinstance(out, Tensor):
            return first
        if self.name in _RETURN_NUMBERS or not self.returns_to_device:
            return out
        return tree_map(_wrapped, out)


class _Autocast(TorchFunctionMode):
    """What CUDA's autocast does to the operations of our networks and losses: some run in bfloat16, some in float32."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        for names, dtype in ((_HALF_UNDER_AUTOCAST, torch.bfloat16), (_FLOAT_UNDER_AUTOCAST, torch.float32)):
            if name in names:

                def cast(value: Any, dtype: torch.dtype = dtype) -> Any:
                    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

                args, kwargs = tree_map(cast, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


_PINNED: dict[int, Tensor] = {}  # by address; they stay alive, so that no other memory gets the address


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    """Return a copy of a CPU tensor in memory that counts as pinned."""
    if isinstance(tensor, _PretendTensor):
        raise DeviceError("only dense CPU tensors can be pinned")
    copy = tensor.clone()
    _PINNED[copy.untyped_storage().data_ptr()] = copy
    return copy


def _is_pinned(tensor: Tensor, device: Any = None) -> bool:
    return not isinstance(tensor, _PretendTensor) and tensor.untyped_storage().data_ptr() in _PINNED


def _unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, _PretendTensor) else value


def _wrapped(value: Any) -> Any:
    return _PretendTensor(value) if isinstance(value, Tensor) and not isinstance(value, _PretendTensor) else value


def _place() -> str:
    """Return the line of code that asked: the innermost one that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = Path(frame.f_code.co_filename)
        if frame.f_code.co_filename != __file__ and not {"torch", "unittest"} & set(file.parts):
            return f"{file.parent.name}/{file.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"
