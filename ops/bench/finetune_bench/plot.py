"""Finished jobs over time as an SVG picture, drawn by hand: it needs no plotting library."""

from collections.abc import Sequence
from html import escape

from finetune_bench.cases import Case
from finetune_bench.contestants import CONTESTANTS
from finetune_bench.measures import Result

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 48, 44
COLOURS = ("#d1495b", "#edae49", "#8d6a9f", "#00798c", "#30638e", "#003d5b")
IDEAL = "#777777"


def svg(case: Case, results: Sequence[Result]) -> str:
    """Return the picture: one step curve for each result, and the best that the limit allows."""
    end = max([case.shortest, *(result.finish_times[-1] for result in results if result.finish_times)]) * 1.03
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(time: float, number: float) -> str:
        return f"{LEFT + across * time / end:.1f},{TOP + up * (1 - number / case.jobs):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        "<style>text { font-size: 12px }</style>",
        f"<title>{escape(case.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" style="font-size: 14px; font-weight: bold">{escape(case.title)}</text>',
    ]
    parts += _axes(case, end, across, up)
    best = f"{place(case.training, 0)} {place(case.shortest, case.jobs)}"
    parts.append(f'<polyline points="{best}" fill="none" stroke="{IDEAL}" stroke-dasharray="5 4"/>')
    legend = [(IDEAL, "the limit's ceiling")]
    for result, colour in zip(results, COLOURS, strict=False):
        points = [place(0, 0)]
        for number, time in enumerate(result.finish_times):
            points += [place(time, number), place(time, number + 1)]
        points.append(place(end, result.finished))
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        legend.append((colour, CONTESTANTS[result.contestant].title))
    parts += _legend(legend)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _axes(case: Case, end: float, across: int, up: int) -> list[str]:
    base = TOP + up
    lines = []
    for number in _ticks(case.jobs):
        y = base - up * number / case.jobs
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + across}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number:g}</text>')
    for time in _ticks(end):
        x = LEFT + across * time / end
        lines.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{time:g}</text>')
    lines.append(f'<line x1="{LEFT}" y1="{base}" x2="{LEFT + across}" y2="{base}" stroke="#333333"/>')
    lines.append(
        f'<text x="{LEFT + across}" y="{base + 34}" text-anchor="end">seconds ({case.scale:g} times faster than life)'
        "</text>"
    )
    lines.append(f'<text x="{LEFT}" y="{TOP - 8}">finished jobs</text>')
    return lines


def _ticks(most: float) -> list[float]:
    steps = [size * factor for factor in (1, 10, 100, 1000) for size in (1, 2, 5)]
    step = next((step for step in steps if most / step <= 10), steps[-1])
    return [step * number for number in range(int(most / step) + 1)]


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    lines = []
    for row, (colour, text) in enumerate(entries):
        y = TOP + 14 + 18 * row
        lines.append(f'<rect x="{LEFT + 12}" y="{y - 9}" width="14" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + 32}" y="{y}">{escape(text)}</text>')
    return lines
