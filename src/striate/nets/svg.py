"""Parts of a drawing as SVG text: boxes, texts, arrows, and one style sheet for light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# Role -> what the legend says.
LEGEND = {
    "input": "picture", "convolution": "convolution", "pool": "pooling", "connected": "fully connected",
    "sum": "residual stage", "branches": "stage of branches", "several": "several layers", "norm": "norm",
    "activation": "activation", "dropout": "dropout", "other": "other, keeps the shape",
}  # fmt: skip
STYLE = """
svg { --paper: #fcfbf9; --raised: #ffffff; --ink: #1b1d22; --soft: #565b66; --line: #d9d6cf;
  --input: #8b93a1; --convolution: #3f6fe0; --pool: #e2703a; --connected: #2f9e6e; --sum: #8257d6;
  --branches: #0f97a8; --several: #4f66a8; --norm: #a3aab6; --activation: #e0ac1f; --dropout: #c9ccd3;
  --other: #b98ea7; --plain: #a3aab6; }
@media (prefers-color-scheme: dark) { svg { --paper: #14161b; --raised: #1b1e25; --ink: #e9eaed;
  --soft: #a7adb9; --line: #363b46; --input: #7d8697; --convolution: #5b87f0; --pool: #ec8552;
  --connected: #45b885; --sum: #9b78e6; --branches: #2bb0c0; --several: #7389cc; --norm: #788192;
  --activation: #e6bb45; --dropout: #575d69; --other: #a97d97; --plain: #788192; } }
text { font-family: Inter, "Helvetica Neue", "Segoe UI", system-ui, Roboto, "Liberation Sans", Arial,
  sans-serif; fill: var(--ink); font-size: 11px; }
.title { font-size: 24px; font-weight: 650; letter-spacing: -.02em; }
.head { font-size: 14px; font-weight: 600; }
.name { font-weight: 600; }
.soft { fill: var(--soft); }
.small { font-size: 10px; fill: var(--soft); }
.times { font-size: 13px; font-weight: 700; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.paper { fill: var(--paper); }
.card { fill: var(--raised); stroke: var(--line); }
.wire { fill: none; stroke: var(--soft); stroke-width: 1.25; }
.tip { fill: var(--soft); }
.join { fill: var(--raised); stroke: var(--soft); stroke-width: 1.25; }
.rule { stroke: var(--line); }
.bar { stroke: var(--ink); stroke-width: 1.5; }
.edge { stroke: var(--paper); stroke-width: .75; stroke-linejoin: round; }
.lid { fill: #fff; fill-opacity: .38; }
.side { fill: #000; fill-opacity: .22; }
"""
# The mean width of a letter, in parts of the size of the type: of the widest of the fonts above.
LETTER, BOLD = 0.61, 0.69


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, style: str = "") -> str:
    """One line of text whose baseline is at (x, y)."""
    return f'<text x="{number(x)}" y="{number(y)}" class="{style}">{escape(words, quote=False)}</text>'


def width_of(words: str, size: float = 11, *, bold: bool = False) -> float:
    """About how wide a text is at most, in pixels."""
    return (BOLD if bold else LETTER) * size * len(words)


def rectangle(
    x: float, y: float, wide: float, high: float, style: str, *, fill: str = "", round_: float = 0
) -> str:
    """A rectangle; `fill` names a role's colour."""
    paint = f' style="fill: var(--{fill})"' if fill else ""
    corner = f' rx="{number(round_)}"' if round_ else ""
    return (
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(wide)}" height="{number(high)}"{corner} '
        f'class="{style}"{paint}/>'
    )


def polygon(points: Sequence[tuple[float, float]], style: str, *, fill: str = "") -> str:
    """A closed shape; `fill` names a role's colour."""
    paint = f' style="fill: var(--{fill})"' if fill else ""
    told = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return f'<polygon points="{told}" class="{style}"{paint}/>'


def line(x0: float, y0: float, x1: float, y1: float, style: str) -> str:
    """A straight line."""
    return f'<line x1="{number(x0)}" y1="{number(y0)}" x2="{number(x1)}" y2="{number(y1)}" class="{style}"/>'


def path(points: str) -> str:
    """A wire along an SVG path."""
    return f'<path d="{points}" class="wire"/>'


def group(parts: Sequence[str], told: str = "") -> str:
    """Parts together; `told` shows when the pointer rests on them."""
    title = f"<title>{escape(told, quote=False)}</title>" if told else ""
    return f"<g>{title}{''.join(parts)}</g>"


def slab(
    x: float, y: float, wide: float, high: float, away: tuple[float, float], role: str, stripes: Sequence[str]
) -> list[str]:
    """A block in oblique projection: its front with stripes, its top and its right side."""
    dx, dy = away
    total = wide + STRIPE * len(stripes)
    top = [(x, y), (x + dx, y - dy), (x + total + dx, y - dy), (x + total, y)]
    side = [(x + total, y), (x + total + dx, y - dy), (x + total + dx, y - dy + high), (x + total, y + high)]
    parts = [polygon(top, "edge", fill=role), polygon(top, "lid")]
    parts += [polygon(side, "edge", fill=role), polygon(side, "side")]
    return [*parts, *front(x, y, wide, high, role, stripes)]


STRIPE = 3.0


def front(x: float, y: float, wide: float, high: float, role: str, stripes: Sequence[str]) -> list[str]:
    """A flat box with the stripes of the layers that follow it at its right edge."""
    parts = [rectangle(x, y, wide, high, "edge", fill=role)]
    for place, stripe in enumerate(stripes):
        parts.append(rectangle(x + wide + STRIPE * place, y, STRIPE, high, "", fill=stripe))
    return parts


def document(wide: float, high: float, title: str, told: str, parts: Sequence[str]) -> str:
    """A whole drawing as a file of its own."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{number(wide)}" height="{number(high)}" '
        f'viewBox="0 0 {number(wide)} {number(high)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title, quote=False)}</title><desc>{escape(told, quote=False)}</desc>"
        f"<style>{STYLE}</style>{rectangle(0, 0, wide, high, 'paper')}{''.join(parts)}</svg>\n"
    )
