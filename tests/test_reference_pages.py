"""Generated pages are those that the code gives."""

import pathlib

import pytest

from experiments.show import reference_pages

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_generated_pages_are_those_of_the_code(name):
    again = "python -m experiments.show.reference_pages"
    assert (DOCS / name).read_text() == reference_pages.PAGES[name](), f"old: run `{again}`"
