"""The waist of the house: a Model is net + task + preprocessing + classes, in one file."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from striate import __version__, modelfile
from striate.core.errors import BadImage, BadModelFile, StriateError, unknown
from striate.core.machine import processors
from striate.core.results import plain
from striate.core.runs import MODEL
from striate.data.preprocess import Preprocess
from striate.images.decode import header as image_header
from striate.images.decode import to_image
from striate.nets import weights
from striate.tasks.classification import Classification
from striate.tasks.task import Task

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
ON_ERROR = ("raise", "skip")
DEVICES = ("auto", "cpu", "cuda", "mps")


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
    path: the file that it was loaded from, else None.
    """

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

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order of the net's outputs."""
        return self.task.classes

    @property
    def device(self) -> torch.device:
        """Where the net's weights lie."""
        tensor = next(itertools.chain(self.net.parameters(), self.net.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def to(self, device: str | torch.device) -> Model:
        """Move the net's weights ("auto": to an accelerator if there is one); returns the model itself.

        Raises:
            StriateError: PyTorch does not know such a device, or this machine does not have it.
        """
        if device == "auto":
            mps = torch.backends.mps.is_available()
            device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        try:
            place = torch.device(device)
        except RuntimeError:
            raise unknown("device", device, DEVICES) from None
        try:
            self.net.to(place)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise StriateError(f"device {str(device)!r} is not there", hint="give 'auto' or 'cpu'") from error
        return self

    def forward(self, views: NDArray[np.uint8] | Tensor) -> Tensor:
        """The net's outputs for a batch of views (N, H, W, C) uint8, as `preprocess.view` gives them.

        Normalised, in evaluation mode, without gradients; float32, on the net's device. Prediction and
        evaluation both count by this path. The net's modes are left as they were found.
        """
        batch = torch.from_numpy(views) if isinstance(views, np.ndarray) else views
        images = self.preprocess.normalise(batch.to(self.device))
        with evaluating(self.net), torch.inference_mode():
            outputs: Tensor = self.net(images)
            return outputs.float()

    def predict(
        self,
        images: Any,
        *,
        top: int = 5,
        batch: int = 32,
        device: str | None = None,
        threads: int | None = None,
        on_error: str = "raise",
    ) -> Any:
        """The task's answer for one image, or `Answers`, a list, for many.

        images: a path, encoded bytes, an array (H, W[, C]) uint8, a PIL image, or an iterable of them (an
        array (N, H, W, C) too); a folder stands for its image files in order of their paths. Iterables are
        read as they are needed and decoded in threads. An image goes the same way as in `evaluate`: the
        stored preprocessing, float32 logits, and of equal logits the lower class number.

        Raises:
            BadImage: an image cannot be decoded and `on_error` is "raise"; with "skip" it is listed in
                `Answers.bad` and None stands in its place.
            StriateError: an empty folder, or a setting out of range.
        """
        if device is not None:
            self.to(device)
        settings: dict[str, Any] = {"top": top, "batch": batch, "threads": threads}
        if _single(images):
            return next(iter(self.stream([images], **settings)))[1]
        answers = Answers()
        for name, answer in self.stream(_many(images), on_error=on_error, **settings):
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
        for name, value, least in (("batch", batch, 1), ("top", top, 1), ("threads", threads or 0, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise StriateError(f"{name} is {value!r}", allowed=f"a whole number, at least {least}")
        if on_error not in ON_ERROR:
            raise unknown("on-error", on_error, ON_ERROR)
        source = enumerate(images)
        waiting: deque[tuple[str, Future[Any]]] = deque()
        with ThreadPoolExecutor(threads or processors()) as pool:
            try:
                while True:
                    # One batch is decoded ahead while the net works on the batch before it.
                    for number, image in itertools.islice(source, 2 * batch - len(waiting)):
                        waiting.append((_name(image, number), pool.submit(self._view, image)))
                    if not waiting:
                        return
                    parts = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
                    yield from self._answers(parts, top, on_error)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _view(self, image: Any) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The net's view of an image in any form, and the (height, width) that the image has in full."""
        full = None
        if isinstance(image, (bytearray, memoryview)):
            image = bytes(image)
        if self.task.dense and isinstance(image, (str, bytes, os.PathLike)):
            facts = image_header(image)
            full = (facts.height, facts.width)
        pixels = to_image(image, channels=self.preprocess.channels, at_least=self.preprocess.at_least())
        return self.preprocess.view(pixels), full or (pixels.shape[0], pixels.shape[1])

    def _answers(
        self, parts: list[tuple[str, Future[Any]]], top: int, on_error: str
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
            shapes.setdefault(views[place].shape, []).append(place)
        for places in shapes.values():
            outputs = self.forward(np.stack([views[place] for place in places]))
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
        return modelfile.write(path, header, self.net.state_dict())

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], *, device: str = "cpu", net: nn.Module | None = None
    ) -> Model:
        """A model from a file, a run folder, or by the name of a published net; in evaluation mode.

        net: for models of wrapped modules, the module that takes the weights. Random state is left alone.

        Raises:
            BadModelFile: the file is damaged, of another kind, or does not fit its net; both sides are told.
            StriateError: there is no such file, folder or name.
        """
        path = Path(source)
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
        if (path.suffix and not weights.resembles(str(source))) or len(path.parts) > 1:
            raise StriateError(f"there is no file or folder {str(source)!r}", hint="check the path")
        raise unknown("model", source, weights.CARDS, hint="or give a run folder or a .safetensors file")


def load(source: str | os.PathLike[str], *, device: str = "cpu", net: nn.Module | None = None) -> Model:
    """A model from a file, a run folder, or by the name of a published net; see `Model.load`."""
    return Model.load(source, device=device, net=net)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module's mode is what it was."""
    modes = [(module, module.training) for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _from_file(kind: type[Model], path: Path, net: nn.Module | None) -> Model:
    entries, header = modelfile.read_table(path)
    if header is None:
        raise BadModelFile(
            f"{str(path)!r} holds weights but no Striate header",
            hint="build the net and load them with striate.nets.weights.load_into",
        )
    try:
        parts = {name: modelfile.part(header, name) for name in ("net", "task", "preprocess")}
        task = Task.from_settings({**parts["task"], "classes": header.get("classes")})
        preprocess = Preprocess.from_dict(parts["preprocess"])
        modelfile.check_size(preprocess.size)
        if net is None:
            net = modelfile.build(path, entries, task, parts["net"])
        else:
            net.load_state_dict(modelfile.read_tensors(path, entries, net), strict=True)
        card = {
            **modelfile.optional_part(header, "card"),
            "scores": modelfile.optional_part(header, "scores"),
        }
        model = kind(net.eval(), task, preprocess, card)
        model.path = path
        return model
    except BadModelFile:
        raise
    except StriateError as error:
        raise BadModelFile(f"{str(path)!r}: {error}") from error
    except (
        TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError,
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [""])[0][:120]
        raise modelfile.broken(path, f"{type(error).__name__}: {reason}") from error


def _published(kind: type[Model], name: str) -> Model:
    """The model of a published weight card."""
    card = weights.published(name)
    facts = {
        key: plain(getattr(card, key)) for key in ("name", "data", "scores", "licence", "origin", "sha256")
    }
    task = Classification(card.classes)
    return kind(weights.restore(card), task, Preprocess.from_dict(card.preprocess), facts)


def _single(images: Any) -> bool:
    if isinstance(images, (str, os.PathLike)):
        return not Path(images).is_dir()
    if isinstance(images, (bytes, bytearray, memoryview)):
        return True
    if hasattr(images, "__array__") or hasattr(images, "convert"):
        return len(getattr(images, "shape", ())) < 4
    if not isinstance(images, Iterable):
        raise StriateError(
            f"an image is given as {type(images).__name__}",
            allowed="a path, bytes, an array, a PIL image, or an iterable of them",
        )
    return False


def _many(images: Any) -> Iterable[Any]:
    return image_files(images) if isinstance(images, (str, os.PathLike)) else iter(images)


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files below a folder, in order of their paths.

    Raises:
        StriateError: there is none.
    """
    found = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()
    )
    if not found:
        raise StriateError(f"there is no image in the folder {os.fspath(folder)!r}", allowed=ENDINGS)
    return found


def _name(image: Any, number: int) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
