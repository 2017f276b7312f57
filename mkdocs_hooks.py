"""Links of docs/ that lead out of it: links on a forge, text in the site, which lacks the files."""

import posixpath
import re

LINK = re.compile(r"!?\[([^\]]*)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Returns a page with links to files outside of docs/ as their text and the file's name."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2].partition("#")[0]))
        if not target.startswith("../"):
            return match[0]
        return f"{match[1]} (`{target.removeprefix('../')}` of the repository)"

    return LINK.sub(inside, markdown)
