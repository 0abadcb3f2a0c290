"""The bibliography of the book: one entry a key of references.bib, each an anchor that chapters link to.

Notebooks cite with a plain link, ``[Vaswani et al. 2017](../book/bibliography.md#vaswani2017)``, which reads well
in Colab and on GitHub. MyST resolves such a link only to headings; here it learns the keys of the bibliography too,
so that a link to an unknown key is a warning, and with -W a failed build.
"""

from __future__ import annotations

from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.labels import BaseLabelStyle

PAGE = "book/bibliography"


def short_name(entry) -> str:
    """'Vaswani et al. 2017', 'Ba 2016' or 'Okabe and Ito 2008': how the book's text cites an entry.

    A second one of the same author and year has a key that ends in b, and so does its name.
    """
    people = entry.persons.get("author") or entry.persons["editor"]
    names = [" ".join([*p.prelast_names, *p.last_names]) for p in people]
    names = [name.replace("{", "").replace("}", "") for name in names]
    who = names[0] if len(names) == 1 else " and ".join(names)
    if len(names) > 2:
        who = f"{names[0]} et al."
    again = "b" if entry.key.endswith(entry.fields["year"] + "b") else ""
    return f"{who} {entry.fields['year']}{again}"


class ShortNames(BaseLabelStyle):
    """Labels the entries as the text cites them."""

    def format_labels(self, sorted_entries):
        for entry in sorted_entries:
            yield short_name(entry)


class BookStyle(UnsrtStyle):
    """Plain entries in the order of first author and year, labelled with the short name."""

    default_label_style = ShortNames
    default_sorting_style = "author_year_title"


def learn_keys(app, env):
    """Tell MyST that every key is a place on the bibliography's page."""
    if PAGE not in env.all_docs:
        return
    slugs = env.metadata[PAGE].setdefault("myst_slugs", {})
    for key, entry in env.get_domain("cite").bibdata.data.entries.items():
        slugs[key] = (0, key, short_name(entry))


def setup(app):
    register_plugin("pybtex.style.formatting", "book", BookStyle)
    app.connect("env-updated", learn_keys)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
