"""Optimisers: what turns gradients into new weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from striate.core.errors import StriateError, unknown
from striate.core.registry import Registry
from striate.train.freezing import tapped
from striate.train.recipe import Recipe

Groups = list[dict[str, Any]]

# Capabilities of an optimiser: `lr`, its usual rate; `adaptive`, whether that grows with the root of the
# batch only, `fixed_rate`, whether it does not grow at all; `decay`, what a group's `weight_decay` is to it
# ("coupled", "decoupled" or None); `moments`, how many tensors of the weights' size it keeps; `again`,
# whether a step works the loss out several times.
OPTIMIZERS: Registry[Callable[[Groups, Recipe], torch.optim.Optimizer]] = Registry(
    "optimizer", "striate.train"
)


def parameter_groups(net: nn.Module, weight_decay: float, *, decay_norms_and_biases: bool = False) -> Groups:
    """Two groups of the trainable parameters: decayed, and not decayed (scales, shifts and biases).

    Rule: tensors of at most one dimension are norms' weights and biases; they are not decayed
    (He et al. 2019, "Bag of tricks", arXiv:1812.01187, section 3.1).
    """
    seen = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if decay_norms_and_biases or weight_decay == 0.0:
        return [{"params": seen, "weight_decay": weight_decay}]
    decayed = [parameter for parameter in seen if parameter.ndim > 1]
    plain = [parameter for parameter in seen if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def by_rate(groups: Groups, net: nn.Module, rates: Mapping[str, float]) -> Groups:
    """The groups, split by the multiple of the learning rate that each parameter takes, its `lr_scale`.

    rates: pattern -> multiple. A pattern is the name of a parameter ("conv1.bias") or of what holds it
    ("conv1"), with * for any part of it; of several that fit, the last one counts.

    Raises:
        StriateError: a pattern that fits no parameter that learns, or a multiple that is no number from 0.
    """
    names = {id(p): name for root in (net, tapped(net)) for name, p in root.named_parameters()}
    learning = [names[id(p)] for group in groups for p in group["params"]]
    for pattern, multiple in rates.items():
        if (
            isinstance(multiple, bool)
            or not isinstance(multiple, (int, float))
            or not 0 <= multiple < math.inf
        ):
            raise StriateError(f"rates gives {pattern!r} the multiple {multiple!r}", allowed="numbers from 0")
        if not any(_fits(name, pattern) for name in learning):
            raise unknown(
                "part of the net in rates", pattern, {*learning, *(n.split(".")[0] for n in learning)}
            )
    found: Groups = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            fitting = [float(m) for pattern, m in rates.items() if _fits(names[id(parameter)], pattern)]
            parts.setdefault(fitting[-1] if fitting else 1.0, []).append(parameter)
        found += [{**group, "params": part, "lr_scale": multiple} for multiple, part in parts.items()]
    return found


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def fused(groups: Groups) -> bool:
    """Whether PyTorch has a fused step for all these parameters: floating point on the CPU, CUDA or MPS."""
    tensors = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in ("cpu", "cuda", "mps") and torch.is_floating_point(p) for p in tensors)


@OPTIMIZERS.register(
    "sgd", lr=0.1, adaptive=False, decay="coupled", moments=lambda recipe: int(recipe.momentum > 0)
)
def sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's form on request; weight decay as L2."""
    nesterov = recipe.nesterov and recipe.momentum > 0
    # The fused step cannot take weights that begin to learn later than others.
    quick = fused(groups) and not recipe.freeze
    return torch.optim.SGD(groups, lr=0.1, momentum=recipe.momentum, nesterov=nesterov, fused=quick)


@OPTIMIZERS.register("adam", lr=1e-3, adaptive=True, decay="coupled", moments=2)
def adam(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980); weight decay as L2."""
    epsilon = 1e-8 if recipe.epsilon is None else recipe.epsilon
    return torch.optim.Adam(groups, lr=1e-3, betas=recipe.betas, eps=epsilon, fused=fused(groups))


@OPTIMIZERS.register("adamw", lr=1e-3, adaptive=True, decay="decoupled", moments=2)
def adamw(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    epsilon = 1e-8 if recipe.epsilon is None else recipe.epsilon
    return torch.optim.AdamW(groups, lr=1e-3, betas=recipe.betas, eps=epsilon, fused=fused(groups))


@OPTIMIZERS.register("adagrad", lr=0.01, adaptive=True, decay="coupled", moments=1)
def adagrad(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """Adagrad: steps over the root of the summed squared gradients (Duchi, Hazan and Singer, JMLR 2011)."""
    epsilon = 1e-10 if recipe.epsilon is None else recipe.epsilon
    return torch.optim.Adagrad(groups, lr=0.01, eps=epsilon)


@OPTIMIZERS.register(
    "rmsprop", lr=3e-4, adaptive=True, decay="coupled", moments=lambda recipe: 1 + int(recipe.momentum > 0)
)
def rmsprop(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """RMSProp with momentum: steps over the root of a moving mean of squared gradients (Hinton 2012, 6e).

    s <- r s + (1 - r) g^2; m <- p m + g / (sqrt(s) + e); w <- w - lr m; r is `rms_decay`, p `momentum`.
    As the Inception nets were trained (arXiv:1512.00567, section 8: r = 0.9, e = 1).
    """
    epsilon = 1e-8 if recipe.epsilon is None else recipe.epsilon
    return torch.optim.RMSprop(groups, lr=3e-4, alpha=recipe.rms_decay, eps=epsilon, momentum=recipe.momentum)


class LBFGS(torch.optim.LBFGS):
    """PyTorch's L-BFGS, for gradients in any memory order; PyTorch's own takes contiguous ones only."""

    def _gather_flat_grad(self) -> Tensor:
        return torch.cat([
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in self._params
        ])  # fmt: skip


@OPTIMIZERS.register(
    "lbfgs", lr=1.0, adaptive=True, fixed_rate=True, decay=None, again=True,
    moments=lambda recipe: 2 * recipe.lbfgs_history + 3,
)  # fmt: skip
def lbfgs(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """L-BFGS with a line search by Wolfe's strong conditions (Liu and Nocedal 1989), for large batches.

    Each step makes up to `lbfgs_iterations` iterations on the images of that step, and works their loss out
    anew for each: `accumulate` makes a step of the whole set, which is what the method is meant for.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    return LBFGS(
        parameters,
        lr=1.0,
        max_iter=recipe.lbfgs_iterations,
        history_size=recipe.lbfgs_history,
        line_search_fn="strong_wolfe",
    )


def own_decay(recipe: Recipe) -> bool:
    """Whether the optimiser decays the weights itself in the form that the recipe asks for."""
    form = OPTIMIZERS.entry(recipe.optimizer).capabilities.get("decay")
    return form is not None and recipe.decay in ("auto", form)


def build_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the net's trainable parameters.

    Where it does not decay weights in the form asked for, `penalties.make_penalty` does.

    Raises:
        StriateError: no optimiser of that name, or `rates` that do not fit the net or the optimiser.
    """
    if recipe.rates and OPTIMIZERS.entry(recipe.optimizer).capabilities.get("again"):
        raise StriateError(f"{recipe.optimizer} takes one rate for all weights", hint="leave rates out")
    make = OPTIMIZERS.get(recipe.optimizer)
    amount = recipe.weight_decay if own_decay(recipe) else 0.0
    groups = parameter_groups(net, amount, decay_norms_and_biases=recipe.decay_norms_and_biases)
    return make(by_rate(groups, net, recipe.rates) if recipe.rates else groups, recipe)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate, times its own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip_gradients(net: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `largest`; returns it before."""
    parameters = [parameter for parameter in net.parameters() if parameter.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, largest)
