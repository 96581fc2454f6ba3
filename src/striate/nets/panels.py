"""The layers inside one stage as boxes in lanes: chains stay in a lane, each further branch gets its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from striate.nets.blocks import Inside, Node
from striate.nets.svg import STRIPE, front, group, path, polygon, text, width_of

GAP, LANE_GAP, LABEL, END = 32.0, 10.0, 16.0, 8.0
LEAST, LEAST_HIGH, ROUND, BAR, LANE = 5.0, 6.0, 8.0, 7.0, 18.0
KIND = 9.5  # the size of the labels' type


@dataclass
class _Spot:
    """A node of the layout: a node of the stage, or a point of a wire that passes by (node None)."""

    node: Node | None
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    rank: int = 0
    lane: int = -1
    x: float = 0.0
    y: float = 0.0
    wide: float = 0.0
    high: float = 0.0
    # The edges of its column: between columns wires change their lane.
    left: float = 0.0
    right: float = 0.0


def panel(
    inside: Inside, per_pixel: float, per_map: float, words: Callable[[str], str]
) -> tuple[list[str], float, float]:
    """The stage's graph as SVG parts from (0, 0), and its width and height.

    per_pixel and per_map are the scales of the boxes; `words` shortens the texts of layers.
    """
    spots = _spots(inside)
    _ranks(spots)
    spots = _with_passing(spots)
    _lanes(spots)
    for spot in spots:
        _measure(spot, per_pixel, per_map)
    wide, high = _place(spots, words)
    parts = [_wire(spots[a], spots[b]) for a in range(len(spots)) for b in spots[a].after]
    for spot in spots:
        parts += _drawn(spot, words)
    return parts, wide, high


def _spots(inside: Inside) -> list[_Spot]:
    spots = [_Spot(node, list(node.inputs)) for node in inside.nodes]
    for place, spot in enumerate(spots):
        for source in spot.before:
            spots[source].after.append(place)
    return spots


def _ranks(spots: list[_Spot]) -> None:
    """The column of each: one more than that of the last of its inputs. Inputs come before their users."""
    for spot in spots:
        spot.rank = max((spots[source].rank + 1 for source in spot.before), default=0)


def _with_passing(spots: list[_Spot]) -> list[_Spot]:
    """Wires over several columns get a point in each, so that they keep a lane of their own."""
    made = list(spots)
    for target in range(len(spots)):
        for order, source in enumerate(spots[target].before):
            last = source
            for rank in range(spots[source].rank + 1, spots[target].rank):
                made.append(_Spot(None, [last], [], rank))
                new = len(made) - 1
                place = made[last].after
                place[place.index(target)] = new
                made[new].after = [target]
                last = new
            spots[target].before[order] = last
    return made


def _lanes(spots: list[_Spot]) -> None:
    """Depth first: the first way on stays in the lane, each further one takes a new lane below."""
    used = 0

    def enter(place: int, lane: int) -> None:
        nonlocal used
        spots[place].lane = lane
        for order, follower in enumerate(spots[place].after):
            if spots[follower].lane < 0:
                used += order > 0
                enter(follower, lane if order == 0 else used)

    enter(0, 0)


def _measure(spot: _Spot, per_pixel: float, per_map: float) -> None:
    node = spot.node
    if node is None:
        return
    stripes = STRIPE * len(node.stripes)
    if node.role == "join":
        spot.wide = (BAR if node.text == "concat" else 2 * ROUND) + stripes
        spot.high = 0.0 if node.text == "concat" else 2 * ROUND
    elif node.role in ("in", "out"):
        spot.wide = END
    else:
        side = node.shape[1] if len(node.shape) == 3 else 1
        spot.wide = max(LEAST, node.shape[0] * per_map) + stripes
        spot.high = max(LEAST_HIGH, side * per_pixel)


def _place(spots: list[_Spot], words: Callable[[str], str]) -> tuple[float, float]:
    """Coordinates of all; the size of the whole."""
    lanes = max(spot.lane for spot in spots) + 1
    heights = [0.0] * lanes
    for spot in spots:
        label = LABEL if spot.node is not None and _label(spot.node, words) else 0.0
        heights[spot.lane] = max(heights[spot.lane], max(spot.high, LANE) + label)
    tops = [sum(heights[:lane]) + LANE_GAP * lane for lane in range(lanes)]
    x = 0.0
    for rank in range(max(spot.rank for spot in spots) + 1):
        column = [spot for spot in spots if spot.rank == rank]
        wide = max(max(s.wide, _label_width(s, words)) for s in column)
        for spot in column:
            spot.x, spot.left, spot.right = x + (wide - spot.wide) / 2, x, x + wide
        x += wide + GAP
    for spot in sorted(spots, key=lambda s: s.rank):
        room = heights[spot.lane]
        label = max(
            (LABEL for s in spots if s.lane == spot.lane and s.node is not None and _label(s.node, words)),
            default=0.0,
        )
        spot.y = tops[spot.lane] + (room - label) / 2
        if len(spot.before) > 1 and spot.node is not None and spot.node.text == "concat":
            ys = [spots[source].y for source in spot.before]
            spot.y = (min(ys) + max(ys)) / 2
            spot.high = max(ys) - min(ys) + LANE
        elif len(spot.before) == 1 and len(spots[spot.before[0]].after) == 1:
            spot.y = spots[spot.before[0]].y
    return x - GAP, sum(heights) + LANE_GAP * (lanes - 1)


def _label(node: Node, words: Callable[[str], str]) -> str:
    return words(node.text) if node.role not in ("in", "out", "join") else ""


def _label_width(spot: _Spot, words: Callable[[str], str]) -> float:
    return width_of(_label(spot.node, words), KIND) if spot.node is not None else 0.0


def _wire(a: _Spot, b: _Spot) -> str:
    x0, x1 = a.x + a.wide, b.x
    y0, y1 = a.y, b.y
    if b.node is not None and b.node.text == "concat" and b.node.role == "join":
        y1 = y0
    if abs(y0 - y1) < 0.01:
        return path(f"M{x0:.2f} {y0:.2f}H{x1:.2f}")
    middle = (a.right + b.left) / 2
    return path(
        f"M{x0:.2f} {y0:.2f}H{a.right:.2f}C{middle:.2f} {y0:.2f} {middle:.2f} {y1:.2f} {b.left:.2f} {y1:.2f}"
        f"H{x1:.2f}"
    )


def _drawn(spot: _Spot, words: Callable[[str], str]) -> list[str]:
    node, x, y = spot.node, spot.x, spot.y
    if node is None or node.role == "in":
        # A wire that passes by goes on through its point.
        return [path(f"M{x:.2f} {y:.2f}H{x + spot.wide:.2f}")] if spot.wide else []
    if node.role == "out":
        return [polygon([(x, y - 4), (x + END, y), (x, y + 4)], "tip")]
    told = "×".join(map(str, (*node.shape[1:], *node.shape[:1])))
    if node.role == "join":
        return [group(_join(spot, node), f"{node.text} {told}")]
    body = spot.wide - STRIPE * len(node.stripes)
    top = y - spot.high / 2
    parts = front(x, top, body, spot.high, node.role, node.stripes)
    label = _label(node, words)
    if label:
        parts.append(
            f'<text x="{x + spot.wide / 2:.2f}" y="{top + spot.high + 12:.2f}" class="small middle" '
            f'style="font-size: {KIND}px">{label}</text>'
        )
    return [group(parts, f"{node.text}; {told}")]


def _join(spot: _Spot, node: Node) -> list[str]:
    x, y = spot.x, spot.y
    if node.text == "concat":
        body = spot.wide - STRIPE * len(node.stripes)
        return front(x, y - spot.high / 2, body, spot.high, "branches", node.stripes)
    parts = [f'<circle cx="{x + ROUND:.2f}" cy="{y:.2f}" r="{ROUND}" class="join"/>']
    parts.append(text(x + ROUND, y + 4, node.text, "times middle"))
    return [*parts, *front(x + 2 * ROUND, y - ROUND, 0, 2 * ROUND, "plain", node.stripes)]
