"""A chart of a run as SVG: bars for each queue, Tenure's set apart. Readable on light and dark."""

from __future__ import annotations

from html import escape

from bench.results import Run, number

PANELS = (
    ("drain-1", "Drain, 1 worker process, jobs/s"),
    ("retry", "Fail once, retry, succeed, jobs/s"),
    ("enqueue-16", "Enqueue one by one, 16 callers, jobs/s"),
    ("bulk", "Enqueue 1,000 a call, jobs/s"),
)
ENGINES = {"postgres": "PostgreSQL", "sqlite": "SQLite", "redis": "Redis"}
WIDTH = 860
NAME_WIDTH = 180
BAR_WIDTH = 560
LINE = 20
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.faint { fill: #656d76 }
.bar { fill: #8c959f }
.ours { fill: #1a7f64 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  .bar { fill: #6e7681 }
  .ours { fill: #2ea67f }
}
"""


def chart(run: Run) -> str:
    """The whole chart."""
    parts: list[str] = []
    top = 10
    for workload, title in PANELS:
        drawn, top = _panel(run, workload, title, top)
        parts += drawn
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">',
            "<title>Jobs per second of Tenure and other queues</title>",
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _panel(run: Run, workload: str, title: str, top: int) -> tuple[list[str], int]:
    """One workload: a bar for each queue, fastest first on each engine; and where it ends."""
    rates = {
        subject.name: rate
        for subject in run.subjects()
        if (rate := run.median(workload, subject.name)) is not None
    }
    if not rates:
        return [], top
    longest = max(rates.values())
    top += 24
    parts = [_text(0, top, title, "title")]
    for engine, label in ENGINES.items():
        shown = [s for s in run.subjects() if s.engine == engine and s.name in rates]
        if not shown:
            continue
        top += LINE + 4
        parts.append(_text(0, top, f"on {label}", "faint"))
        for subject in sorted(shown, key=lambda subject: -rates[subject.name]):
            top += LINE
            width = max(BAR_WIDTH * rates[subject.name] / longest, 1)
            kind = "bar ours" if subject.ours else "bar"
            note = "" if "lost" not in subject.durable else " (not durable)"
            parts += [
                _text(12, top, subject.title),
                f'<rect class="{kind}" x="{NAME_WIDTH - 50}" y="{top - 12}"'
                f' width="{width:.1f}" height="14" rx="2"/>',
                _text(
                    NAME_WIDTH - 50 + width + 6, top, number(rates[subject.name]) + note, "faint"
                ),
            ]
    return parts, top + LINE


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{classes}>{escape(text)}</text>'
