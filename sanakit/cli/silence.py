"""Keep warnings, log lines and progress bars of other libraries off the terminal; `--verbose` lets them through."""

import logging
import os
import sys
import warnings
from typing import Any

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


OWN = r".*SK\d{4}"  # sanakit's own warnings carry a code


def silence_libraries() -> None:
    """Before any library is imported: several of them read these variables then. What the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions and "PYTHONWARNINGS" not in os.environ:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=OWN)
        warnings.showwarning = _show
    root = logging.getLogger()
    if not root.handlers:  # else Python prints warnings of loggers without a handler
        root.addHandler(logging.NullHandler())


def _show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning of sanakit as one line on standard error, without the line of code that raised it."""
    print(f"warning: {message}", file=sys.stderr)
