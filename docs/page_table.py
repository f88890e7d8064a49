"""The table that a script keeps up to date in a page, between two marks."""

import pathlib

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def put_table(page: pathlib.Path, table: str) -> None:
    """Writes the table in the place of the page's, or at the beginning of a new page."""
    before, _, after = page.read_text().partition(BEGIN) if page.exists() else ("", "", "")
    page.write_text(f"{before}{BEGIN}{table}{END}{after.partition(END)[2]}")
