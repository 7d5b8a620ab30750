"""A digit classifier that ships with the package: `pyvm demo` compiles it, runs it and shows what the machine does.

`digits.npz` holds the data (see ATTRIBUTION.md), `weights.npz` what `train.py` learned from its training part, and
`model.py` builds the network from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np

N_HELD_OUT = 500  # the last images of the data set, which training never sees


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in float32 from 0 to 1, and their labels (n,) in int64."""

    images: np.ndarray
    labels: np.ndarray


def _read(name: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file of this package, also when the package is imported from an archive."""
    with resources.files(__name__).joinpath(name).open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def load_digits() -> tuple[Digits, Digits]:
    """The training part and the held-out part of the data."""
    arrays = _read("digits.npz")
    images = (arrays["images"].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = arrays["labels"].astype(np.int64)
    train, held_out = slice(None, -N_HELD_OUT), slice(-N_HELD_OUT, None)
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def load_weights() -> dict[str, np.ndarray]:
    """The trained parameters, float32: `conv1.w`, `conv1.b`, `conv2.w`, `conv2.b`, `fc.w`, `fc.b`."""
    return _read("weights.npz")


def ascii_picture(image: np.ndarray) -> str:
    """An image (8, 8) with values from 0 to 1 as eight lines of text."""
    shades = " .:-=+*#%@"
    levels = np.clip(np.asarray(image) * len(shades), 0, len(shades) - 1).astype(int)
    return "\n".join("".join(shades[level] * 2 for level in row).rstrip() for row in levels)
