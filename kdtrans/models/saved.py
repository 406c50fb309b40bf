"""Files of torch.save, which are pickles: whoever loads one without care runs what is in it."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def load_plain(path: Path) -> Any:
    """Read a file that holds tensors and plain values only; nothing in it is run.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: saying in a line why the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except UnpicklingError:  # torch's words advise to load the file all the same
        raise ValueError("it is damaged, or holds more than tensors and plain values, which might run code") from None
    except Exception as error:  # what is not a whole archive raises half a dozen types
        raise ValueError(str(error).strip().split("\n")[0] or type(error).__name__) from None
