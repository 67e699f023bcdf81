"""A CUDA card that is not there, for tests: tensors that say they are on cuda:0 and are computed on the CPU.

A `CardTensor` holds a CPU tensor and refuses what a card refuses: a second device in one operation, `.numpy()`, products of
integers, generators of the CPU, more memory than it has, where torch is built for cards operations that have no CUDA kernel, and
with deterministic algorithms on those that torch documents as having none. Everything that waits for the card (`.item()`,
`.cpu()`, boolean indices, `nonzero`, ...) is counted, and what is sent to it. `torch.cuda` answers for it while
`Machine.installed` lasts.

To C++ a CardTensor is a meta tensor with CUDA's dispatch keys, since the autograd engine has no queue for a card that no
driver has. Hence a factory that reaches the dispatcher with the device "meta" means the card, unless Python asked for "meta".

What it cannot show: kernels and their rounding, which of several kernels (cuDNN, attention, fused losses) torch would choose,
streams and their races, speed, real memory use, torch.compile, NCCL.
"""

from __future__ import annotations

import contextlib
import gc
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HERE = torch.device("cuda", 0)
META = torch.device("meta")

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "_addmm_activation", "addbmm"}
LOWER = PRODUCTS | {"convolution", "convolution_backward"}  # autocast computes these in bfloat16, and those in float32
UPPER = {"_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data", "native_layer_norm",
         "native_layer_norm_backward", "pow", "exp", "log", "mse_loss", "nll_loss_forward", "sum", "prod"}  # fmt: skip
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
# Operations whose CUDA kernels end by reading a number or a size back, so that the program waits for the card.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "histc", "is_nonzero", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "linalg_eigh", "_linalg_eigh", "_linalg_svd", "linalg_svd", "linalg_qr", "linalg_lstsq",
    "linalg_cholesky_ex", "linalg_inv_ex", "_linalg_solve_ex", "linalg_solve_triangular", "linalg_lu_factor_ex", "linalg_eig",
    "linalg_ldl_factor_ex", "_linalg_det", "_linalg_slogdet",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# What raises on a card with deterministic algorithms on: the list in the text of torch.use_deterministic_algorithms.
NONDETERMINISTIC = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d_backward", "max_pool3d_with_indices_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward",
    "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward",
    "_embedding_bag_dense_backward", "put_", "histc", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    "scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_",
}  # fmt: skip
TWO_DEVICES = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class CardTensor(torch.Tensor):
    """A tensor of the simulated card; `held` is where its numbers really are."""

    held: torch.Tensor
    machine: Machine
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, machine: Machine) -> CardTensor:
        shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        if held.storage_offset():
            extent = 1 + sum((size - 1) * step for size, step in zip(held.shape, held.stride(), strict=True))
            extent = (0 if 0 in held.shape else extent) + held.storage_offset()
            shape = torch.empty(extent, dtype=held.dtype, device="meta").as_strided(
                held.shape, held.stride(), held.storage_offset()
            )
        self = torch.Tensor._make_subclass(cls, shape, False, dispatch_device=False, device_for_backend_keys=HERE)
        self.held, self.machine = held, machine
        machine.took(self)
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the simulated card, outside Machine.installed")

    device = property(lambda self: HERE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise NotImplementedError("the simulated card cannot exchange the data of a tensor")

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> CardTensor:
        if id(self) in memo:
            return memo[id(self)]
        new = self.detach().clone(memory_format=torch.preserve_format).requires_grad_(self.requires_grad)
        for name, value in self.__dict__.items():
            if name not in ("held", "machine"):
                setattr(new, name, value)
        memo[id(self)] = new
        return new


class Machine:
    """The card's state, what `torch.cuda` says of it, and what was done with it.

    operations: how often each was run on the card. waits: how often, and by what, the program waited for the card.
    sent: how often something was sent to it. kernels: every operation seen, with its overload.
    """

    def __init__(self, memory: int = 8 * 2**30) -> None:
        self.memory, self.allocated, self.peak = memory, 0, 0
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.kernels: set[Any] = set()
        self.storages: Counter[int] = Counter()
        self.genuine_meta = 0
        self.autocast = False  # below autocast's own dispatch torch says no
        self.seeded(0)
        self.switches: list[dict[str, Any]] = []

    # --- memory ----------------------------------------------------------------------------------------------------

    def took(self, tensor: CardTensor) -> None:
        """Count the memory of a tensor, once per storage, until the last tensor on it is gone."""
        storage = tensor.held.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        if not self.storages[place]:
            if self.allocated + size > self.memory:
                gc.collect()
            if self.allocated + size > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        self.storages[place] += 1
        weakref.finalize(tensor, self._freed, place, size).atexit = False

    def _freed(self, place: int, size: int) -> None:
        self.storages[place] -= 1
        if not self.storages[place]:
            self.allocated -= size
            del self.storages[place]

    # --- operations ------------------------------------------------------------------------------------------------

    def wrapped(self, value: Any) -> Any:
        """Return the tensors of a nested value on the card."""
        return _changed(value, lambda t: t if isinstance(t, CardTensor) else CardTensor(t, self))

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do one operation of the dispatcher wherever its tensors are."""
        cards: list[CardTensor] = []
        others: list[torch.Tensor] = []
        _sort((args, kwargs), cards, others)
        name = func._schema.name.partition("::")[2]
        device = kwargs.get("device")
        if not cards:
            if device is not None and _is_card(device, self.genuine_meta):
                return self._created(func, name, args, kwargs)
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_", "copy", "_copy_from"):
            return self._copied(func, name, args, kwargs)
        if device is not None and torch.device(device).type not in ("cuda", "meta"):
            raise NotImplementedError(f"{func} from the simulated card to {device}")
        self._check(func, name, args, kwargs, others)
        self._count(func, name)
        known = {id(card.held): card for card in cards}
        if device is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        with self._drawing(func, kwargs):
            out = _computed(func, name, _held(args), _held(kwargs), self.autocast)
        if torch.Tag.inplace_view in func.tags and cards[0].shape != cards[0].held.shape:
            raise NotImplementedError(f"{func} changes a shape in place; the simulated card does not follow that")
        return _changed(out, lambda t: known[id(t)] if id(t) in known else CardTensor(t, self))

    def _count(self, func: Any, name: str) -> None:
        self.operations[name] += 1
        if func not in self.kernels and torch.backends.cuda.is_built():  # a build for cards knows its kernels without one
            full = f"{func._schema.name}.{func._schema.overload_name}".rstrip(".")
            if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(full, "CUDA"):
                raise NotImplementedError(f"Could not run '{full}' with arguments from the 'CUDA' backend")
        self.kernels.add(func)

    def _created(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Make a tensor on the card from sizes, or copy one there."""
        self.operations[name] += 1
        if name == "_to_copy":
            self.sent[name] += 1
        with self._drawing(func, kwargs):
            return self.wrapped(func(*args, **kwargs | {"device": torch.device("cpu")}))

    def _copied(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        self._count(func, name)
        if name == "_to_copy":
            device = kwargs.get("device")
            leaves = device is not None and torch.device(device).type == "cpu"
            out = func(args[0].held, **kwargs | ({} if device is None else {"device": torch.device("cpu")}))
            if leaves:
                self.waits["_to_copy"] += 1
                return out
            return self.wrapped(out)
        target, source = args[:2]
        if isinstance(target, CardTensor) and not isinstance(source, CardTensor) and source.device.type == "cpu":
            self.sent[name] += 1
        if not isinstance(target, CardTensor):
            self.waits[name] += 1
        func(*_held(args), **kwargs)
        return target

    def _check(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], others: list[torch.Tensor]) -> None:
        """Refuse what a card refuses, and count the waiting."""
        if name in INDEXING:
            if not isinstance(args[0], CardTensor):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            places = [t for t in args[1] if t is not None]
            for place in places:
                if not isinstance(place, CardTensor):
                    self.sent["index"] += 1
                if place.dtype in (torch.bool, torch.uint8):
                    self.waits["boolean index"] += 1
            others = [t for t in others if all(t is not place for place in places)]
        if any(t.ndim > 0 or t.device.type != "cpu" for t in others):
            raise RuntimeError(f"{TWO_DEVICES} (when checking arguments of {func})")
        if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.waits[name] += 1
        if name in PRODUCTS:
            kind = next(t for t in args if isinstance(t, CardTensor)).dtype
            if not (kind.is_floating_point or kind.is_complex):
                raise NotImplementedError(f'"{name}_cuda" not implemented for {kind}')
            self.switches.append(_switches(self.autocast))
        if torch.are_deterministic_algorithms_enabled():
            self._check_deterministic(name, args, kwargs)

    def _check_deterministic(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name in PRODUCTS and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
            raise RuntimeError(f"Deterministic behavior was enabled, but {name} is not deterministic because it uses CuBLAS")
        weighted = name == "bincount" and ((len(args) > 1 and args[1] is not None) or kwargs.get("weights") is not None)
        floating = name in ("cumsum", "cumsum_") and args[0].dtype.is_floating_point
        reduced = name in ("scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_")
        listed = name in NONDETERMINISTIC and not (reduced and args[4] in ("sum", "mean", "amin", "amax"))
        if weighted or floating or listed or (name == "median" and len(args) > 1):
            raise RuntimeError(f"{name}_cuda does not have a deterministic implementation, but you set ...")

    @contextlib.contextmanager
    def _drawing(self, func: Any, kwargs: dict[str, Any]) -> Iterator[None]:
        """Let random numbers come from the card's own generator."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.random)
        try:
            yield
        finally:
            self.random = torch.default_generator.get_state()
            torch.default_generator.set_state(before)

    # --- what is there while it lasts ------------------------------------------------------------------------------

    def seeded(self, seed: int) -> None:
        """Seed the card's generator."""
        self.random = torch.Generator().manual_seed(seed).get_state()

    def answers(self) -> dict[str, Any]:
        """Return what `torch.cuda` is to answer, by name."""
        properties = SimpleNamespace(
            name="Simulated card", total_memory=self.memory, major=9, minor=0, multi_processor_count=132, warp_size=32
        )
        return {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "set_device": lambda device: None,
            "get_device_name": lambda device=None: properties.name,
            "get_device_properties": lambda device=None: properties,
            "is_bf16_supported": lambda including_emulation=True: True,
            "is_current_stream_capturing": lambda: False,
            "mem_get_info": lambda device=None: (self.memory - self.allocated, self.memory),
            "memory_allocated": lambda device=None: self.allocated,
            "memory_reserved": lambda device=None: self.allocated,
            "synchronize": lambda device=None: self.waits.update(["synchronize"]),
            "manual_seed": self.seeded,
            "manual_seed_all": self.seeded,
            "get_rng_state": lambda device="cuda": self.random.clone(),
            "set_rng_state": lambda state, device="cuda": setattr(self, "random", state.clone()),
        }

    @contextlib.contextmanager
    def installed(self, monkeypatch: Any) -> Iterator[Machine]:
        """While this lasts the machine has this card, and `torch.cuda` says so."""
        with monkeypatch.context() as patch:
            for name, answer in self.answers().items():
                patch.setattr(torch.cuda, name, answer)
            patch.setattr(torch.version, "cuda", torch.version.cuda or "0.0")
            before = torch.__future__.get_overwrite_module_params_on_conversion()
            torch.__future__.set_overwrite_module_params_on_conversion(True)  # a CardTensor cannot move into another tensor
            try:
                with _Asked(self), _Done(self):
                    yield self
            finally:
                torch.__future__.set_overwrite_module_params_on_conversion(before)

    @contextlib.contextmanager
    def watched(self) -> Iterator[SimpleNamespace]:
        """Give the counts of what is done while this lasts."""
        before = [Counter(counts) for counts in (self.operations, self.waits, self.sent)]
        found = SimpleNamespace(operations=Counter(), waits=Counter(), sent=Counter())
        try:
            yield found
        finally:
            now = (self.operations, self.waits, self.sent)
            found.operations, found.waits, found.sent = (new - old for new, old in zip(now, before, strict=True))


class _Done(TorchDispatchMode):
    """Sends every operation of the dispatcher to the machine."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing it takes seconds, and nothing is compiled here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.machine.run(func, args, kwargs or {})


class _Asked(TorchFunctionMode):
    """Turns what Python asks of "cuda" into what `_Done` understands, and answers what no dispatcher sees."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.machine.autocast = torch.is_autocast_enabled("cuda")
        name = getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is torch.device or name == "_parse_to":
            return func(*args, **kwargs)
        if isinstance(own, CardTensor):
            if name in ("numpy", "__array__"):
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
                )
            if name == "tolist":
                self.machine.waits["tolist"] += 1
                return own.held.detach().tolist()
            if name == "untyped_storage":
                return own.held.untyped_storage()
            if name == "data_ptr":
                return own.held.data_ptr()
            if name in ("share_memory_", "storage", "__dlpack__", "set_"):
                raise NotImplementedError(f"{name} of a tensor of the simulated card")
        if name in ("__getitem__", "__setitem__") and isinstance(
            own, CardTensor
        ):  # C++ would make an empty meta tensor of a list
            args = (own, _places(args[1]), *args[2:])
        if name == "new_tensor" and isinstance(own, CardTensor):
            return torch.tensor(*args[1:], **{"dtype": own.dtype} | kwargs, device="cpu").to(META)
        if name in ("tensor", "as_tensor", "asarray", "from_numpy", "frombuffer") and types == ():
            return self._made(func, args, kwargs)
        if name == "cuda" and own is not None:
            return own if isinstance(own, CardTensor) else own.to(META)
        if name == "to" and own is not None:
            asked = [a for a in (*args[1:2], kwargs.get("device"), kwargs.get("other")) if a is not None]
            asked = [a.device if isinstance(a, torch.Tensor) else a for a in asked]
            if any(isinstance(a, (str, torch.device)) and torch.device(a).type == "meta" for a in asked):
                if isinstance(own, CardTensor):
                    return self._genuine(torch.empty_like, (own.held,), {"device": META})
                return self._genuine(func, args, kwargs)
            if len(args) > 1 and isinstance(args[1], CardTensor):
                args = (args[0], META, args[1].dtype, *args[2:])
        if self.machine.autocast and name in CONVOLUTIONS:  # their composite forms compare the types of their arguments
            args = tuple(a.to(torch.get_autocast_dtype("cuda")) if isinstance(a, CardTensor) else a for a in args)
        if name == "pin_memory" and own is not None:
            return own
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "meta":
            return self._genuine(func, args, kwargs)
        if device is not None:
            kwargs = kwargs | {"device": _behind(device)}
        return func(*(map(_behind, args) if name == "to" else args), **kwargs)

    def _genuine(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.machine.genuine_meta += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.machine.genuine_meta -= 1

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Make a tensor from numbers on the CPU, then send it where it was asked for."""
        device = kwargs.get("device")
        if args and isinstance(args[0], CardTensor):
            made = args[0] if func is torch.as_tensor else args[0].detach().clone()
            return made.to(**{key: kwargs[key] for key in ("device", "dtype") if kwargs.get(key) is not None}) if kwargs else made
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"device": "cpu"}).to(META)


def _computed(func: Any, name: str, args: Any, kwargs: dict[str, Any], autocast: bool) -> Any:
    """Compute on the CPU, in the precision that autocast("cuda") gives this operation.

    Torch's autocast looks at the device in C++, so it does nothing for these tensors. It casts above autograd, this below it:
    the backward pass meets both precisions and takes the one of the forward pass; the engine casts gradients to their leaf's.
    """
    backward = torch._C._current_graph_task_id() != -1
    found: list[torch.Tensor] = []
    _sort((args, kwargs), [], found)
    kinds = {t.dtype for t in found if t.dtype.is_floating_point}
    low = autocast and not backward
    if name in LOWER and torch.float64 not in kinds and (low or (backward and len(kinds) > 1)):
        kind = torch.get_autocast_dtype("cuda") if low else torch.bfloat16
    elif name in UPPER and torch.bfloat16 in kinds and (low or (backward and len(kinds) > 1)):
        kind = torch.float32
    else:
        return func(*args, **kwargs)
    args, kwargs = _changed((args, kwargs), lambda t: t.to(kind) if t.dtype.is_floating_point else t)
    if name.endswith("softmax_backward_data"):
        args = (*args[:-1], kind)
    return func(*args, **kwargs)


def _behind(value: Any) -> Any:
    """Return the meta device for one of the card, anything else as it is."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] == "cuda"):
        place = torch.device(value)
        if place.type == "cuda":
            if place.index:
                raise RuntimeError("CUDA error: invalid device ordinal")
            return META
    return value


def _places(index: Any) -> Any:
    """Return an index whose lists and arrays are tensors of the CPU."""
    if isinstance(index, tuple):
        return tuple(map(_places, index))
    return torch.as_tensor(index) if isinstance(index, (list, np.ndarray)) and len(index) else index


def _is_card(device: Any, genuine_meta: int) -> bool:
    kind = torch.device(device).type
    return kind == "cuda" or (kind == "meta" and not genuine_meta)


def _held(value: Any) -> Any:
    return _changed(value, lambda t: t.held if isinstance(t, CardTensor) else t)


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(part, change) for part in value)
    return {key: _changed(part, change) for key, part in value.items()} if isinstance(value, dict) else value


def _sort(value: Any, cards: list[CardTensor], others: list[torch.Tensor]) -> None:
    if isinstance(value, CardTensor):
        cards.append(value)
    elif isinstance(value, torch.Tensor):
        others.append(value)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _sort(part, cards, others)
    elif isinstance(value, dict):
        for part in value.values():
            _sort(part, cards, others)


def _switches(autocast: bool) -> dict[str, Any]:
    """Return torch's switches at a product: what decides its precision and whether it is deterministic."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "autocast": autocast,
    }
