"""A second device, `fakegpu`, on the host's own memory: tests of device placement on a machine without an accelerator.

    fake_accelerator.install()                       # once a process; compiles 300 KB of C++ at first (about 10 s of
    CPU) with fake_accelerator.present(), fake_accelerator.Trace() as trace:
        core.to("fakegpu")(x.to("fakegpu"))
    trace.syncs, trace.to_host_bytes, trace.places   # waits of the host, copies, and the lines that caused them

Operators run the CPU's kernels on the same memory: same numbers as on the CPU, bit for bit (but attention: PyTorch's
unfused one), at nearly its speed. Refused as on CUDA: tensors of two devices in one operator (scalars excepted),
`.numpy()`, a CPU generator for a device tensor. README.md lists the limits.
"""

import collections
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

NAME = "fakegpu"
SOURCE = Path(__file__).with_name("device.cpp")
COUNTERS = (
    "syncs",
    "to_device",
    "to_device_bytes",
    "to_host",
    "to_host_bytes",
    "within_bytes",
    "operators",
    "allocated",
    "peak",
)
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)
_library: ctypes.CDLL | None = None
_limit = 0
_present = False


def why_not() -> str:
    """Why the device cannot be built here; empty where it can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"the fake accelerator needs a C++ compiler, {compiler} is not found"
    if not (Path(torch.__file__).parent / "include").is_dir():
        return "the fake accelerator needs the headers of the torch wheel"
    return ""


def build(folder: Path | None = None) -> Path:
    """The shared library, compiled unless the same source and PyTorch have been before. Raises CalledProcessError."""
    root = Path(torch.__file__).parent
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    stated = os.environ.get("FAKE_ACCELERATOR_CACHE")
    folder = folder or (Path(stated) if stated else Path(tempfile.gettempdir()) / f"fake_accelerator-{os.getuid()}")
    target = folder / f"fakegpu-{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{target.stem}.{os.getpid()}.so"
        command = [os.environ.get("CXX", "g++"), "-O1", "-std=c++20", "-fPIC", "-shared", "-w"]
        command += ["-DAT_PER_OPERATOR_HEADERS", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        command += [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include", str(SOURCE), "-o", str(partial)]
        command += [f"-L{root}/lib", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True)
        partial.rename(target)  # whole or absent, where several workers build
    return target


def install() -> None:
    """Make the device known to this process, as `fakegpu`. torch.accelerator finds it inside `present()` only."""
    global _library
    if _library is not None:
        return
    path = build()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _device_module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    _library.fake_start()


@contextmanager
def present(memory: int = 0) -> Iterator[None]:
    """The machine has the device, with so many bytes of memory (0: the host's); it has none again afterwards."""
    before = _present, _limit
    _set(True, memory)
    try:
        yield
    finally:
        _set(*before)


def _set(present: bool, memory: int) -> None:
    global _present, _limit
    assert _library is not None, "call install() first"
    _present, _limit = present, memory
    _library.fake_available(ctypes.c_bool(present))
    _library.fake_limit(ctypes.c_int64(memory))


def read() -> dict[str, int]:
    """Every counter since the start of the process; allocated and peak: bytes of device memory."""
    assert _library is not None, "call install() first"
    values = (ctypes.c_int64 * len(COUNTERS))()
    _library.fake_read(values)
    return dict(zip(COUNTERS, values, strict=True))


class Trace:
    """Counters of a stretch of code as attributes (syncs, to_host_bytes, ...).

    places: {(kind, operator, "file:line"): [times, bytes]} for waits and copies, at the innermost line below `root` (a
    substring of the path; by default anything but torch). peak: of device memory, within the stretch.
    """

    syncs: int
    to_device: int
    to_device_bytes: int
    to_host: int
    to_host_bytes: int
    within_bytes: int
    operators: int
    allocated: int
    peak: int

    def __init__(self, root: str = "") -> None:
        self.root = root
        self.places: dict[tuple[str, str, str], list[int]] = {}

    def __enter__(self) -> "Trace":
        assert _library is not None, "call install() first"
        _library.fake_reset_peak()
        self._before = read()
        self.places = collections.defaultdict(lambda: [0, 0])
        self._note = CALLBACK(self._count)
        _library.fake_callback(self._note)
        return self

    def _count(self, kind: bytes, operator: bytes, size: int) -> None:
        frame: types.FrameType | None = sys._getframe(1)
        place = "?"
        while frame is not None:
            name = frame.f_code.co_filename
            if self.root in name if self.root else "/torch/" not in name and name != __file__:
                place = f"{name}:{frame.f_lineno}"
                break
            frame = frame.f_back
        entry = self.places[kind.decode(), operator.decode(), place]
        entry[0] += 1
        entry[1] += size

    def __exit__(self, *error: object) -> None:
        assert _library is not None
        _library.fake_callback(CALLBACK())
        now = read()
        for name in COUNTERS:
            setattr(self, name, now[name] if name in ("allocated", "peak") else now[name] - self._before[name])
        self.places = dict(self.places)

    def of_kind(self, kind: str) -> dict[str, list[int]]:
        """Places of one kind (sync, to_device, to_host), with how often and how many bytes."""
        return {place: entry for (seen, _, place), entry in self.places.items() if seen == kind}

    def __str__(self) -> str:
        head = ", ".join(f"{name} {getattr(self, name):,}" for name in COUNTERS)
        rows = sorted(self.places.items(), key=lambda row: (row[0][0], -row[1][0]))
        lines = [
            f"  {kind:9} {operator:28} x{times:<5} {size:>12,} B  {place}"
            for (kind, operator, place), (times, size) in rows
        ]
        return "\n".join([head, *lines])


def _device_module() -> types.ModuleType:
    """`torch.fakegpu`: what PyTorch and accelerate ask of a device's module."""
    module = types.ModuleType(f"torch.{NAME}")

    def generator() -> torch.Generator:
        return torch._C._accelerator_getDefaultGenerator(0)

    def mem_get_info(device: object = None) -> tuple[int, int]:
        total = _limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total - read()["allocated"], total

    def reset_peak_memory_stats(device: object = None) -> None:
        assert _library is not None
        _library.fake_reset_peak()

    class DeviceGuard:
        """`with torch.fakegpu.device(0)`: there is one."""

        def __init__(self, device: object) -> None:
            self.device = device

        def __enter__(self) -> "DeviceGuard":
            return self

        def __exit__(self, *error: object) -> None:
            return None

    functions = {
        "is_available": lambda: _present,
        "is_initialized": lambda: True,
        "device_count": lambda: int(_present),
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_is_in_bad_fork": lambda: False,
        "manual_seed": lambda seed: generator().manual_seed(seed),
        "manual_seed_all": lambda seed: generator().manual_seed(seed),
        "get_rng_state": lambda device=NAME: generator().get_state(),
        "set_rng_state": lambda state, device=NAME: generator().set_state(state),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "is_bf16_supported": lambda: True,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: torch.accelerator.synchronize(),
        "mem_get_info": mem_get_info,
        "get_device_name": lambda device=None: "fake accelerator on the host's memory",
        "memory_allocated": lambda device=None: read()["allocated"],
        "max_memory_allocated": lambda device=None: read()["peak"],
        "reset_peak_memory_stats": reset_peak_memory_stats,
    }
    vars(module).update(functions)
    module.device, module._initialized, module.default_generators = DeviceGuard, True, ()  # type: ignore[attr-defined]
    return module
