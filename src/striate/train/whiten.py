"""A first layer from the data: whitening filters of training patches, kept as they are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from striate.core.errors import BadImage, StriateError
from striate.data.preprocess import Preprocess
from striate.data.samples import Split

# What is looked at: images evenly spaced over the split, at most so many and of so many pixels together.
IMAGES, PIXELS = 5000, 5000 * 32 * 32


def first_convolution(net: nn.Module) -> nn.Conv2d:
    """The first layer with weights.

    Raises:
        StriateError: it is not a convolution that sees all input channels at once.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            return module
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            break
    raise StriateError(
        "first-layer is 'whitened', but the net does not begin with a convolution", hint="leave it 'drawn'"
    )


def whiten(net: nn.Module, split: Split, preprocess: Preprocess) -> None:
    """Set the first convolution to the whitening filters of training patches, and stop it from learning.

    With the patches' covariance C = V diag(l) V^T, filter i is v_i / sqrt(l_i + e), by falling l_i, followed
    by the same filters negated, as far as the layer has room; further filters keep their drawn weights.
    e is 5e-4. A bias starts at zero and learns. arXiv:2404.00498, section 3.1.

    Raises:
        StriateError: the net does not begin with a convolution; no readable images.
    """
    layer = first_convolution(net)
    filters = whitening_filters(sample_images(split, preprocess), layer.kernel_size)
    both = torch.cat([filters, -filters])[: layer.out_channels]
    with torch.no_grad():
        layer.weight[: len(both)] = both.to(layer.weight)
        if layer.bias is not None:
            layer.bias.zero_()
    layer.weight.requires_grad_(False)


def sample_images(split: Split, preprocess: Preprocess, most: int = IMAGES, pixels: int = PIXELS) -> Tensor:
    """At most so many training images of so many pixels together, as the net sees them: (N, C, H, W) float32.

    Raises:
        StriateError: they come out at several sizes, or none can be read.
    """
    # Large images have as many patches in fewer: what is held in memory does not grow with their size.
    count = min(most, max(1, pixels // math.prod(preprocess.size or (1, 1))), len(split))
    chosen = np.unique(np.linspace(0, len(split) - 1, count).astype(np.int64))
    views = []
    for number in chosen.tolist():
        try:
            image = split.image(number, at_least=preprocess.at_least(), channels=preprocess.channels)
        except BadImage:
            continue
        views.append(preprocess.view(image))
    shapes = {view.shape for view in views}
    if not views:
        raise StriateError("no training image can be read", hint="see 'striate data check'")
    if len(shapes) != 1:
        raise StriateError("the first weights go by training images of one size", hint="give --size")
    return preprocess.normalise(torch.from_numpy(np.stack(views)))


def whitening_filters(images: Tensor, kernel: tuple[int, ...], floor: float = 5e-4) -> Tensor:
    """Whitening filters of all patches: (N, C, H, W) -> (C kh kw, C, kh, kw), largest variance first."""
    height, width = kernel
    size = images.shape[1] * height * width
    covariance = torch.zeros(size, size, dtype=torch.float64)
    count = 0
    # A few images at a time: the patches take kernel-area times the images' memory.
    for part in torch.split(images, 250):
        patches = functional.unfold(part, (height, width)).transpose(1, 2).reshape(-1, size).double()
        covariance += patches.T @ patches
        count += len(patches)
    values, vectors = torch.linalg.eigh(covariance / count)
    scaled = vectors.flip(1).T / (values.flip(0) + floor).sqrt()[:, None]
    # An eigenvector's sign is arbitrary: the largest entry is made positive.
    largest = scaled.gather(1, scaled.abs().argmax(1, keepdim=True))
    filters: Tensor = (scaled * largest.sign()).float()
    return filters.reshape(size, images.shape[1], height, width)
