"""A net as a drawing to scale: blocks as high as their maps, as thick as they are deep, branches inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from striate.nets.blocks import Block, Inside, blocks
from striate.nets.cost import Cost, short
from striate.nets.net import NETS, Size
from striate.nets.panels import panel
from striate.nets.svg import (
    LEGEND,
    STRIPE,
    document,
    group,
    line,
    rectangle,
    slab,
    text,
    width_of,
)

WIDE, MARGIN = 1440.0, 40.0
# The highest map, the thickest map, the longest vector, and the least of both, in pixels.
HIGH, THICK, LONG, LEAST, LEAST_HIGH = 176.0, 60.0, 190.0, 2.0, 5.0
# How far a map's width goes to the right and up.
AWAY = (0.26, 0.15)
GAP, HEAD, LABELS = 14.0, 84.0, 58.0
BETWEEN_CARDS, PADDING, TITLE = 16.0, 14.0, 54.0


@dataclass(frozen=True)
class _Scale:
    """Pixels of the drawing for a pixel of a map, and for a map (unit) of depth."""

    side: float
    depth: float

    def high(self, side: int) -> float:
        return max(LEAST_HIGH, side * self.side)

    def thick(self, depth: int) -> float:
        return max(LEAST, depth * self.depth)


def draw(net: nn.Module, size: Size | None = None) -> str:
    """The net as one SVG file, light or dark with the reader's settings, for pictures of `size`.

    Above, every stage as a block to scale: the height is the map's, the thickness the number of maps; layers
    that keep the shape (norms, activations, dropout) are stripes. Equal residual or inception stages after
    each other are drawn once with their number. Below, the branches inside of these, to a scale of their own.

    Raises:
        StriateError: the net cannot take such a picture.
    """
    return render(*blocks(net, size), name=str(getattr(net, "name", type(net).__name__)))


def render(found: Sequence[Block], table: Cost, *, name: str) -> str:
    """The drawing of blocks and their cost; see `draw`."""
    scale = _scale(found)
    parts, y = _overview(found, scale, HEAD)
    inner, y = _insides(found, y)
    parts += inner
    parts += _legend(found, scale, y + 10)
    facts = _facts(table)
    heading = [text(MARGIN, 46, name, "title"), text(MARGIN, 66, _paper(name), "soft")]
    heading.append(text(WIDE - MARGIN, 46, facts, "soft end"))
    told = ", ".join(f"{block.label} {_shape(block.shape)}" for block in found)
    return document(WIDE, y + 64, f"{name}: {facts}", told, [*heading, *parts])


def _scale(found: Sequence[Block]) -> _Scale:
    highest = max(block.sides[0] for block in found)
    maps = [block.depth for block in found if block.sides != (1, 1)]
    everything = [block.depth for block in found]
    return _Scale(HIGH / highest, min(THICK / max(maps, default=1), LONG / max(everything)))


def _facts(table: Cost) -> str:
    height, width = table.size
    return (
        f"{short(table.params)} parameters · {short(table.macs)} multiply-adds · "
        f"input {height}×{width}×{table.in_channels}"
    )


def _paper(name: str) -> str:
    return str(NETS.entry(name).capabilities.get("paper", "")) if name in NETS else ""


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, (*shape[1:], *shape[:1])))


def _words(block: Block) -> str:
    """A layer's text without what its colour says already."""
    return "" if block.inside is not None or block.role == "connected" else _trim(block.text)


def _trim(words: str) -> str:
    words = re.sub(r"(?<=\d)x(?=\d)", "×", words)
    for old, new in ((" conv,", ","), ("fc, ", ""), (" pool", ""), ("depthwise", "dw"), ("global ", "")):
        words = words.replace(old, new)
    return words


def _overview(found: Sequence[Block], scale: _Scale, top: float) -> tuple[list[str], float]:
    """All blocks in rows; the parts and the y below them."""
    rows: list[list[tuple[Block, float, tuple[str, ...]]]] = [[]]
    x = MARGIN
    last: tuple[int, ...] = ()
    for block in found:
        labels = _labels(block, last)
        last = block.shape
        high = scale.high(block.sides[0])
        body = scale.thick(block.depth) + STRIPE * len(block.stripes)
        wide = max(
            body + GAP,
            *(width_of(words, 10 + (i == 0), bold=i == 0) + 13 for i, words in enumerate(labels)),
        )
        if x + wide + AWAY[0] * high > WIDE - MARGIN and rows[-1]:
            rows.append([])
            x = MARGIN
        rows[-1].append((block, x, labels))
        x += wide
    parts: list[str] = []
    for row in rows:
        tallest = max(scale.high(block.sides[0]) for block, _, _ in row)
        deep = max(AWAY[1] * scale.high(block.sides[1]) for block, _, _ in row)
        middle = top + deep + tallest / 2
        bottom = top + deep + tallest
        for block, at, labels in row:
            parts.append(_block(block, scale, at, middle))
            for place, words in enumerate(labels):
                style = "name" if place == 0 else "small"
                parts.append(text(at, bottom + 20 + 14 * place, words, style))
        top = bottom + LABELS + 18
    return parts, top


def _labels(block: Block, last: tuple[int, ...]) -> tuple[str, ...]:
    times = f"  ×{len(block.names)}" if len(block.names) > 1 else ""
    lines = [block.short_label + times]
    if words := _words(block):
        lines.append(words)
    if block.shape != last:
        lines.append(_shape(block.shape))
    return tuple(lines)


def _block(block: Block, scale: _Scale, x: float, middle: float) -> str:
    high, wide = scale.high(block.sides[0]), scale.thick(block.depth)
    across = scale.high(block.sides[1])
    away = (AWAY[0] * across, AWAY[1] * across)
    parts = slab(x, middle - high / 2, wide, high, away, block.role, block.stripes)
    told = f"{block.label}: {block.text or 'picture'}; {_shape(block.shape)}"
    if block.parameters or block.multiply_adds:
        told += f"; {block.parameters:,} parameters; {block.multiply_adds:,} multiply-adds"
    return group(parts, told)


def _insides(found: Sequence[Block], top: float) -> tuple[list[str], float]:
    """A card for each different stage of several layers, in rows; the parts and the y below them."""
    shown = [block for block in found if block.inside is not None and len(block.inside.nodes) > 2]
    if not shown:
        return [], top
    nodes = [node for block in shown for node in _of(block).nodes]
    highest = max((node.shape[1] for node in nodes if len(node.shape) == 3), default=1)
    deepest = max((node.shape[0] for node in nodes if node.shape), default=1)
    parts = [
        line(MARGIN, top, WIDE - MARGIN, top, "rule"),
        text(MARGIN, top + 28, "Inside the stages", "head"),
    ]
    x, y, tallest = MARGIN, top + 44, 0.0
    for block in shown:
        drawn, wide, high = panel(_of(block), 44.0 / highest, 46.0 / deepest, _trim)
        title = block.label + (f"  ×{len(block.names)}" if len(block.names) > 1 else "")
        facts = f"{_shape(block.before)} → {_shape(block.shape)} · {short(block.parameters)} parameters"
        wide = max(wide, width_of(title, bold=True), width_of(facts, 10)) + 2 * PADDING
        high += TITLE + PADDING
        if x + wide > WIDE - MARGIN and x > MARGIN:
            x, y, tallest = MARGIN, y + tallest + BETWEEN_CARDS, 0.0
        parts.append(rectangle(x, y, wide, high, "card", round_=8))
        parts.append(text(x + PADDING, y + 22, title, "name"))
        parts.append(text(x + PADDING, y + 37, facts, "small"))
        parts.append(f'<g transform="translate({x + PADDING:.2f} {y + TITLE:.2f})">{"".join(drawn)}</g>')
        x += wide + BETWEEN_CARDS
        tallest = max(tallest, high)
    return parts, y + tallest + 24


def _of(block: Block) -> Inside:
    assert block.inside is not None  # the caller has chosen such blocks
    return block.inside


def _legend(found: Sequence[Block], scale: _Scale, top: float) -> list[str]:
    used = [block.role for block in found] + [stripe for block in found for stripe in block.stripes]
    for block in found:
        for node in _of(block).nodes if block.inside is not None else ():
            used += [node.role, *node.stripes]
    parts = [line(MARGIN, top - 10, WIDE - MARGIN, top - 10, "rule")]
    x, y = MARGIN, top + 18
    for role, words in LEGEND.items():
        if role in used:
            stripe = role in ("norm", "activation", "dropout", "other")
            parts.append(rectangle(x, y - 10, STRIPE if stripe else 12, 12, "", fill=role))
            x += STRIPE if stripe else 12
            parts.append(text(x + 6, y, words, "soft"))
            x += width_of(words) + 26
    side = _round(30 / scale.side)
    maps = _round(40 / scale.depth)
    x = max(x + 10, WIDE - MARGIN - 280)
    parts.append(line(x, y - 10, x, y - 10 + side * scale.side, "bar"))
    parts.append(text(x + 8, y, f"{side} pixel{'s' * (side > 1)} of a map", "soft"))
    x += 130
    parts.append(line(x, y - 4, x + maps * scale.depth, y - 4, "bar"))
    parts.append(text(x + maps * scale.depth + 8, y, f"{maps} map{'s' * (maps > 1)}", "soft"))
    return parts


def _round(value: float) -> int:
    """The power of two at or below a length, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
