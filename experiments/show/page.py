"""Self-contained HTML pages: texts with tables that sort, figures, episodes that play.

A page is a title and parts in order. Texts are Markdown, in which raw HTML stays text.
"""

import base64
import html
import json
import pathlib
import re
from typing import NamedTuple

from markdown_it import MarkdownIt

from . import scene

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


class Text(NamedTuple):
    """Markdown. Args: folded, the words to click on where it starts folded; "" where it is open."""

    markdown: str
    folded: str = ""


class Heading(NamedTuple):
    """Begins a section, which the page's list of contents names."""

    text: str


class Figure(NamedTuple):
    """A picture. Args: name, what it shows, for those who cannot see it."""

    svg: bytes
    name: str


class Episodes(NamedTuple):
    """Scenes of the viewer, as in `scene`, one of which plays."""

    scenes: list


def page(title, parts):
    """Returns the HTML of a page."""
    headings = [part.text for part in parts if isinstance(part, Heading)]
    links = [f'<a href="#part-{i}">{html.escape(text)}</a>' for i, text in enumerate(headings)]
    body, count = [], 0
    for part in parts:
        if isinstance(part, Heading):
            body.append(f'<h2 id="part-{count}">{html.escape(part.text)}</h2>')
            count += 1
        else:
            body.append(SHOWN[type(part)](part))
    filled = {"TITLE": html.escape(title), "CONTENTS": "\n".join(links), "BODY": "\n".join(body)}
    text = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # in one go: what is filled in is not looked at again
    return re.sub("@([A-Z]+)@", lambda found: filled[found[1]], text)


def of_text(part):
    """Returns the HTML of a Text; wide tables scroll by themselves."""
    made = MARKDOWN.render(part.markdown)
    made = made.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    if part.folded:
        return f"<details><summary>{html.escape(part.folded)}</summary>\n{made}</details>"
    return made


def of_figure(part):
    """Returns the HTML of a Figure; as an image its ids are its own."""
    content = base64.b64encode(part.svg).decode()
    source = f"data:image/svg+xml;base64,{content}"
    alt = html.escape(part.name)
    return f'<figure class="wide"><img alt="{alt}" src="{source}"></figure>'


def of_episodes(part):
    """Returns the HTML of Episodes: the viewer's page once, and every scene."""
    script = '<script type="application/json" class="{}">{}</script>'
    scenes = f"[{','.join(map(scene.as_text, part.scenes))}]"
    viewer = json.dumps(scene.template()).replace("<", "\\u003c")
    return "\n".join([
        '<div class="plays">', '<p><select aria-label="episode"></select></p>',
        '<iframe title="episode"></iframe>', script.format("viewer", viewer),
        script.format("scenes", scenes), "</div>",
    ])  # fmt: skip


SHOWN = {Text: of_text, Figure: of_figure, Episodes: of_episodes}
