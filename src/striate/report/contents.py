"""What a report holds: plain values and encoded pictures, of no room but this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Picture:
    """One encoded image (JPEG, PNG, GIF or WebP bytes) with its alternative text.

    `width` and `height` are pixels of the file; up to 64 pixels wide it is shown enlarged without smoothing.
    """

    data: bytes
    alt: str
    width: int
    height: int
    label: str = ""


@dataclass(frozen=True)
class Example:
    """One image with what the network said of it; several pictures are shown side by side.

    `confidence` is the probability of the prediction, `score` how well it went (such as IoU): 0 to 1.
    """

    pictures: tuple[Picture, ...]
    name: str = ""
    true: str = ""
    predicted: str = ""
    confidence: float | None = None
    score: float | None = None
    score_name: str = ""


@dataclass(frozen=True)
class Gallery:
    """Examples under one heading; `legend` names colours, "#rrggbb", such as those of the classes."""

    title: str
    note: str
    examples: tuple[Example, ...]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Headline:
    """The verdict: the main figure (0 to 1) with its 95 % interval, over `n` images of a split."""

    name: str
    value: float
    n: int
    split: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Fact:
    """A key figure: label, value as text with its unit, and a few words below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """One setting of the run; `changed` when it is not the default."""

    name: str
    value: str
    default: str = ""
    help: str = ""
    changed: bool = False


@dataclass(frozen=True)
class Curve:
    """Lines over the epochs: name of line -> values, one for each entry of `x`, None where not measured.

    `kind`: "number", "proportion" (0 to 1, shown in percent). `better`: "low", "high" or "" marks the best
    value of the last line. A curve whose low values are better may get a logarithmic axis.
    """

    title: str
    x: tuple[float, ...]
    lines: Mapping[str, tuple[float | None, ...]]
    kind: str = "number"
    better: str = ""
    unit: str = "epoch"


@dataclass(frozen=True)
class ClassTable:
    """One row a class: first column the name, then counts and proportions.

    `columns` holds (title, kind) with kind "text", "count", "proportion" or "bar" (a proportion,
    drawn as well); `intervals` the (low, high) of the bar column for each row, or None.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Confusion:
    """Counts (K rows of K): rows are the truth, columns the prediction.

    `cells` maps (row, column) to the images behind it, `unit` says what is counted ("images" or "pixels").
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    cells: Mapping[tuple[int, int], tuple[Example, ...]] = field(default_factory=dict)
    unit: str = "images"


@dataclass(frozen=True)
class Calibration:
    """Equal-width bins of confidence: count, mean confidence, accuracy (None where empty); the ECE."""

    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    ece: float


@dataclass(frozen=True)
class Panel:
    """Pictures of the inside of the network with their explanation; `tiles` are small and of equal size."""

    title: str
    note: str
    pictures: tuple[Picture, ...]
    tiles: bool = False


@dataclass(frozen=True)
class ReportData:
    """Everything in a report; what is empty is left out of the page."""

    title: str
    subtitle: str = ""
    created: str = ""
    version: str = ""
    headline: Headline | None = None
    facts: tuple[Fact, ...] = ()
    notices: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    curves: tuple[Curve, ...] = ()
    summary: tuple[Fact, ...] = ()
    class_table: ClassTable | None = None
    confusion: Confusion | None = None
    galleries: tuple[Gallery, ...] = ()
    calibration: Calibration | None = None
    inside: tuple[Panel, ...] = ()
    saliency: Gallery | None = None
    timing: tuple[Fact, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)  # where the time went, seconds
    data: tuple[str, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()  # (what it does, command line)
