"""Several trained nets as one Model: their posteriors averaged, or their weights."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from striate import __version__, modelfile
from striate.core.errors import BadModelFile, StriateError, unknown
from striate.core.results import plain
from striate.data.preprocess import Preprocess
from striate.engines.chooser import AUTO, Engines, Left, nobody_knows
from striate.model import Model
from striate.nets.averaging import average_states, estimate_norms
from striate.tasks.task import Task

MOST = 64
HINT = "choose a member: load(...).member(1), or FILE#1 on the command line"
# What a single net answers and several do not.
OF_ONE_NET = (
    "stage_names", "stages", "spatial_stages", "features", "feature_dim", "head", "head_layer",
    "input_size", "in_channels", "reset_head",
)  # fmt: skip


class EnsembleNet(nn.Module):
    """The nets of an ensemble as one module, for devices, modes and weights; `member-1` is the first.

    Questions about a net's inside, such as its stages, are refused: they are for one member.
    """

    def __init__(self, ensemble: Sequence[nn.Module], classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.name = f"ensemble of {len(ensemble)} nets"
        for number, net in enumerate(ensemble, 1):
            self.add_module(f"member-{number}", net)

    def __getattr__(self, name: str) -> Any:
        if name in OF_ONE_NET:
            raise StriateError(f"an {self.name} has no {name.replace('_', ' ')} of its own", hint=HINT)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """Refused: each member prepares its input for itself; `Ensemble.forward` takes views."""
        raise StriateError(f"an {self.name} takes views, not the input of one net", hint=HINT)


class Together(Engines):
    """The engines of an ensemble's members, each with its own."""

    def __init__(self, net: nn.Module, members: Sequence[Model]) -> None:
        super().__init__(net, "eager")
        self.members = members

    @property
    def notes(self) -> list[str]:
        """Lines on engines that were dropped, of all members."""
        return list(dict.fromkeys(note for member in self.members for note in member.engines().notes))

    @contextlib.contextmanager
    def passing(self, left: Left = nobody_knows) -> Iterator[Engines]:
        """A pass over images: each member runs on its fastest engine."""
        with contextlib.ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.running(left))
            try:
                yield self
            finally:
                self.seen = max((member.engines().seen for member in self.members), default=0)

    def told(self) -> str:
        """What ran most images; where the members differ, of each by its number."""
        told = [member.engines().told() for member in self.members]
        if len(set(told)) == 1:
            return told[0]
        return "; ".join(f"#{number} {text}" for number, text in enumerate(told, 1))


class Ensemble(Model):
    """Several models of one task and the same classes that answer together: the mean of their posteriors.

    Members may differ in net, weights, input size and preprocessing; each sees an image in its own way.
    members of an ensemble among the models count one by one. names: what the members are called; by default
    their cards' names or their nets', with a number.

    Raises:
        StriateError: fewer than two models or more than 64, of different tasks or classes; models whose
            masks do not have the same geometry.
    """

    def __init__(
        self, models: Sequence[Model], card: Mapping[str, Any] | None = None, names: Sequence[str] = ()
    ) -> None:
        flat = [member for model in models for member in (model.members or (model,))]
        if not 2 <= len(flat) <= MOST:
            count = f"{len(flat)} model{'s' * (len(flat) != 1)}"
            raise StriateError(f"an ensemble of {count}", allowed=f"2 to {MOST}")
        first = flat[0]
        for model in flat[1:]:
            _fits(model, first)
        # Several members may be one net: it is one module then.
        net = EnsembleNet([model.net for model in flat], len(first.classes))
        self.members: tuple[Model, ...] = ()
        super().__init__(net, first.task, first.preprocess, {**_common(flat), **(card or {})})
        self.members = tuple(flat)
        self.names = tuple(names) if len(names) == len(flat) else tuple(model.name for model in flat)
        self._orders = [_order(model, first) for model in flat]
        self._geometries = [_geometry(model.preprocess) for model in flat]

    @property
    def engine(self) -> str:
        """What the members run on; setting it sets theirs."""
        return self.members[0].engine if self.members else AUTO

    @engine.setter
    def engine(self, name: str) -> None:
        for member in self.members:
            member.engine = name

    def engines(self) -> Engines:
        """Those of the members, which tell of them."""
        if self._engines is None:
            self._engines = Together(self.net, self.members)
        return self._engines

    @contextlib.contextmanager
    def running(self, left: Left = nobody_knows) -> Iterator[Engines]:
        """Inside the block each member runs on its fastest engine; see `Model.running`."""
        with self.engines().passing(left) as engines:
            yield engines

    def forward(self, views: NDArray[np.uint8] | Tensor, engines: Engines | None = None) -> Tensor:
        """Outputs whose posterior is the mean of the members', for views that all members share.

        Raises:
            StriateError: the members' views differ, in size, crop or channels.
        """
        if len(set(self._geometries)) > 1:
            raise StriateError(
                "the members of this ensemble see images in different ways, and one view is given",
                hint="give images to predict, or data to evaluate",
            )
        return self.pooled([member.forward(views) for member in self.members])

    def pooled(self, outputs: Sequence[Tensor]) -> Tensor:
        """Outputs (N, K, ...) of each member to those whose posterior is the mean of theirs."""
        pairs = zip(outputs, self._orders, strict=True)
        own = [found if order is None else found[:, order] for found, order in pairs]
        mean = torch.stack([self.task.posterior(found) for found in own]).mean(0)
        return self.task.outputs_of(mean)

    def member(self, which: int | str) -> Model:
        """One member, by its number from 1 or its name.

        Raises:
            StriateError: there is no such member.
        """
        text = str(which)
        if text.isdecimal() and len(text) < 9 and 1 <= int(text) <= len(self.members):
            return self.members[int(text) - 1]
        if text not in self.names:
            raise unknown("member", which, [f"1 to {len(self.members)}", *dict.fromkeys(self.names)])
        return self.members[self.names.index(text)]

    def _view(self, image: Any) -> tuple[Any, tuple[int, int]]:
        """What each member sees of an image; those that see it in the same way share the view."""
        seen: dict[Any, tuple[Any, tuple[int, int]]] = {}
        for member, geometry in zip(self.members, self._geometries, strict=True):
            if geometry not in seen:
                seen[geometry] = member._view(image)
        views = tuple(seen[geometry][0] for geometry in self._geometries)
        return views, seen[self._geometries[0]][1]

    def _shape(self, view: Any) -> tuple[Any, ...]:
        return tuple(own.shape for own in view)

    def _outputs(self, views: Sequence[Any], engines: Engines) -> Tensor:
        each = zip(self.members, zip(*views, strict=True), strict=True)
        return self.pooled([member.forward(np.stack(own)) for member, own in each])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all members to one safetensors file; the same members give the same bytes.

        Raises:
            StriateError: the file cannot be written.
        """
        task = self.task.settings()
        card = modelfile.json_values(self.card)
        header = {
            "format": modelfile.FORMAT,
            "version": __version__,
            "ensemble": {"members": [self._facts(number) for number in range(len(self.members))]},
            "classes": task.pop("classes"),
            "task": task,
            "scores": card.pop("scores", {}),
            "card": card,
        }
        tensors = {
            f"member-{number}/{name}": tensor
            for number, member in enumerate(self.members, 1)
            for name, tensor in member.tensors().items()
        }
        return modelfile.write(path, header, tensors)

    def _facts(self, number: int) -> dict[str, Any]:
        member, order = self.members[number], self._orders[number]
        return {
            "name": self.names[number],
            "net": modelfile.net_facts(member.net),
            "preprocess": plain(member.preprocess.to_dict()),
            "card": modelfile.json_values(member.card),
            # The place of each of the ensemble's classes among the member's, where that differs.
            "order": None if order is None else order,
        }


def read_ensemble(
    path: Path,
    entries: Mapping[str, modelfile.Entry],
    header: Mapping[str, Any],
    task: Task,
    card: Mapping[str, Any],
) -> Ensemble:
    """The ensemble of a checked file.

    Raises:
        BadModelFile, StriateError: the header and the tensors contradict each other.
    """
    listed = modelfile.part(header, "ensemble").get("members")
    if not isinstance(listed, list) or not 2 <= len(listed) <= MOST:
        raise StriateError("the header's ensemble lists no members", allowed=f"2 to {MOST}")
    rest, models, names = dict(entries), [], []
    for number, facts in enumerate(listed, 1):
        if not isinstance(facts, dict) or not isinstance(facts.get("name"), str):
            raise StriateError(f"the header's member {number} is no table with a name")
        own, rest = modelfile.split_off(rest, f"member-{number}/")
        theirs = _task_of(task, facts.get("order"))
        net, preprocess = modelfile.restore(path, own, facts, theirs, lead=f"member-{number}/")
        model = Model(net.eval(), theirs, preprocess, modelfile.optional_part(facts, "card"))
        model.path = path
        models.append(model)
        names.append(facts["name"])
    if rest:
        raise BadModelFile(f"{str(path)!r} holds tensors of no member, such as {next(iter(rest))[:60]!r}")
    made = Ensemble(models, card, names)
    made.path = path
    return made


def average_weights(
    models: Sequence[Model], batches: Iterable[Tensor] | None = None, card: Mapping[str, Any] | None = None
) -> Model:
    """One model whose weights are the mean of several models' weights, each counting alike.

    The models are of one net and one preprocessing, as those of one run, or of runs from the same weights:
    nets trained apart from different weights do not average to a good one. Batch norm's statistics of the
    mean are not the mean of theirs: `batches`, training images as the net sees them (N, C, h, w), give them
    anew. Izmailov et al. 2018, arXiv:1803.05407, section 3.2; Wortsman et al. 2022, arXiv:2203.05482.

    Raises:
        StriateError: fewer than two models, or other nets, tasks, classes or preprocessing; batch norm
            without batches.
    """
    flat = [member for model in models for member in (model.members or (model,))]
    if len(flat) < 2:
        raise StriateError(f"an average of {len(flat)} model", allowed="at least 2")
    first = flat[0]
    for model in flat[1:]:
        _same_net(model, first)
    net = _copy(first)
    net.load_state_dict(average_states([model.net.state_dict() for model in flat]))
    if batches is not None:
        estimate_norms(net, batches)
    elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        raise StriateError(
            "the average of nets with batch norm wants training images for its statistics",
            hint="give the data that they were trained on",
        )
    about: dict[str, Any] = {key: first.card[key] for key in ("data", "recipe") if key in first.card}
    return Model(net.eval(), first.task, first.preprocess, {**about, **(card or {})})


def _copy(model: Model) -> nn.Module:
    import copy

    return copy.deepcopy(model.net)


def _fits(model: Model, first: Model) -> None:
    """Raise unless two models can answer together."""
    if model.task.name != first.task.name:
        raise StriateError(
            f"one model does {first.task.name}, another {model.task.name}", hint="join models of one task"
        )
    odd = sorted(set(model.classes) ^ set(first.classes))[:3]
    if odd or len(model.classes) != len(first.classes):
        raise StriateError(
            f"the models know different classes, such as {', '.join(map(repr, odd))}",
            hint="join models of the same classes",
        )
    if model.task.dense and _geometry(model.preprocess) != _geometry(first.preprocess):
        raise StriateError(
            f"models for {model.task.name} see images in different ways, so their masks do not lie on each "
            "other",
            hint="join models of one input size, crop and resize",
        )


def _same_net(model: Model, first: Model) -> None:
    _fits(model, first)
    ours, theirs = (modelfile.net_facts(one.net) for one in (first, model))
    differ = [key for key in ours if ours[key] != theirs[key]]
    shapes = [{k: tuple(v.shape) for k, v in one.net.state_dict().items()} for one in (first, model)]
    if differ or shapes[0] != shapes[1]:
        told = ", ".join(f"{key} {ours[key]!r} and {theirs[key]!r}" for key in differ) or "other weights"
        raise StriateError(
            f"the weights of different nets have no average: {told}", hint="average their posteriors"
        )
    if tuple(model.classes) != tuple(first.classes) or model.preprocess != first.preprocess:
        raise StriateError(
            "the models differ in preprocessing or in the order of classes",
            hint="average their posteriors",
        )


def _geometry(preprocess: Preprocess) -> tuple[Any, ...]:
    """All that makes the view of an image."""
    fields = ("size", "channels", "crop", "resize", "interpolation")
    fill = preprocess.fill if preprocess.border == "constant" else ()
    return (*(getattr(preprocess, name) for name in fields), fill)


def _order(model: Model, first: Model) -> list[int] | None:
    if tuple(model.classes) == tuple(first.classes):
        return None
    place = {label: number for number, label in enumerate(model.classes)}
    return [place[label] for label in first.classes]


def _task_of(task: Task, order: Any) -> Task:
    """The task of a member whose classes stand in another order."""
    if order is None:
        return task
    if not isinstance(order, list) or sorted(order, key=str) != sorted(range(len(task.classes)), key=str):
        raise StriateError("the order of a member's classes is no order of the ensemble's")
    classes = [""] * len(order)
    for number, place in enumerate(order):
        classes[place] = task.classes[number]
    return Task.from_settings({**task.settings(), "classes": classes, "class_weights": None})


def _common(models: Sequence[Model]) -> dict[str, Any]:
    """What the cards of all members say alike of their data, and the recipe of the first."""
    data = [json.dumps(plain(model.card.get("data")), sort_keys=True, default=str) for model in models]
    if len(set(data)) > 1 or not models[0].card.get("data"):
        return {}
    return {key: models[0].card[key] for key in ("data", "recipe") if key in models[0].card}
