"""Pooling beyond PyTorch's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.layers.registry import LAYERS
from striate.layers.windows import Size, pair, window_count


@LAYERS.register(
    paper="arXiv:1312.4400, section 3.2", example=lambda: (GlobalAveragePool(), torch.randn(2, 3, 5, 4))
)
class GlobalAveragePool(nn.Module):
    """The mean of each feature map: (N, C, H, W) -> (N, C, 1, 1). Lin et al. 2013, section 3.2."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over height and width."""
        return x.mean((2, 3), keepdim=True)


@LAYERS.register(
    paper="arXiv:1312.4400, section 3.2 (with the maximum)",
    example=lambda: (GlobalMaxPool(), torch.randn(2, 3, 5, 4)),
)
class GlobalMaxPool(nn.Module):
    """The maximum of each feature map: (N, C, H, W) -> (N, C, 1, 1). After Lin et al. 2013."""

    def forward(self, x: Tensor) -> Tensor:
        """Maximum over height and width; where several positions tie, they share the gradient."""
        return x.amax((2, 3), keepdim=True)


class _Windows(nn.Module):
    """Kernel, stride (the kernel if None) and padding of pooling windows."""

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size, "kernel")
        self.stride = self.kernel_size if stride is None else pair(stride, "stride")
        vertical, horizontal = padding if isinstance(padding, tuple) else (padding, padding)
        self.padding, self.ceil_mode = (vertical, horizontal), ceil_mode
        if not all(0 <= p <= k // 2 for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise StriateError(f"padding is {padding!r}", allowed="from 0 to half of the kernel")

    def _mean(self, x: Tensor, divisor: int | None = None) -> Tensor:
        return F.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, divisor_override=divisor
        )

    def extra_repr(self) -> str:
        """The windows, for printing."""
        ceil = ", ceil_mode" if self.ceil_mode else ""
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}{ceil}"


@LAYERS.register(
    paper="LeCun et al., Proc. IEEE 86(11), 1998, section II.B",
    example=lambda: (SumPool2d(3, 2, 1), torch.randn(2, 3, 6, 5)),
)
class SumPool2d(_Windows):
    """The sum of each window, nothing counted for padding: (N, C, H, W) -> (N, C, h, w).

    Windows as in PyTorch's average pooling; `stride` is the kernel's side if None. LeCun et al. 1998.

    Raises:
        StriateError: padding above half of the kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Sum over each window."""
        return self._mean(x, divisor=1)


@LAYERS.register(
    paper="LeCun et al., Proc. IEEE 86(11), 1998, section II.B (S2, S4)",
    example=lambda: (TrainableSubsample(3), torch.randn(2, 3, 7, 6)),
)
class TrainableSubsample(_Windows):
    """LeNet-5's subsampling: the sum of each window, times a coefficient and plus a bias of its map.

    y[c] = weight[c] * sum of x[c] over the window + bias[c]; (N, C, H, W) -> (N, C, h, w). The squashing
    function of the paper is a stage of its own. weight and bias are (C,); the start is the mean: weight
    1 / units of the window, bias 0. LeCun et al. 1998, section II.B.
    """

    def __init__(self, channels: int, kernel_size: Size = 2, stride: Size | None = None) -> None:
        super().__init__(kernel_size, stride)
        height, width = self.kernel_size
        self.channels = channels
        self.weight = nn.Parameter(torch.full((channels,), 1 / (height * width)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Sum over each window, scale and shift."""
        return self._mean(x, divisor=1) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


@LAYERS.register(
    paper="arXiv:1204.3968, section 2.1; Hyvarinen & Koster 2007",
    example=lambda: (LpPool2d(3.0, 3, 2, 1), torch.randn(2, 3, 6, 5)),
)
class LpPool2d(_Windows):
    """The p-norm of each window: y = (sum of |x|^p)^(1/p); (N, C, H, W) -> (N, C, h, w), y >= 0.

    p = 1 sums absolute values, p -> infinity takes their maximum. Unlike PyTorch's own LPPool2d, signs do not
    count for odd p either, and a window of zeros has the gradient 0 (there: not a number). |x|^p must fit the
    number type. Sermanet, Chintala & LeCun 2012.

    Raises:
        StriateError: p below 1, or padding above half of the kernel.
    """

    def __init__(
        self,
        p: float,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if not 1 <= p < float("inf"):
            raise StriateError(
                f"p is {p!r}", allowed="a number from 1; GlobalMaxPool or MaxPool2d for infinity"
            )
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        """The p-norm of each window."""
        total = self._mean(x.abs() ** self.p, divisor=1)
        # The root has an infinite slope at 0: there, it is taken of 1 and not used.
        none = total == 0
        root = torch.where(none, 1.0, total) ** (1 / self.p)
        return torch.where(none, 0.0, root)

    def extra_repr(self) -> str:
        """Exponent and windows, for printing."""
        return f"p={self.p:g}, {super().extra_repr()}"


@LAYERS.register(
    paper="arXiv:1301.3557, sections 3.1 and 3.2",
    example=lambda: (StochasticPool2d(3, 2, ceil_mode=True), torch.rand(2, 3, 6, 5)),
)
class StochasticPool2d(_Windows):
    """Stochastic pooling: in training, one unit of each window is drawn with a probability like its value.

    With a = max(x, 0) and p = a / sum of a over the window: training y = a[l], l ~ p, each window drawn for
    itself, the gradient goes to the drawn unit; evaluation y = sum of p * a = sum of a^2 / sum of a (section
    3.2). A window without positive values gives 0. (N, C, H, W) -> (N, C, h, w), meant for what a ReLU gave;
    negative values and padding count as 0. Zeiler & Fergus 2013 use windows of 3 at stride 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Draw in training, weigh by probability in evaluation."""
        a = F.relu(x)
        if self.training:
            return drawn_unit(a, self.kernel_size, self.stride, self.ceil_mode, self.padding)
        total = self._mean(a, divisor=1)
        return self._mean(a.square(), divisor=1) / torch.where(total == 0, 1.0, total)


def drawn_unit(
    a: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    ceil_mode: bool = False,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """One unit of each window, drawn with probability a / sum of a: (N, C, H, W) >= 0 -> (N, C, h, w)."""
    height, width = a.shape[-2:]
    rows, columns = (
        window_count(length, k, s, p, ceil_mode)
        for length, k, s, p in zip((height, width), kernel, stride, padding, strict=True)
    )
    if rows < 1 or columns < 1:
        raise StriateError(f"the maps are {height} x {width}", allowed=f"at least {kernel[0]} x {kernel[1]}")
    over = [(n - 1) * s + k for n, s, k in zip((rows, columns), stride, kernel, strict=True)]
    with torch.no_grad():
        top, left = padding
        right, bottom = max(0, over[1] - width - left), max(0, over[0] - height - top)
        padded = F.pad(a, (left, right, top, bottom))
        # One map for each place in the window, so that all windows go through their units at once.
        units = [
            padded[
                :, :, i : over[0] - kernel[0] + i + 1 : stride[0], j : over[1] - kernel[1] + j + 1 : stride[1]
            ]
            for i, j in itertools.product(range(kernel[0]), range(kernel[1]))
        ]
        total = sum(units[1:], start=units[0])
        # A point on the line on which the values lie end to end, short of its end also after rounding.
        point = torch.rand_like(total) * (total * (1 - torch.finfo(a.dtype).eps))
        passed, drawn = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.int64)
        for unit in units[:-1]:
            passed = passed + unit
            drawn += passed <= point
        y = drawn // kernel[1] + stride[0] * torch.arange(rows, device=a.device).view(-1, 1) - top
        x = drawn % kernel[1] + stride[1] * torch.arange(columns, device=a.device) - left
        # A window without positive values may point at its padding; any unit of value 0 will do.
        place = y.clamp_(0, height - 1) * width + x.clamp_(0, width - 1)
    return a.flatten(2).gather(2, place.flatten(2)).view(*a.shape[:2], rows, columns)


torch.fx.wrap("drawn_unit")


@LAYERS.register(
    paper="arXiv:1311.2901, section 2.1 (unpooling); arXiv:1112.6209",
    example=lambda: (MaxPoolSwitches(3, 2, 1), torch.randn(2, 3, 6, 5)),
)
class MaxPoolSwitches(_Windows):
    """Max pooling that also tells which unit won: (N, C, H, W) -> values and switches, both (N, C, h, w).

    A switch is row * W + column of the winner in the map that came in, int64; padding never wins; of equal
    values the first does. `MaxUnpool` goes back. Zeiler & Fergus 2013.

    Raises:
        StriateError: padding above half of the kernel.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima, and where they were."""
        y, switches = F.max_pool2d(
            x, self.kernel_size, self.stride, self.padding, ceil_mode=self.ceil_mode, return_indices=True
        )
        return y, switches


def _unpool_example() -> tuple[nn.Module, tuple[Tensor, Tensor, tuple[int, int]]]:
    values, switches = MaxPoolSwitches(3, 2, 1)(torch.randn(2, 3, 6, 5))
    return MaxUnpool(), (values, switches, (6, 5))


@LAYERS.register(paper="arXiv:1311.2901, section 2.1", example=_unpool_example)
class MaxUnpool(nn.Module):
    """Put each value back to where its maximum was, 0 elsewhere: (N, C, h, w) -> (N, C, H, W).

    Takes values, the switches of `MaxPoolSwitches` and the size (H, W) of the map that was pooled. Where
    windows overlap, several may have taken the same unit: `overlap` "mean" gives it the mean of their values,
    so that unpooling what was pooled restores every maximum; "sum" gives their sum, which is the transposed
    map, exactly what the gradient of max pooling does. Zeiler & Fergus 2013.

    Raises:
        StriateError: another `overlap`, switches of another shape than the values, or outside of the map.
    """

    def __init__(self, overlap: str = "mean") -> None:
        super().__init__()
        if overlap not in ("mean", "sum"):
            raise unknown("overlap", overlap, ("mean", "sum"))
        self.overlap = overlap

    def forward(self, x: Tensor, switches: Tensor, size: tuple[int, int]) -> Tensor:
        """Unpool values (N, C, h, w) by switches (N, C, h, w) into maps of `size`."""
        return unpool(x, switches, size, self.overlap)

    def extra_repr(self) -> str:
        """The rule for overlaps, for printing."""
        return self.overlap


def unpool(x: Tensor, switches: Tensor, size: tuple[int, int], overlap: str) -> Tensor:
    """Values (N, C, h, w) at their switches in (N, C, *size), 0 elsewhere."""
    if x.ndim != 4 or switches.shape != x.shape:
        raise StriateError(
            f"values {tuple(x.shape)} and switches {tuple(switches.shape)}",
            allowed="two of the same shape (N, C, h, w)",
        )
    height, width = size
    checked = switches.numel() > 0 and not switches.is_meta
    if checked and not 0 <= int(switches.min()) <= int(switches.max()) < height * width:
        raise StriateError(
            f"a switch points outside of the {height} x {width} map",
            hint="give the size of the map that was pooled",
        )
    places = switches.flatten(2)
    empty = x.new_zeros(*x.shape[:2], height * width)
    if overlap == "mean":
        times = empty.scatter_add(2, places, torch.ones_like(x).flatten(2))
        empty = empty.scatter_add(2, places, x.flatten(2)) / times.clamp_min(1)
    else:
        empty = empty.scatter_add(2, places, x.flatten(2))
    return empty.view(*x.shape[:2], height, width)


torch.fx.wrap("unpool")


@LAYERS.register(
    paper="arXiv:1406.4729, section 2.2 and appendix A",
    example=lambda: (SpatialPyramidPool((1, 2, 4)), torch.randn(2, 3, 7, 6)),
)
class SpatialPyramidPool(nn.Module):
    """Maxima (or means) over grids of n x n bins, one grid a level, joined: (N, C, H, W) -> (N, C * sum n^2).

    Bin i of n covers the rows from floor(i H / n) to ceil((i + 1) H / n), columns likewise, so that maps of
    any size give the same number of features; bins of small maps overlap. Order: level, channel, row, column.
    He et al. 2014; the paper's grids are 1, 2, 3, 6. `mode` is "max" or "average".

    Raises:
        StriateError: another mode, no level, or a level that is not a positive whole number.
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 4), mode: str = "max") -> None:
        super().__init__()
        if mode not in ("max", "average"):
            raise unknown("mode", mode, ("max", "average"))
        if not levels:
            raise StriateError("no levels", allowed="at least one number of bins along a side")
        self.levels = tuple(pair(n, "level")[0] for n in levels)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Pool over all grids and join."""
        pool = F.adaptive_max_pool2d if self.mode == "max" else F.adaptive_avg_pool2d
        return torch.cat([pool(x, (n, n)).flatten(1) for n in self.levels], 1)

    def extra_repr(self) -> str:
        """Levels and mode, for printing."""
        return f"{self.levels}, {self.mode}"
