"""A copy of a set of small images after a further round of JPEG: what such a round costs a net.

    python bench/jpeg_again.py SOURCE OUT [--quality 75] [--shift 4]

Every image is mirrored outwards by `--shift` pixels, so that the blocks lie elsewhere than before, written
as JPEG with halved colour resolution, read, cut out again and kept as PNG in OUT/SPLIT/CLASS. Train on SOURCE
and on OUT with one recipe and seed; `striate evaluate` gives both scores. One JSON line: images, and the
peak signal-to-noise ratio (dB) of the copies against the images as they were.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from striate.data.formats import open_data


def again(image: np.ndarray, quality: int, shift: int) -> np.ndarray:
    """The image (H, W, 3) uint8 after a round of JPEG on a grid that begins `shift` pixels outside of it."""
    height, width = image.shape[:2]
    wider = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="symmetric")
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(wider), quality, colorsubsampling="420")
    return simplejpeg.decode_jpeg(data)[shift : shift + height, shift : shift + width]


def main() -> None:
    """Write the copies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--quality", type=int, default=75)
    parser.add_argument("--shift", type=int, default=4)
    args = parser.parse_args()
    data = open_data(args.source, val=0.0)
    squares, values, count = 0.0, 0, 0
    for name, split in data.splits.items():
        for number in range(len(split)):
            image = split.image(number)
            copy = again(image, args.quality, args.shift)
            squares += float(((copy.astype(np.float64) - image) ** 2).sum())
            values, count = values + image.size, count + 1
            folder = args.out / name / data.classes[int(split.targets[number])]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(copy).save(folder / f"{number:06d}.png")
    print(json.dumps({"images": count, "decibels": round(10 * math.log10(255**2 * values / squares), 2)}))


if __name__ == "__main__":
    sys.exit(main())
