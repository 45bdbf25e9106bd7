"""Where a command computes: one device, the precision of its frozen parts, and what is held on the device when.

The only module that names devices. `choose` makes one Placement from `--device`; it is handed down from there. The
rule: what is public or cached lives on the CPU; a device exists inside a component or inside the loop. torch is
imported when it is needed.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sanakit.errors import SanakitError, did_you_mean
from sanakit.held import Held

if TYPE_CHECKING:
    import torch

KNOWN = ("auto", "cpu", "cuda", "mps", "xpu")
HELP = "Where to compute: auto, cpu, cuda[:n], mps or xpu; auto takes the accelerator that PyTorch finds, else the CPU."
FUSED = ("cpu", "cuda", "xpu")  # whose attention keeps no matrix of queries x keys
PARTS = ("vae", "text_encoder", "base")
_MOVING = threading.RLock()  # threads that draw batches hold encoders too
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Placement:
    """device: where components and the loop compute. vae, text_encoder, base: precision of the frozen parts there, a
    key of DTYPES."""

    device: "torch.device"
    vae: str = "fp32"
    text_encoder: str = "fp32"
    base: str = "fp32"
    _held: dict[int, Held] = field(default_factory=dict, compare=False, repr=False)

    @property
    def accelerated(self) -> bool:
        return self.device.type != "cpu"

    def dtype_of(self, part: str) -> "torch.dtype | None":
        """The dtype that a frozen part computes in, None where it stays as it was loaded: fp32, and what is no part."""
        import torch

        name = getattr(self, part) if part in PARTS else "fp32"
        return None if name == "fp32" else getattr(torch, DTYPES[name])

    def compute_facts(self, part: str) -> dict[str, str]:
        """What the key of a cache says of the precision: empty for fp32."""
        return {} if getattr(self, part) == "fp32" else {"compute": DTYPES[getattr(self, part)]}

    @contextmanager
    def holding(self, *modules: "torch.nn.Module | None", part: str = "") -> Iterator[None]:
        """The modules on the device, in the precision of their part (`module.part`, or `part`), and back where they
        were afterwards.

        What was only read costs no copy back: the host keeps its tensors meanwhile. What was written in place is copied
        back. Calls nest. A module that a training state keeps on the device stays as it is. Not for an optimiser's
        steps: a fused one writes without a trace.
        """
        with ExitStack() as leaving:
            for module in (module for module in modules if module is not None):
                self._enter(module, part or getattr(module, "part", ""))
                leaving.callback(self._leave, module)
            yield

    def _enter(self, module: "torch.nn.Module", part: str) -> None:
        with _MOVING:
            known = self._held.get(id(module))
            if known is None:
                known = self._held[id(module)] = Held(module)
                dtype = self.dtype_of(part)
                if self.accelerated or dtype is not None:
                    try:
                        known.move(self.device, dtype)
                    except BaseException:
                        self._leave(module)
                        raise
            known.count += 1

    def _leave(self, module: "torch.nn.Module") -> None:
        with _MOVING:
            known = self._held[id(module)]
            known.count -= 1
            if known.count <= 0:
                del self._held[id(module)]
                known.restore()

    def put(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """A host tensor on the device, through pinned memory where that lets the host go on."""
        pinned = self.device.type == "cuda" and tensor.device.type == "cpu"
        return tensor.pin_memory().to(self.device, non_blocking=True) if pinned else tensor.to(self.device)

    def take(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """A device tensor in the host's memory, pinned where the device reads that faster."""
        import torch

        pinned = self.device.type == "cuda" and tensor.device.type != "cpu"
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor) if pinned else tensor.cpu()

    def memory(self) -> tuple[int, int] | None:
        """Free and total bytes of the device; None on the CPU and where the device does not say."""
        return device_memory(self.device)

    def peak_of(self, work: Callable[[], object]) -> int:
        """Bytes that a piece of work allocates on the device over what is there; 0 where the device does not count."""
        import torch

        module: Any = torch.get_device_module(self.device) if self.accelerated else None
        if not hasattr(module, "reset_peak_memory_stats"):
            work()
            return 0
        module.reset_peak_memory_stats(self.device)
        before = module.memory_allocated(self.device)
        work()
        return max(0, module.max_memory_allocated(self.device) - before)

    def train_precision(self, wanted: str) -> str:
        """`train.precision` with `auto` resolved: bf16 on an accelerator that has it, else fp32. Raises SK0104 for
        fp16 on the CPU."""
        if wanted == "auto":
            return "bf16" if self.accelerated and runs_bf16(self.device) else "fp32"
        if wanted == "fp16" and not self.accelerated:
            raise SanakitError(
                "SK0104", "train.precision fp16 needs a GPU, the device is the CPU", fix="Use bf16 or fp32."
            )
        return wanted

    def as_dict(self) -> dict[str, Any]:
        """For provenance.json: the device, its name and memory, and the precision of the frozen parts."""
        memory, precisions = self.memory(), {part: getattr(self, part) for part in PARTS}
        facts = {"device": str(self.device), "name": device_name(self.device), "memory": memory and memory[1]}
        return facts | precisions


def choose(
    device: str = "auto", *, vae: str = "auto", text_encoder: str = "auto", base: str = "auto", rank: int | None = None
) -> Placement:
    """The placement that `--device` and `vae.dtype`, `text_encoder.dtype`, `base.dtype` ask for.

    auto: on an accelerator bf16 for text encoder and base where it has bf16; fp32 for the VAE and on the CPU. rank: of
    several processes on this machine, by default LOCAL_RANK. Raises SK0104 for a device that is not known, SK0905 for
    one that is not here.
    """
    chosen = find_device(device, int(os.environ.get("LOCAL_RANK", "0")) if rank is None else rank)
    half = "bf16" if chosen.type != "cpu" and runs_bf16(chosen) else "fp32"

    def resolved(wanted: str, automatic: str) -> str:
        return automatic if wanted == "auto" else wanted

    return Placement(
        chosen, vae=resolved(vae, "fp32"), text_encoder=resolved(text_encoder, half), base=resolved(base, half)
    )


def host() -> Placement:
    """The CPU, everything in fp32."""
    import torch

    return Placement(torch.device("cpu"))


def find_device(name: str, rank: int = 0) -> "torch.device":
    """The device of a name, made the current one of its kind. Raises SK0104 or SK0905."""
    import torch

    kind, _, number = name.partition(":")
    present = accelerator_kind()
    known = [*KNOWN, *([present] if present and present not in KNOWN else [])]
    if kind not in known or (number and (not number.isdecimal() or kind in ("auto", "cpu", "mps"))):
        raise SanakitError(
            "SK0104", f"--device {name!r} is no device{did_you_mean(kind, known)}; known: {', '.join(known)}"
        )
    if kind == "auto":
        kind = present or "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if kind != present:
        raise SanakitError(
            "SK0905", f"--device {name}: PyTorch {torch.__version__} finds {present or 'no accelerator'}"
        )
    count = torch.accelerator.device_count()
    index = int(number) if number else rank % max(1, count)
    if index >= count:
        raise SanakitError("SK0905", f"--device {name}: PyTorch finds {count} of {kind}, numbered from 0")
    if count > 1:
        torch.accelerator.set_device_index(index)
    return torch.device(kind, index)


def accelerator_kind() -> str:
    """The kind of accelerator that PyTorch finds on this machine; empty for none."""
    import torch

    if not torch.accelerator.is_available():
        return ""
    accelerator = torch.accelerator.current_accelerator()
    return "" if accelerator is None else accelerator.type


def runs_bf16(device: "torch.device") -> bool:
    """Whether the device computes in bf16 itself."""
    import torch

    asked = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if asked is not None:
        try:
            return bool(asked(including_emulation=False))
        except TypeError:
            return bool(asked())
    try:
        probe = torch.ones(2, 2, device=device, dtype=torch.bfloat16)
        return bool((probe @ probe).isfinite().all())
    except (RuntimeError, TypeError):
        return False


def device_memory(device: "torch.device") -> tuple[int, int] | None:
    """Free and total bytes of a device; None for the CPU and where the device does not say."""
    import torch

    if device.type == "cpu":
        return None
    module: Any = torch.get_device_module(device)
    if hasattr(module, "empty_cache"):
        module.empty_cache()  # what PyTorch keeps aside counts as free
    if hasattr(module, "mem_get_info"):
        free, total = module.mem_get_info(device)
        return int(free), int(total)
    if hasattr(module, "recommended_max_memory"):
        total = int(module.recommended_max_memory())
        return total - int(module.current_allocated_memory()), total
    return None


def device_name(device: "torch.device") -> str:
    """What the device calls itself; its kind where it does not say."""
    import torch

    if device.type == "cpu":
        return "CPU"
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(named(device)) if named else device.type


def precise_dtype(device: "torch.device") -> "torch.dtype":
    """What sums are accumulated in: float64 where the device has it."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def runs_triton(device: "torch.device") -> bool:
    """Whether Triton compiles for the device: CUDA and ROCm, which PyTorch both calls cuda."""
    return device.type == "cuda"


def is_rocm() -> bool:
    """Whether this PyTorch is built for ROCm, whose devices carry the names of CUDA's."""
    import torch

    return bool(torch.version.hip)
