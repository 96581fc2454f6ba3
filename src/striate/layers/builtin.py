"""PyTorch's own layers that need no wrapping, registered with their papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from striate.layers.registry import LAYERS


def _register(module: type[nn.Module], paper: str, build: Callable[[], nn.Module], *shape: int) -> None:
    def example() -> tuple[nn.Module, torch.Tensor]:
        return build(), torch.randn(shape)

    LAYERS.register(paper=paper, example=example, builtin=True)(module)


MAPS = (2, 3, 7, 6)
_register(
    nn.Conv2d,
    "LeCun et al., Neural Computation 1(4), 1989; NIPS 2012, section 3.5 (groups)",
    lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    *(2, 4, 6, 5),
)
_register(nn.Sigmoid, "Rumelhart, Hinton & Williams, Nature 323, 1986", nn.Sigmoid, *MAPS)
_register(nn.Tanh, "LeCun et al. 1998, Efficient BackProp, section 4.4", nn.Tanh, *MAPS)
_register(nn.ReLU, "Nair & Hinton, ICML 2010; NIPS 2012, section 3.1", nn.ReLU, *MAPS)
_register(nn.ReLU6, "Krizhevsky 2010, Convolutional Deep Belief Networks on CIFAR-10", nn.ReLU6, *MAPS)
_register(nn.LeakyReLU, "Maas, Hannun & Ng, ICML 2013", lambda: nn.LeakyReLU(0.1), *MAPS)
_register(nn.ELU, "arXiv:1511.07289", nn.ELU, *MAPS)
# Windows of 3 at stride 2 overlap: NIPS 2012, section 3.4.
_register(
    nn.MaxPool2d, "NIPS 2012, section 3.4 (overlapping)", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), *MAPS
)
_register(nn.AvgPool2d, "LeCun et al., Neural Computation 1(4), 1989", lambda: nn.AvgPool2d(3, 2, 1), *MAPS)
_register(nn.BatchNorm2d, "arXiv:1502.03167", lambda: nn.BatchNorm2d(3), *MAPS)
_register(nn.Dropout, "arXiv:1207.0580; JMLR 15, 2014", lambda: nn.Dropout(0.5), *MAPS)
_register(nn.Dropout2d, "arXiv:1411.4280, section 3.2", lambda: nn.Dropout2d(0.5), *MAPS)
