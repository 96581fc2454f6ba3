"""What a picture must stand while it is optimised: small random shifts, turns and changes of size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.core.errors import StriateError, unknown

PARTS = {"jitter": 1, "rotate": 1, "scale": 2}


@dataclass(frozen=True)
class Robustness:
    """Random shifts of up to `jitter` pixels, turns of up to `rotate` degrees, scales between two factors.

    Written `jitter(8)+rotate(5)+scale(0.9, 1.1)`, or `none`. One draw a step, from (seed, step): the same
    whether a run went through or was continued. What comes in from outside is the picture mirrored.
    """

    jitter: int = 0
    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def parse(cls, text: str) -> Robustness:
        """Read the written form.

        Raises:
            StriateError: an unknown part, or a number that is not allowed.
        """
        found: dict[str, list[float]] = {}
        if text.strip() in ("", "none"):
            return cls()
        for part in re.split(r"\+(?![^(]*\))", text):
            match = re.fullmatch(r"\s*([\w-]+)\s*\(([^()]*)\)\s*", part)
            if match is None or match[1] not in PARTS:
                raise unknown("robustness", part.split("(")[0].strip(), PARTS, "such as jitter(8)+rotate(5)")
            try:
                numbers = [float(word) for word in match[2].split(",")]
            except ValueError:
                numbers = []
            if len(numbers) != PARTS[match[1]] or not all(map(math.isfinite, numbers)) or min(numbers) < 0:
                raise StriateError(f"{part.strip()} cannot be read", allowed=f"{PARTS[match[1]]} number(s)")
            found[match[1]] = numbers
        low, high = found.get("scale", [1.0, 1.0])
        if not 0.1 <= low <= high <= 10:
            raise StriateError(
                f"scale({low:g}, {high:g})", allowed="two factors, 0.1 to 10, the smaller first"
            )
        return cls(int(found.get("jitter", [0])[0]), found.get("rotate", [0.0])[0], (low, high))

    def __str__(self) -> str:
        parts = [f"jitter({self.jitter})"] if self.jitter else []
        parts += [f"rotate({self.rotate:g})"] if self.rotate else []
        parts += [f"scale({self.scale[0]:g}, {self.scale[1]:g})"] if self.scale != (1.0, 1.0) else []
        return "+".join(parts) or "none"

    def matrix(self, size: tuple[int, int], seed: int, step: int) -> Tensor | tuple[int, int] | None:
        """This step's draw: a shift in whole pixels (dy, dx), an affine map (2, 3) for a grid, or None."""
        draws = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        unit = torch.rand(4, generator=draws, dtype=torch.float64).tolist()
        height, width = size
        dy, dx = (
            round((2 * u - 1) * min(self.jitter, side // 2)) for u, side in zip(unit, size, strict=False)
        )
        if not self.rotate and self.scale == (1.0, 1.0):
            return (dy, dx) if dy or dx else None
        angle = math.radians((2 * unit[2] - 1) * self.rotate)
        factor = self.scale[0] * (self.scale[1] / self.scale[0]) ** unit[3]
        c, s = math.cos(angle) / factor, math.sin(angle) / factor
        ratio = height / width
        rows = [[c, -s * ratio, 2 * dx / width], [s / ratio, c, 2 * dy / height]]
        return torch.tensor(rows, dtype=torch.float32)

    def apply(self, pictures: Tensor, seed: int, step: int) -> Tensor:
        """The pictures (N, C, h, w) as this step shows them, with gradients."""
        drawn = self.matrix((pictures.shape[2], pictures.shape[3]), seed, step)
        if drawn is None:
            return pictures
        if isinstance(drawn, tuple):
            return torch.roll(pictures, drawn, (2, 3))
        grid = F.affine_grid(
            drawn.to(pictures)[None].expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False
        )
        return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
