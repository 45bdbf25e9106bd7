"""Components from the model hub: safetensors and JSON only, never code, a revision where one is named."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sanakit.errors import SanakitError

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
CONFIGS = ["model_index.json", "config.json", "*/config.json"]


def download(reference: str, check: Callable[[Path], None] | None = None) -> Path:
    """`owner/repo[@revision][:subfolder]` to a local folder. check: what a whole repository must pass by its config
    files, before its weights are fetched. Raises SK0902 when it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, subfolder = reference.partition(":")
    repository, _, revision = name.partition("@")
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + pattern for pattern in PATTERNS]
    parent, _, last = subfolder.rpartition("/")
    if last.startswith("text_encoder"):  # of a pipeline: its tokenizer lies beside it
        beside, tokenizer = f"{parent}/" if parent else "", last.replace("text_encoder", "tokenizer")
        wanted += [f"{beside}model_index.json", *(f"{beside}{tokenizer}/{pattern}" for pattern in PATTERNS)]
    try:
        if check is not None and not subfolder:
            check(Path(snapshot_download(repository, revision=revision or None, allow_patterns=CONFIGS)))
        root = snapshot_download(repository, revision=revision or None, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SanakitError("SK0902", f"hub:{reference}: {str(error).splitlines()[0]}") from error
    folder = Path(root) / subfolder
    if not folder.is_dir():
        raise SanakitError("SK0902", f"hub:{repository} has no folder {subfolder!r}")
    return folder


def cached_or_download(reference: str, seconds: float = 5.0) -> Path:
    """As `download`, but what the hub's cache holds is taken from there, and where the hub cannot be reached within
    `seconds` nothing is tried. Raises SK0902."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, _ = reference.partition(":")
    repository, _, revision = name.partition("@")
    try:
        cached = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        if next(cached.rglob("*.safetensors"), None):
            return download(reference) if ":" in reference else cached
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError):
        pass  # it is not in the cache
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT, seconds):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise SanakitError(
            "SK0902",
            f"hub:{reference} is not in the hub's cache, and {why}",
            fix=f"Where there is a network, `hf download {repository}`; copy the folder here and name it as path:DIR.",
        )
    return download(reference)


def reachable(address: str, seconds: float) -> bool:
    """Whether a host takes a connection; taken for granted behind a proxy, which answers for others."""
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(address)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=seconds):
            return True
    except OSError:
        return False


def download_configs(reference: str) -> Path:
    """The folder of `owner/repo[@revision][:subfolder]` with its files of configuration and nothing else. Raises
    SK0902."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, subfolder = reference.partition(":")
    repository, _, revision = name.partition("@")
    wanted = [*CONFIGS, "scheduler/*.json", "adapters.json", "*/adapters.json"]
    try:
        root = snapshot_download(repository, revision=revision or None, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SanakitError("SK0902", f"hub:{reference}: {str(error).splitlines()[0]}") from error
    return Path(root) / subfolder


def fetch(hub: str | None, revision: str | None) -> Path:
    """The folder of a record's `owner/repo[:subfolder]` at its pinned revision. Raises SK0902."""
    repository, colon, subfolder = str(hub).partition(":")
    return download(f"{repository}{f'@{revision}' if revision else ''}{colon}{subfolder}")


def push(folder: Path, repository: str) -> str:
    """Upload a folder to a model repository, private where it is new; its address. Raises SK0902 when it cannot be
    done."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # the first base of HfHubHTTPError is the HTTP client's own error, httpx or requests by the version
    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    errors: tuple[type[Exception], ...] = (*bases, OSError, ValueError)
    try:
        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="sanakit export")
    except errors as error:
        raise SanakitError(
            "SK0902",
            f"cannot push to {repository}: {(str(error) or type(error).__name__).splitlines()[0]}",
            cause="There is no network, you are not logged in, or the repository's name is not yours.",
            fix=f"{folder} is written: with a network and `hf auth login`, hf upload {repository} {folder}",
        ) from error
    return str(address)
