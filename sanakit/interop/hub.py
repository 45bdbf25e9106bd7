"""Components from the model hub: safetensors and JSON only, never code, a revision where one is named."""

from pathlib import Path

from sanakit.errors import SanakitError

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")


def download(reference: str) -> Path:
    """`owner/repo[@revision][:subfolder]` to a local folder. Raises SK0902 when it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, subfolder = reference.partition(":")
    repository, _, revision = name.partition("@")
    prefix = f"{subfolder}/" if subfolder else ""
    try:
        root = snapshot_download(
            repository, revision=revision or None, allow_patterns=[prefix + pattern for pattern in PATTERNS]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SanakitError("SK0902", f"hub:{reference}: {str(error).splitlines()[0]}") from error
    folder = Path(root) / subfolder
    if not folder.is_dir():
        raise SanakitError("SK0902", f"hub:{repository} has no folder {subfolder!r}")
    return folder
