"""The waist of the house: a Model is net + task + preprocessing + classes, in one file."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from striate import __version__, modelfile
from striate.core.errors import BadImage, BadModelFile, StriateError, first_line, unknown
from striate.core.files import place_of
from striate.core.machine import check_threads, device_called, processors
from striate.core.results import plain
from striate.core.runs import MODEL
from striate.data.preprocess import Preprocess
from striate.engines.chooser import AUTO, Engines, Left, check_name, nobody_knows
from striate.engines.engine import evaluating as evaluating
from striate.images.decode import header as image_header
from striate.images.decode import to_image
from striate.images.given import image_files as image_files
from striate.images.given import is_one, name_of, several
from striate.nets import weights
from striate.tasks.classification import Classification
from striate.tasks.task import Task

ON_ERROR = ("raise", "skip")


class Answers(list[Any]):
    """The answers to many images, in their order; `names` are the images', `bad` lists (name, reason).

    With on_error="skip" an unreadable image has None in its place.
    """

    def __init__(self, answers: Iterable[Any] = (), names: Iterable[str] = ()) -> None:
        super().__init__(answers)
        self.names = list(names)
        self.bad: list[tuple[str, str]] = []


class Model:
    """A trained net with all that it takes to use it.

    net: the network; task: what it answers; preprocess: how an image becomes its input;
    card: plain facts that travel with the weights (name, scores, origin, licence, recipe).
    path: the file that it was loaded from, else None. engine: what `predict` and `evaluate` run the net on:
    "auto" for the fastest that gives its answers, or the name of one; all else runs the net itself.
    members: the models of an `Ensemble`; none of a single model.
    """

    members: tuple[Model, ...] = ()

    def __init__(
        self, net: nn.Module, task: Task, preprocess: Preprocess, card: Mapping[str, Any] | None = None
    ) -> None:
        outputs = getattr(net, "classes", None)
        if isinstance(outputs, int) and outputs != len(task.classes):
            raise StriateError(
                f"the net gives {outputs} outputs for {len(task.classes)} classes",
                hint="reset its head with net.reset_head(classes)",
            )
        self.net = net
        self.task = task
        self.preprocess = preprocess
        self.card: dict[str, Any] = dict(card or {})
        self.path: Path | None = None
        self.engine = AUTO
        self._engines: Engines | None = None
        self._running: Engines | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order of the net's outputs."""
        return self.task.classes

    @property
    def device(self) -> torch.device:
        """Where the net's weights lie."""
        tensor = next(itertools.chain(self.net.parameters(), self.net.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def name(self) -> str:
        """What the model is called: by its card, its file (a run's by the folder), or its net."""
        if self.card.get("name"):
            return str(self.card["name"])
        if self.path is not None:
            return self.path.parent.name if self.path.name == MODEL else self.path.stem
        return str(getattr(self.net, "name", "") or type(self.net).__name__)

    def to(self, device: str | torch.device) -> Model:
        """Move the net's weights ("auto": to an accelerator if there is one); returns the model itself.

        Raises:
            StriateError: PyTorch does not know such a device, or this machine does not have it.
        """
        self.net.to(device_called(str(device)))
        return self

    def forward(self, views: NDArray[np.uint8] | Tensor, engines: Engines | None = None) -> Tensor:
        """The net's outputs for a batch of views (N, H, W, C) uint8, as `preprocess.view` gives them.

        Normalised, in evaluation mode, without gradients; float32, on the net's device. Prediction and
        evaluation both count by this path. The net's modes are left as they were found. engines: what runs
        the net; by default the net itself, or what `running` chose.
        """
        batch = torch.from_numpy(views) if isinstance(views, np.ndarray) else views
        images = self.preprocess.normalise(batch.to(self.device))
        engines = engines or self._running
        with torch.inference_mode():
            engine = engines.settled(images) if engines is not None else None
            if engine is not None:
                return engine(images).float()
            with evaluating(self.net):
                outputs: Tensor = self.net(images) if engines is None else engines(images)
                return outputs.float()

    def engines(self) -> Engines:
        """The engines of the net as it is now, of those that `engine` allows; what they learned is kept.

        Raises:
            StriateError: `engine` names none, or one that this machine does not have.
        """
        if self._engines is None or not self._engines.still_for(self.net, self.engine):
            self._engines = Engines(self.net, self.engine)
        return self._engines

    @contextmanager
    def running(self, left: Left = nobody_knows) -> Iterator[Engines]:
        """Inside the block `forward` runs on the fastest engine; `left(seen)` tells how many views remain.

        Raises:
            StriateError: as of `engines`.
        """
        before, engines = self._running, self.engines()
        self._running = engines
        try:
            with engines.passing(left):
                yield engines
        finally:
            self._running = before

    def predict(
        self,
        images: Any,
        *,
        top: int = 5,
        batch: int = 32,
        device: str | None = None,
        threads: int | None = None,
        on_error: str = "raise",
        engine: str | None = None,
    ) -> Any:
        """The task's answer for one image, or `Answers`, a list, for many.

        images: a path, encoded bytes, an array (H, W[, C]) uint8, a PIL image, or an iterable of them (an
        array (N, H, W, C) too); a folder stands for its image files in order of their paths. Iterables are
        read as they are needed and decoded in threads. An image goes the same way as in `evaluate`: the
        stored preprocessing, float32 logits, and of equal logits the lower class number. engine: sets
        `Model.engine`, what the net runs on.

        Raises:
            BadImage: an image cannot be decoded and `on_error` is "raise"; with "skip" it is listed in
                `Answers.bad` and None stands in its place.
            StriateError: an empty folder, or a setting out of range.
        """
        if device is not None:
            self.to(device)
        if engine is not None:
            self.engine = check_name(engine)
        settings: dict[str, Any] = {"top": top, "batch": batch, "threads": threads}
        if is_one(images):
            return next(iter(self.stream([images], **settings)))[1]
        answers = Answers()
        for name, answer in self.stream(several(images), on_error=on_error, **settings):
            if isinstance(answer, BadImage):
                answers.bad.append((name, str(answer)))
            answers.names.append(name)
            answers.append(None if isinstance(answer, BadImage) else answer)
        return answers

    def stream(
        self,
        images: Iterable[Any],
        *,
        top: int = 5,
        batch: int = 32,
        threads: int | None = None,
        on_error: str = "raise",
    ) -> Iterator[tuple[str, Any]]:
        """(name, answer) for each image of an endless or long iterable, in order, in flat memory.

        With on_error="skip" the answer for an unreadable image is its BadImage. Raises as `predict` does.
        """
        check_threads(threads)
        for name, value, least in (("batch", batch, 1), ("top", top, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise StriateError(f"{name} is {value!r}", allowed=f"a whole number, at least {least}")
        if on_error not in ON_ERROR:
            raise unknown("on-error", on_error, ON_ERROR)
        source = enumerate(images)
        total = len(images) if isinstance(images, Sized) else None
        waiting: deque[tuple[str, Future[Any]]] = deque()
        with (
            self.engines().passing(lambda seen: None if total is None else total - seen) as engines,
            ThreadPoolExecutor(threads or processors()) as pool,
        ):
            try:
                while True:
                    # One batch is decoded ahead while the net works on the batch before it.
                    for number, image in itertools.islice(source, 2 * batch - len(waiting)):
                        waiting.append((name_of(image, number), pool.submit(self._view, image)))
                    if not waiting:
                        return
                    parts = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
                    yield from self._answers(parts, top, on_error, engines)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _view(self, image: Any) -> tuple[Any, tuple[int, int]]:
        """The net's view of an image in any form, and the (height, width) that the image has in full."""
        full = None
        if isinstance(image, (bytearray, memoryview)):
            image = bytes(image)
        if self.task.dense and isinstance(image, (str, bytes, os.PathLike)):
            facts = image_header(image)
            full = (facts.height, facts.width)
        pixels = to_image(image, channels=self.preprocess.channels, at_least=self.preprocess.at_least())
        return self.preprocess.view(pixels), full or (pixels.shape[0], pixels.shape[1])

    def _shape(self, view: Any) -> tuple[Any, ...]:
        """What must be the same of views that run in one batch."""
        return tuple(view.shape)

    def _outputs(self, views: Sequence[Any], engines: Engines) -> Tensor:
        """The outputs for views of one shape."""
        return self.forward(np.stack(views), engines)

    def _answers(
        self, parts: list[tuple[str, Future[Any]]], top: int, on_error: str, engines: Engines
    ) -> Iterator[tuple[str, Any]]:
        """Run the views of one batch, those of one shape together, and answer in the order given."""
        answers: list[Any] = [None] * len(parts)
        shapes: dict[tuple[int, ...], list[int]] = {}
        views, sizes = {}, {}
        for place, (_, future) in enumerate(parts):
            try:
                views[place], sizes[place] = future.result()
            except BadImage as error:
                if on_error == "raise":
                    raise
                answers[place] = error
                continue
            shapes.setdefault(self._shape(views[place]), []).append(place)
        for places in shapes.values():
            outputs = self._outputs([views[place] for place in places], engines)
            decoded = self.task.decode(
                outputs, top=top, preprocess=self.preprocess, sizes=[sizes[place] for place in places]
            )
            for place, answer in zip(places, decoded, strict=True):
                answers[place] = answer
        for (name, _), answer in zip(parts, answers, strict=True):
            yield name, answer

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model as safetensors with a JSON header; the same model gives the same bytes.

        Raises:
            StriateError: the file cannot be written.
        """
        task = self.task.settings()
        card = modelfile.json_values(self.card)
        header = {
            "format": modelfile.FORMAT,
            "version": __version__,
            "net": modelfile.net_facts(self.net),
            "classes": task.pop("classes"),
            "task": task,
            "preprocess": plain(self.preprocess.to_dict()),
            "scores": card.pop("scores", {}),
            "card": card,
        }
        return modelfile.write(path, header, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """All that a file holds beside its header: the weights, and the arrays of the preprocessing."""
        arrays = self.preprocess.arrays
        kept = {} if arrays is None else arrays.on(torch.device("cpu"))
        return {**self.net.state_dict(), **{modelfile.ARRAYS + name: value for name, value in kept.items()}}

    def member(self, which: int | str) -> Model:
        """One model of an ensemble, by its number from 1 or its name; a single model has none and raises."""
        raise StriateError(f"member {which!r} of a single model", hint="only an ensemble has members")

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], *, device: str = "cpu", net: nn.Module | None = None
    ) -> Model:
        """A model from a file, a run folder, or by the name of a published net; in evaluation mode.

        net: for models of wrapped modules, the module that takes the weights. Random state is left alone.
        FILE#2 is the second member of an ensemble.

        Raises:
            BadModelFile: the file is damaged, of another kind, or does not fit its net; both sides are told.
            StriateError: there is no such file, folder or name.
        """
        path = place_of(source)
        if isinstance(source, str) and "#" in source and not path.exists():
            whole, _, which = source.rpartition("#")
            return cls.load(whole, device=device).member(which)
        if path.is_dir():
            path = path / MODEL
            if not path.is_file():
                raise StriateError(
                    f"{str(source)!r} holds no {MODEL}",
                    hint="give the folder of a finished run, or finish it with --resume",
                )
        if path.is_file():
            return _from_file(cls, path, net).to(device)
        if isinstance(source, str) and weights.is_published(source):
            return _published(cls, source).to(device)
        if (
            isinstance(source, str)
            and "+" in source
            and all(place_of(part).exists() for part in source.split("+"))
        ):
            raise StriateError(
                f"{source!r} names several models", hint="join them: striate ensemble A B --out FILE"
            )
        if (path.suffix and not weights.resembles(str(source))) or len(path.parts) > 1:
            raise StriateError(f"there is no file or folder {str(source)!r}", hint="check the path")
        raise unknown("model", source, weights.CARDS, hint="or give a run folder or a .safetensors file")


def load(source: str | os.PathLike[str], *, device: str = "cpu", net: nn.Module | None = None) -> Model:
    """A model from a file, a run folder, or by the name of a published net; see `Model.load`."""
    return Model.load(source, device=device, net=net)


def _from_file(kind: type[Model], path: Path, net: nn.Module | None) -> Model:
    entries, header = modelfile.read_table(path)
    if header is None:
        raise BadModelFile(
            f"{str(path)!r} holds weights but no Striate header",
            hint="build the net and load them with striate.nets.weights.load_into",
        )
    try:
        task = Task.from_settings({**modelfile.part(header, "task"), "classes": header.get("classes")})
        scores = modelfile.optional_part(header, "scores")
        card = {**modelfile.optional_part(header, "card"), "scores": scores}
        if "ensemble" in header:
            from striate.ensemble import read_ensemble

            return read_ensemble(path, entries, header, task, card)
        found, preprocess = modelfile.restore(path, entries, header, task, net=net)
        model = kind(found.eval(), task, preprocess, card)
        model.path = path
        return model
    except BadModelFile:
        raise
    except StriateError as error:
        raise BadModelFile(f"{str(path)!r}: {error}") from error
    except (
        TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError,
    ) as error:  # fmt: skip
        reason = first_line(error)
        raise modelfile.broken(path, f"{type(error).__name__}: {reason}") from error


def _published(kind: type[Model], name: str) -> Model:
    """The model of a published weight card."""
    card = weights.published(name)
    facts = {
        key: plain(getattr(card, key)) for key in ("name", "data", "scores", "licence", "origin", "sha256")
    }
    task = Classification(card.classes)
    return kind(weights.restore(card), task, Preprocess.from_dict(card.preprocess), facts)
