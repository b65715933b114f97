"""A page that needs nothing but itself: markup that escapes whatever it is given, and one style sheet.

Text comes from environment ids, paths and files, which are anybody's: nothing reaches a page but through :func:`tag`.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from ppo_fast import __version__

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # nor can a surrogate be encoded
_VOID = {"meta", "br"}
# Should anything slip through after all: the browser runs no script and asks no other machine for anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src 'self' file:"


class Html(str):
    """Markup, to be left as it stands."""


def esc(value: object) -> Html:
    """Return ``value`` as text in markup, or markup unchanged."""
    return value if isinstance(value, Html) else Html(html.escape(_NO_XML.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def join(parts: Iterable[object]) -> Html:
    """Return texts and markup one after the other."""
    return Html("".join(map(esc, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element; ``class_`` is the attribute class, ``aria_label`` is aria-label, and None leaves one out."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    head = name + "".join(f' {key}="{esc(value)}"' for key, value in pairs)
    return Html(f"<{head}>" if name in _VOID else f"<{head}>{join(children)}</{name}>")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()) -> Html:
    """Return a table whose first column names the rows; the columns ``numbers`` are set flush right."""
    right = set(numbers)
    align = ["n" if column in right else None for column in range(len(head))]
    top = tag("tr", *(tag("th", text, scope="col", class_=side) for text, side in zip(head, align, strict=True)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=align[0]),
            *(tag("td", cell, class_=side) for cell, side in zip(row[1:], align[1:], strict=True)),
        )
        for row in rows
    ]
    inner = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body))
    return tag("div", inner, class_="wide", role="region", tabindex="0", aria_label=caption)


def section(title: str, *children: object) -> Html:
    """Return a part of the page under its heading."""
    return tag("section", tag("h2", title), *children)


def note(text: str) -> Html:
    """Return a remark."""
    return tag("p", text, class_="note")


def fold(summary: str, *children: object) -> Html:
    """Return what is shown when it is asked for, and on paper."""
    return tag("details", tag("summary", summary), *children)


def url(target: Path, page: Path) -> str:
    """Return the relative address of a file, seen from the page."""
    way = os.path.relpath(target.absolute(), page.absolute().parent)
    return quote(way.encode(errors="surrogateescape"))


def link(target: Path, page: Path, text: object) -> Html:
    """Return a link to a file, relative to the page."""
    return tag("a", text, href=url(target, page))


def document(title: str, kind: str, lead: object, *sections: object) -> bytes:
    """Return a whole page.

    Args:
        title: heading, and with ``kind`` the window's title.
        kind: what sort of page it is.
        lead: what follows the heading.
        sections: the rest.
    """
    style = resources.files("ppo_fast.report").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – {kind}"),
        tag("style", Html(style)),
    )
    header = tag("header", tag("p", f"ppo_fast · {kind}", class_="over"), tag("h1", title), lead)
    footer = tag(
        "footer", f"Written by ppo_fast {__version__}. Every number on this page comes from the files of its runs."
    )
    body = tag("body", tag("main", header, *sections, footer))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode()
