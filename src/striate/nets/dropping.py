"""Two regularisers that are layers, put into any net that has a place for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from striate.core.errors import StriateError
from striate.layers.normalization import LocalResponseNorm
from striate.layers.pooling import StochasticPool2d
from striate.layers.regularization import DropConnectLinear

if TYPE_CHECKING:
    from striate.nets.net import Net

# Options of every net, beside those of its family, and the kinds of their values.
OPTIONS: dict[str, type] = {"stochastic_pooling": bool, "drop_connect": float}
# What may stand between a ReLU and its pool: it keeps the sign.
BETWEEN = (nn.Dropout, nn.Dropout2d, nn.LocalResponseNorm, LocalResponseNorm, nn.MaxPool2d)
SIGNED = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear)


def put_in(net: Net, options: Mapping[str, Any]) -> None:
    """Change a new net to what `OPTIONS` among its options say; the weights stay those that were drawn.

    Raises:
        StriateError: the net has no place for it, or the rate is not in [0, 1).
    """
    if options.get("stochastic_pooling"):
        _pool(net)
    if "drop_connect" in options:
        _disconnect(net, options["drop_connect"])


def _pool(net: Net) -> None:
    """Stochastic pooling in place of the stages that are max pooling: arXiv:1301.3557, section 3."""
    names = net.stage_names
    pools = [name for name in names if type(getattr(net, name)) is nn.MaxPool2d]
    if not pools:
        raise StriateError(
            f"net {net.name!r} has no stage of max pooling to make stochastic",
            hint="leave out --stochastic_pooling, or take a net such as lenet5, nin or vgg11",
        )
    for name in pools:
        before = [getattr(net, other) for other in names[: names.index(name)]]
        source = next((module for module in reversed(before) if not isinstance(module, BETWEEN)), None)
        if source is None or isinstance(source, SIGNED):
            raise StriateError(
                f"net {net.name!r} pools in {name!r} what no ReLU made positive: it gives no probabilities",
                hint="leave out --stochastic_pooling, or take a net such as lenet5, nin or vgg11",
            )
    for name in pools:
        pool = getattr(net, name)
        new = StochasticPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
        setattr(net, name, new)


def _disconnect(net: Net, rate: float) -> None:
    """DropConnect in the hidden fully connected stages: Wan et al., ICML 2013.

    Before a ReLU, evaluation takes the ReLU's mean over the Gaussian of its inputs; before other activations
    the mean of the inputs.
    """
    names = net.stage_names
    hidden = [name for name in names if type(getattr(net, name)) is nn.Linear and name != net.head]
    if not hidden:
        raise StriateError(
            f"net {net.name!r} has no hidden fully connected stage for DropConnect",
            hint="leave out --drop_connect, or take a net such as lenet5, mlp, alexnet or vgg11",
        )
    for name in hidden:
        old = getattr(net, name)
        after = getattr(net, names[names.index(name) + 1])
        new = DropConnectLinear(
            old.in_features, old.out_features, rate, bias=old.bias is not None,
            activation="relu" if type(after) is nn.ReLU else "linear",
        )  # fmt: skip
        new.weight, new.bias = old.weight, old.bias
        setattr(net, name, new)
