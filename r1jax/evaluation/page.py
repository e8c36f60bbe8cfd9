"""Pieces of a self-contained HTML page: escaped text, tables, embedded pictures, one style sheet, no scripts."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TAGS = re.compile(r"&lt;(/?)(think|answer)&gt;")

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #66717e; --rule: #e3e7ec; --blue: #2166ac; --paper: #fff; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #f5f7f9; color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
  "Noto Sans CJK SC", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .3rem 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 75ch; }
.muted, figcaption { color: var(--muted); font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.card, figure, .table, .sample { background: var(--paper); border: 1px solid var(--rule); border-radius: 10px; }
.card { padding: .75rem .9rem; }
.card .name { color: var(--muted); font-size: .82rem; }
.card .value { font-size: 1.35rem; font-weight: 650; white-space: nowrap; }
.card .was { color: var(--muted); font-size: .82rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .5rem .8rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 600; font-size: .82rem; }
tbody th { font-weight: 500; min-width: 9rem; }
tbody th.group { color: var(--muted); font-weight: 600; font-size: .82rem; padding-top: 1.1rem; }
td { white-space: nowrap; }
tbody tr:hover { background: #fafbfc; }
td small, th small { font-weight: 400; color: var(--muted); font-size: .82em; }
.wide, .small { display: grid; gap: .8rem; margin: .8rem 0; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
figure { margin: 0; padding: .5rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: 0 .4rem .2rem; }
.table + .table { margin-top: .7rem; }
.across { display: grid; gap: .9rem; margin-top: .7rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 185px), 1fr)); }
.across .text { font-size: .78rem; }
.across header { gap: .2rem .3rem; }
.across .chip { font-size: .7rem; padding: .02rem .4rem; }
.sample { padding: .7rem .9rem; margin: .7rem 0; }
.sample header { display: flex; flex-wrap: wrap; gap: .35rem .5rem; align-items: center; font-size: .85rem; }
.sample code { color: var(--muted); overflow-wrap: anywhere; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto; margin: .45rem 0 0;
  font: .88rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace; }
.prompt { color: var(--muted); }
.tag { color: #8e5ea2; font-weight: 600; }
.chip { border-radius: 99px; padding: .05rem .55rem; background: #edf0f3; font-size: .8rem; white-space: nowrap; }
.good { background: #dff1e4; color: #14602c; }
.bad { background: #f9e2e0; color: #8d2318; }
.warn { background: #fdf0d5; color: #7a5200; }
details summary { cursor: pointer; color: var(--blue); font-size: .9rem; padding: .25rem 0; }
@media (max-width: 520px) { main { padding: 1rem .7rem 3rem; } h1 { font-size: 1.4rem; }
  th, td { padding: .45rem .55rem; } td { white-space: normal; } table { font-size: .84rem; }
  td small, th small { display: block; } tbody th small { display: none; } .card .value { font-size: 1.2rem; } }
"""


def text(value: object) -> str:
    """`value` as text that is safe in a page: escaped; control characters and lone surrogates made visible."""
    clean = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    clean = CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", clean)
    return html.escape(clean)


def with_tags(value: object) -> str:
    """Escaped text in which <think> and <answer> tags stand out."""
    return TAGS.sub(r'<span class="tag">&lt;\1\2&gt;</span>', text(value))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways on a narrow screen. Cells are HTML; the first cell of a row is its heading, and a
    row of one cell a heading of those below it."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        if len(row) > 1
        else f'<tr><th scope=rowgroup class="group" colspan={len(head)}>{row[0]}</th></tr>'
        for row in rows
    )
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(data: bytes, description: str, caption: str = "") -> str:
    """A PNG inside the page."""
    code = base64.b64encode(data).decode("ascii")
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{text(description)}" src="data:image/png;base64,{code}">{below}</figure>'


def folded(title: str, body: str) -> str:
    """A part of the page that opens on a click."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def document(title: str, body: str) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
