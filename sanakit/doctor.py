"""What `sanakit doctor` reads. Versions come from package metadata; only the lines of the device import torch."""

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from sanakit.files import cache_path
from sanakit.inventory import State, scan
from sanakit.placement import choose, device_name, find_device, runs_triton
from sanakit.registry import BUILTIN, Registry, uninstall
from sanakit.tracebacks import UNKNOWN, guarded

REASONS = {  # why a floor of pyproject.toml is where it is
    "torch": "weights_only loading can run code below 2.10 (CVE-2026-24747)",
    "transformers": "remote code can run below 5.3 (CVE-2026-4372, CVE-2026-5241)",
    "diffusers": "older Sana pipelines differ",
}
MEMORY_NEEDED, DISK_NEEDED = 4, 2  # GB that the embedded world uses
HUB_SECONDS = 2.0
Row = dict[str, str]


def examine(registries: dict[str, Registry[Any]]) -> list[Row]:
    """Rows of {check, status: ok|warn|fail, detail, fix}."""
    rows = _packages()
    cache = cache_path()
    shown = str(cache).encode("utf-8", "backslashreplace").decode("utf-8")
    existing = next(p for p in (cache, *cache.parents) if _exists(p))
    free = shutil.disk_usage(existing).free / 1e9
    rows.append(
        _row(
            "disk",
            free > DISK_NEEDED,
            f"{free:.0f} GB free for {shown}",
            f"free {DISK_NEEDED} GB, or set SANAKIT_CACHE",
            "warn",
        )
    )
    rows.append(
        _row(
            "cache folder",
            shown == str(cache) and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
            shown,
            "set SANAKIT_CACHE to a folder you can write"
            + ("" if shown == str(cache) else ", of a name in UTF-8: safetensors files cannot be opened in this one"),
        )
    )
    rows.append(_cache_health(cache))
    memory = _memory_gigabytes()
    rows.append(
        _row(
            "memory",
            memory is None or memory > MEMORY_NEEDED,
            f"{memory:.0f} GB" if memory else "unknown",
            f"close other programs; {MEMORY_NEEDED} GB serve the embedded world",
            "warn",
        )
    )
    rows += [_system(), _device(), _kernels(), _hub()]
    return rows + _plugins(registries)


def _packages() -> list[Row]:
    """Python and every package that pyproject.toml asks for, by the versions that it states."""
    try:
        stated = importlib.metadata.metadata("sanakit")
    except importlib.metadata.PackageNotFoundError:
        return [_row("sanakit", False, "not installed as a package: versions cannot be checked", "pip install -e .")]
    python, pythons = sys.version.split()[0], SpecifierSet(stated["Requires-Python"] or "")
    rows = [_row("python", _meets(python, pythons), python, f"install Python {pythons}")]
    for requirement in map(Requirement, stated.get_all("Requires-Dist") or []):
        name, version = requirement.name, _version(requirement.name)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            fix = f"pip install '{name}{requirement.specifier}'" + (f"; {REASONS[name]}" if name in REASONS else "")
            good = version is not None and _meets(version, requirement.specifier)
            rows.append(_row(name, good, version or "missing", fix))
        elif requirement.marker.evaluate({"extra": "demo"}):
            detail = version or "missing (embedded world only)"
            rows.append(_row(name, version is not None, detail, "pip install 'sanakit[demo]'", "warn"))
    return rows


def _meets(version: str, wanted: SpecifierSet) -> bool:
    try:
        return wanted.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _plugins(registries: dict[str, Registry[Any]]) -> list[Row]:
    """Every plugin is imported. A broken one is a warning, as everything but the plugin works."""
    broken, count = [], 0
    for registry in registries.values():
        for entry in registry.entries().values():
            if entry.origin == BUILTIN and not entry.error:
                continue
            count += 1
            detail = entry.error
            if detail is None:
                _, error = guarded(lambda registry=registry, entry=entry: registry.get(entry.name))  # type: ignore[misc]
                detail = None if error is None else registry.blame(entry.name, error)[1]
            if detail is not None:
                told = detail if entry.origin in (BUILTIN, UNKNOWN) else f"{entry.origin}: {detail}"
                broken.append(_row(f"plugin {entry.name}", False, told, uninstall(entry), "warn"))
    return broken or [_row("plugins", True, f"{count} plugins, no errors", "")]


def _row(check: str, good: bool, detail: str, fix: str, otherwise: str = "fail") -> Row:
    return {"check": check, "status": "ok" if good else otherwise, "detail": detail, "fix": "" if good else fix}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it cannot be searched
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _system() -> Row:
    """Linux is what sanakit is developed and tested on. Others are not refused, and a user is told."""
    name = {"Darwin": "macOS"}.get(platform.system(), platform.system() or "unknown")
    tried = name == "Linux"
    detail = f"{name} {platform.release()}" + ("" if tried else ": sanakit has been tried on Linux alone")
    return _row("system", tried, detail, "run sanakit's own tests before you rely on it here, or use Linux", "warn")


def _memory_gigabytes() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return None


def _cache_health(cache: Path) -> Row:
    """Every entry's manifest and the sizes of its shards; `sanakit cache verify` hashes them too. What is no entry of
    latents or embeddings (converted checkpoints, packaged encoders, your own folders) is none of its business."""
    items = scan(cache)
    damaged = [item for item in items if item.state == State.DAMAGED]
    unfinished = sum(item.state == State.UNFINISHED for item in items)
    detail = f"{len(items) - unfinished} entries, {sum(item.nbytes for item in items) / 1e6:,.0f} MB"
    detail += f", {unfinished} unfinished" if unfinished else ""
    if damaged:
        detail += f", {len(damaged)} damaged; first: {damaged[0].detail}"
    fix = "sanakit cache prune --damaged" if damaged else "sanakit cache prune"
    return _row("cache health", not damaged and not unfinished, detail, fix, "fail" if damaged else "warn")


def _hub() -> Row:
    """Is the model hub allowed and reachable? One connection, two seconds at most; nothing is fetched."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return _row("hub", True, "offline by HF_HUB_OFFLINE; `path:` and the embedded world work", "")
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
        socket.create_connection((endpoint.hostname or "", port), timeout=HUB_SECONDS).close()
    except (OSError, ValueError) as error:
        fix = "only `hub:` names need it; set HTTPS_PROXY or HF_ENDPOINT, or use `path:DIR`"
        return _row("hub", False, f"{endpoint.hostname} cannot be reached: {error}", fix, "warn")
    return _row("hub", True, f"{endpoint.hostname} can be reached", "")


def _kernels() -> Row:
    """What `train.kernels: triton` would find; off by default, so nothing here is a fault."""
    version = _version("triton")
    if version is None:
        return _row("kernels", True, "off; train.kernels=triton needs the package triton", "")
    usable = False
    with suppress(ImportError, OSError):
        usable = runs_triton(find_device("auto"))
    where = "on this GPU" if usable else "not here: no CUDA or ROCm device"
    return _row("kernels", True, f"off by default; train.kernels=triton (triton {version}) runs {where}", "")


def _device() -> Row:
    """Which device is used for what by `--device auto`, and its free memory."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a shared library of torch does not load
        return _row("device", False, f"torch cannot be imported: {error}", "pip install --force-reinstall torch")
    placement = choose()
    device, memory_now = placement.device, placement.memory()
    if not placement.accelerated:
        return _row("device", True, "cpu for everything, in fp32: PyTorch finds no accelerator", "")
    free, total = memory_now or (1, 1)
    memory = "free memory unknown" if memory_now is None else f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    uses = f"training in {placement.train_precision('auto')}, text encoder in {placement.text_encoder}"
    uses += f", base in {placement.base}, VAE in {placement.vae}; the CPU for data, caches and statistics"
    detail = f"{device} ({device_name(device)}), {memory}: {uses}"
    return _row("device", free > 0.1 * total, detail, "end what else uses the device", "warn")
