"""The report: results.json as HTML, Markdown and plain text, by pure functions.

`facts` reads the results, `tables` and `plots` shape them, `document` and `text` render;
`results.summary` writes what they return into the run folder.
"""

from __future__ import annotations

from ftjob.results.page.document import render_html, render_markdown
from ftjob.results.page.text import render_summary, render_terminal

__all__ = ["render_html", "render_markdown", "render_summary", "render_terminal"]
