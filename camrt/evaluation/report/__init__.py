"""Reports of a run: terminal, CSV, Markdown and one self-contained HTML file."""

from __future__ import annotations

from camrt.evaluation.report.documents import write_csv, write_markdown, write_problems
from camrt.evaluation.report.gallery import GalleryItem, make_gallery
from camrt.evaluation.report.html import write_html

__all__ = ["GalleryItem", "make_gallery", "write_csv", "write_html", "write_markdown", "write_problems"]
