"""How a picture is parametrised: pixels or Fourier coefficients, with or without decorrelated colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from striate.core.errors import unknown

FORMS = ("pixels", "fourier")
# A root of the covariance of the colours of natural photographs (a column an axis: lightness, blue to red,
# green to magenta), scaled to length 1 of the longest column; from 480 photographs of ImageNet's classes.
COLOURS = ((0.562, 0.203, 0.049), (0.583, 0.001, -0.098), (0.587, -0.195, 0.050))


class Form:
    """A batch of pictures (N, C, h, w) in 0 .. 1 as the function of a leaf tensor, `values`.

    kind "pixels": picture = bound(values); "fourier": picture = bound(irfft2(values / f)), where f is the
    frequency in cycles a picture to the power `decay`, so that a step changes all scales alike (Olah et al.
    2017, "Feature Visualization"). `colours`: the channels of the values are decorrelated colours. `bound`
    is the logistic function with `bounded`, and the identity otherwise.

    Raises:
        StriateError: an unknown kind.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        kind: str = "pixels",
        *,
        colours: bool = False,
        bounded: bool = False,
        decay: float = 1.0,
    ) -> None:
        if kind not in FORMS:
            raise unknown("image parametrisation", kind, FORMS)
        self.shape, self.kind, self.bounded = shape, kind, bounded
        self.colours = torch.tensor(COLOURS) if colours and shape[1] == 3 else None
        height, width = shape[2:]
        if kind == "fourier":
            rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
            frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
            # As large at the middle frequencies as pixels are: rates mean the same for both.
            self._scale = (1 / frequency).pow(decay) * math.sqrt(height * width) / max(height, width) / 2
        self.values = torch.zeros(self._inner_shape())

    def _inner_shape(self) -> tuple[int, ...]:
        if self.kind == "pixels":
            return self.shape
        return (*self.shape[:3], self.shape[3] // 2 + 1, 2)

    def noise(self, size: float, seed: int) -> Form:
        """Start from noise of this deviation of the values; returns the form."""
        draws = torch.Generator().manual_seed(seed)
        self.values = size * torch.randn(self._inner_shape(), generator=draws)
        return self

    def start(self, pictures: Tensor) -> Form:
        """Start from pictures (N, C, h, w) in 0 .. 1; returns the form.

        Bounded forms come as near as 1/256 to black and white.
        """
        x = pictures.detach().float().expand(self.shape)
        if self.bounded:
            x = x.clamp(1 / 256, 255 / 256).logit()
        if self.colours is not None:
            x = torch.einsum("nchw,kc->nkhw", x if self.bounded else x - 0.5, torch.linalg.inv(self.colours))
        if self.kind == "fourier":
            x = torch.view_as_real(torch.fft.rfft2(x, norm="ortho")) / self._scale[..., None].to(x)
        self.values = x.clone().contiguous()
        return self

    def draw(self, values: Tensor | None = None) -> Tensor:
        """The pictures (N, C, h, w), with gradients to `values`."""
        x = self.values if values is None else values
        if self.kind == "fourier":
            spectrum = torch.view_as_complex((x * self._scale[..., None].to(x)).contiguous())
            x = torch.fft.irfft2(spectrum, s=self.shape[2:], norm="ortho")
        if self.colours is not None:
            x = torch.einsum("nchw,kc->nkhw", x, self.colours.to(x))
            x = x if self.bounded else x + 0.5
        return x.sigmoid() if self.bounded else x

    def pull(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The gradient with respect to the values, from that with respect to the pictures."""
        if self.kind == "pixels" and self.colours is None and not self.bounded:
            return gradient
        leaf = values.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.draw(leaf), leaf, gradient)[0]
