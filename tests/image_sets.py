"""Small image sets written as folders and archives, for the tests of data."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from striate.core.errors import StriateError
from striate.data.formats import open_data
from striate.images import geometry


def png(seed: int, size: tuple[int, int] = (6, 5), grey: bool = False) -> bytes:
    shape = size if grey else (*size, 3)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def coded(image: np.ndarray, **options: object) -> bytes:
    """As JPEG by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: Mapping[str, bytes]) -> Path:
    kind = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, kind) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def classes_of(labels: tuple[str, ...] = ("cat", "dog"), count: int = 3, below: str = "") -> dict[str, bytes]:
    return {
        f"{below}{label}/{i}.png": png(100 * n + i) for n, label in enumerate(labels) for i in range(count)
    }


CONTAINERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "folder": lambda path, files: write(path / "set", files),
    "wrapped": lambda path, files: write(path / "set", {f"deep/er/{k}": v for k, v in files.items()}),
    "zip": lambda path, files: zipped(path / "set.zip", files),
    "stored zip": lambda path, files: zipped(path / "set.zip", files, zipfile.ZIP_STORED),
    "wrapped zip": lambda path, files: zipped(path / "set.zip", {f"set/{k}": v for k, v in files.items()}),
    "tar": lambda path, files: tarred(path / "set.tar", {f"./{k}": v for k, v in files.items()}),
    "tar.gz": lambda path, files: tarred(path / "set.tar.gz", files),
    "tar.xz": lambda path, files: tarred(path / "set.tar.xz", files),
}


def problem(root: Path, **options: object) -> str:
    with pytest.raises(StriateError) as caught:
        open_data(root, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int = 18, width: int = 24, seed: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(20, 236, (4, 5, 3), dtype=np.uint8)
    return geometry.resize(coarse, (height, width), "bicubic").reshape(height, width, 3)
