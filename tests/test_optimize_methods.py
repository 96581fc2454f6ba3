"""Adagrad, RMSProp, L-BFGS and penalties on weights against slow references written from their formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from striate.core.errors import StriateError
from striate.train.again import Again
from striate.train.devices import Place
from striate.train.fit import fit
from striate.train.optimize import OPTIMIZERS, build_optimizer, set_rate
from striate.train.penalties import Penalty, make_penalty
from striate.train.recipe import Recipe
from striate.train.setup import check_names
from trials import same_weights, small_job, small_net

GRADIENTS = ([0.5, -2.0, 1e-3], [-0.25, -1.0, 0.5], [3.0, 0.0, -0.5], [0.1, 0.2, -0.3])


def adagrad(weights: list[float], gradients: list[list[float]], lr: float, decay: float) -> list[float]:
    """Duchi et al. 2011: w <- w - lr g / (sqrt(sum g^2) + e)."""
    sums = [0.0] * len(weights)
    for step in gradients:
        for i, g in enumerate(step):
            g = g + decay * weights[i]
            sums[i] += g * g
            weights[i] -= lr * g / (math.sqrt(sums[i]) + 1e-10)
    return weights


def rmsprop(weights: list[float], gradients: list[list[float]], lr: float, decay: float) -> list[float]:
    """s <- r s + (1 - r) g^2; m <- p m + g / (sqrt(s) + e); w <- w - lr m, with r = 0.8, p = 0.5, e = 0.1."""
    squares, moves = [0.0] * len(weights), [0.0] * len(weights)
    for step in gradients:
        for i, g in enumerate(step):
            g = g + decay * weights[i]
            squares[i] = 0.8 * squares[i] + 0.2 * g * g
            moves[i] = 0.5 * moves[i] + g / (math.sqrt(squares[i]) + 0.1)
            weights[i] -= lr * moves[i]
    return weights


@pytest.mark.parametrize(
    ("reference", "settings"),
    [
        (adagrad, {"optimizer": "adagrad"}),
        (rmsprop, {"optimizer": "rmsprop", "rms_decay": 0.8, "momentum": 0.5, "epsilon": 0.1}),
    ],
)
def test_steps_against_the_formula(reference, settings) -> None:  # type: ignore[no-untyped-def]
    net = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    optimizer = build_optimizer(net, Recipe(weight_decay=0.01, **settings))
    set_rate(optimizer, 0.1)
    for gradient in GRADIENTS:
        net.weight.grad = torch.tensor([gradient])
        optimizer.step()
    expected = reference([1.0, -2.0, 0.5], [list(g) for g in GRADIENTS], 0.1, 0.01)
    assert net.weight.flatten().tolist() == pytest.approx(expected, abs=1e-5)


class Valley(nn.Module):
    """f(w) = w' A w / 2 - b' w, with a dense positive definite A in six dimensions."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        root = torch.randn(6, 6, generator=draw, dtype=torch.float64)
        self.a = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
        self.b = torch.randn(6, generator=draw, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(6, 1, generator=draw, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        w = self.w.flatten()
        return 0.5 * w @ self.a @ w - self.b @ w


def valley_step(net: Valley, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_lbfgs_goes_where_the_dense_formula_points() -> None:
    """One iteration a step: its direction is -H g, with H built up as a matrix (Nocedal and Wright, 6.17)."""
    net = Valley()
    optimizer = build_optimizer(net, Recipe(optimizer="lbfgs", lbfgs_iterations=1, lbfgs_history=20))
    points, slopes = [], []
    for step in range(6):
        points.append(net.w.detach().flatten().clone())
        slopes.append(net.a @ points[-1] - net.b)
        before = net().item()
        valley_step(net, optimizer)
        move, after = net.w.detach().flatten() - points[-1], net().item()
        eye = torch.eye(6, dtype=torch.float64)
        h = eye
        pairs = [(points[k + 1] - points[k], slopes[k + 1] - slopes[k]) for k in range(step)]
        if pairs:
            s, y = pairs[-1]
            h = (s @ y) / (y @ y) * eye
        for s, y in pairs:
            rho = 1 / (y @ s)
            left = eye - rho * torch.outer(s, y)
            h = left @ h @ left.T + rho * torch.outer(s, s)
        direction = -h @ slopes[-1]
        cosine = (direction @ move) / (direction.norm() * move.norm())
        assert float(cosine) == pytest.approx(1.0, abs=1e-6)
        # Wolfe's strong conditions.
        slope, new = float(slopes[-1] @ move), float((net.a @ net.w.detach().flatten() - net.b) @ move)
        assert after <= before + 1e-4 * slope + 1e-12
        assert abs(new) <= 0.9 * abs(slope) + 1e-12


def test_lbfgs_finds_the_bottom_of_a_valley() -> None:
    net = Valley()
    optimizer = build_optimizer(net, Recipe(optimizer="lbfgs", lbfgs_iterations=40))
    valley_step(net, optimizer)
    bottom = torch.linalg.solve(net.a, net.b)
    torch.testing.assert_close(net.w.detach().flatten(), bottom, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"l1": 1e-3, "weight_noise": 0.01}])
def test_lbfgs_over_groups_of_batches_is_lbfgs_on_all_images(settings: dict[str, float]) -> None:
    """Six batches a step: the closure gives the loss and gradients of all 96 images, again and again."""
    values = {"optimizer": "lbfgs", "schedule": "constant", "lr": 1.0, "lbfgs_iterations": 4} | settings
    parted = small_job(small_net(dropout=0.3), batch=16, accumulate=6, epochs=1, **values)
    seen: list[float] = []
    original = Again.__call__

    def spied(self: Again) -> float:
        value = original(self)
        seen.append(value)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Again, "__call__", spied)
        assert fit(parted)
    assert parted.state.step == 1
    assert len(seen) > 2
    # A line search never ends above where it began.
    assert min(seen[1:]) < seen[0]
    # Without dropout and noise the same comes out as of PyTorch's own on the whole set.
    if settings:
        return
    net, whole = small_net(), small_net()
    fit(small_job(net, batch=16, accumulate=6, epochs=1, **values))
    optimizer = torch.optim.LBFGS(
        whole.parameters(), lr=1.0, max_iter=4, history_size=10, line_search_fn="strong_wolfe"
    )
    batches = list(parted.train.batches(0))
    images = torch.cat([b.images for b in batches]).contiguous(memory_format=torch.channels_last)
    targets = torch.cat([b.targets for b in batches])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(whole(images), targets)
        loss = loss + 0.5 * 5e-4 * sum((p**2).sum() for p in whole.parameters() if p.ndim > 1)
        loss.backward()
        return loss

    optimizer.step(closure)
    for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_first_call_of_the_closure_takes_what_the_loop_found() -> None:
    calls: list[int] = []

    def learn(number: int) -> torch.Tensor:
        calls.append(number)
        return torch.tensor(float(number))

    net = small_net()
    optimizer = build_optimizer(net, Recipe())
    held = [((1,), torch.tensor(3.0)), ((2,), torch.tensor(5.0))]
    again = Again(learn, held, optimizer, Place(torch.device("cpu")), None)
    assert again() == 4.0
    assert calls == []
    assert again() == 1.5
    assert calls == [1, 2]


@pytest.mark.parametrize(
    "settings", [{"clip": 1.0}, {"gradient_noise": 0.1}, {"decay": "decoupled"}, {"amp": "auto"}]
)
def test_lbfgs_refuses_what_changes_gradients_behind_its_back(settings: dict[str, object]) -> None:
    with pytest.raises(StriateError, match="searches along a line and cannot have") as caught:
        check_names(Recipe(optimizer="lbfgs", **settings))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- penalties


def pushed(net: nn.Module, recipe: Recipe, gradient: float, rate: float, steps: int = 1) -> None:
    """Steps of the optimiser with the same gradient everywhere, as `fit` takes them."""
    optimizer = build_optimizer(net, recipe)
    penalty = make_penalty(net, recipe, optimizer)
    for _ in range(steps):
        set_rate(optimizer, rate)
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        if penalty:
            penalty.before()
        optimizer.step()
        if penalty:
            penalty.after()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "adagrad", "sgd"])
def test_both_forms_of_l2_against_their_formulas(optimizer: str) -> None:
    """Coupled: the optimiser sees g + l w. Decoupled: w shrinks by lr l first, and the optimiser sees g."""
    for form in ("coupled", "decoupled"):
        net, bare = small_net(), small_net()
        pushed(net, Recipe(optimizer=optimizer, weight_decay=0.1, decay=form), 0.3, 0.05, steps=3)
        own = build_optimizer(bare, Recipe(optimizer=optimizer, weight_decay=0.0))
        for _ in range(3):
            set_rate(own, 0.05)
            for parameter in bare.parameters():
                decayed = parameter.ndim > 1
                parameter.grad = torch.full_like(parameter, 0.3)
                with torch.no_grad():
                    if decayed and form == "coupled":
                        parameter.grad += 0.1 * parameter
                    elif decayed:
                        parameter -= 0.05 * 0.1 * parameter
            own.step()
        for ours, theirs in zip(net.parameters(), bare.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_auto_leaves_the_decay_to_the_optimiser() -> None:
    for name in OPTIMIZERS.names():
        recipe = Recipe(optimizer=name, weight_decay=0.1)
        penalty = make_penalty(small_net(), recipe, build_optimizer(small_net(), recipe))
        assert (penalty is None) == (OPTIMIZERS.entry(name).capabilities["decay"] is not None)


def test_l1_by_hand() -> None:
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, -1.0, 0.004]]))
        net.bias.fill_(0.5)
    decoupled = copy.deepcopy(net)
    settings = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "l1": 0.1}
    pushed(net, Recipe(**settings), 0.0, 0.5)
    assert net.weight.flatten().tolist() == pytest.approx([1.95, -0.95, 0.004 - 0.05])
    assert net.bias.item() == 0.5  # norms and biases are left out
    # The proximal step ends at zero and does not swing beyond.
    pushed(decoupled, Recipe(decay="decoupled", **settings), 0.0, 0.5)
    assert decoupled.weight.flatten().tolist() == pytest.approx([1.95, -0.95, 0.0])
    assert decoupled.weight.flatten()[2].item() == 0.0


def test_weights_without_a_gradient_stay() -> None:
    net = small_net()
    optimizer = build_optimizer(net, Recipe())
    weights = [p for p in net.parameters() if p.ndim > 1]
    before = [w.detach().clone() for w in weights]
    for decoupled in (False, True):
        penalty = Penalty(weights, 0.1, 0.1, decoupled, optimizer)
        penalty.before()
        penalty.after()
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_the_value_of_a_penalty_has_its_gradient() -> None:
    net = small_net()
    weights = [p for p in net.parameters() if p.ndim > 1]
    penalty = Penalty(weights, 0.3, 0.7, False, build_optimizer(net, Recipe()))
    loss = sum(0.3 * w.abs().sum() + 0.35 * (w**2).sum() for w in weights)
    assert float(penalty.value()) == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    wanted = [w.grad.clone() for w in weights]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    penalty.before()
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_a_penalty_in_the_loop_is_one_in_the_loss() -> None:
    net, bare = small_net(), small_net()
    job = small_job(net, epochs=1, schedule="constant", momentum=0.0, weight_decay=0.0, l1=0.01, accumulate=2)
    fit(job)
    sgd = torch.optim.SGD(bare.parameters(), lr=0.05)
    batches = list(job.train.batches(0))
    for one, two in zip(batches[::2], batches[1::2], strict=True):
        images, targets = torch.cat([one.images, two.images]), torch.cat([one.targets, two.targets])
        sgd.zero_grad()
        penalty = 0.01 * sum(p.abs().sum() for p in bare.parameters() if p.ndim > 1)
        (nn.functional.cross_entropy(bare(images), targets) + penalty).backward()
        sgd.step()
    for ours, theirs in zip(net.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_same_settings_give_the_same_bits() -> None:
    settings = {"optimizer": "rmsprop", "decay": "decoupled", "l1": 1e-3, "lr": 1e-3, "epochs": 2}
    first, second = (small_job(small_net(norm=True), **settings) for _ in range(2))
    fit(first)
    fit(second)
    assert same_weights(first.net, second.net)
