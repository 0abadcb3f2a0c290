"""What a page says of itself to search engines, and to places where a link to it is shown.

sphinxext-opengraph does it for pages that are written. Here the address of the site is worked out from the
repository's (so `make adopt` has one place to change), and the pages that Sphinx makes itself (index, search, code)
get the same tags.
"""

from __future__ import annotations

import re
from html import escape

ABOUT = {
    "search": "Search the book: chapters, glossary, results and helper package. No other site is asked.",
    "genindex": "Every class and function of the book's helper package in alphabetical order, with a link to each.",
    "_modules/index": "The source code of the book's helper package, module by module, as the chapters import it.",
}
CODE = "The source code of {name}, as the book's chapters import it; a chapter that teaches a part shows the same."


def pages_address(repository: str) -> str:
    """'https://github.com/me/book' -> 'https://me.github.io/book/', where GitHub Pages serves it.

    A repository named me.github.io is served at the top, without a folder.
    """
    match = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+?)(\.git)?/?", repository)
    if not match:
        return repository.rstrip("/") + "/"
    site = f"{match[1].lower()}.github.io"
    return f"https://{site}/" if match[2].lower() == site else f"https://{site}/{match[2]}/"


def find_address(app, config):
    config.ogp_site_url = config.ogp_site_url or pages_address(config.html_theme_options["repository_url"])


def describe(app, pagename, templatename, context, doctree):
    """The tags of a page without a source of its own."""
    if doctree is not None:
        return
    config = app.config
    name = pagename.removeprefix("_modules/").replace("/", ".")
    title = re.sub(r"<[^>]+>", "", context.get("title", "")) or name
    about = ABOUT.get(pagename, CODE.format(name=name))
    properties = {
        "og:title": title,
        "og:type": "website",
        "og:url": config.ogp_site_url + app.builder.get_target_uri(pagename),
        "og:site_name": config.ogp_site_name,
        "og:description": about,
        "og:image": config.ogp_site_url + config.ogp_image,
        "og:image:alt": config.ogp_image_alt,
    }
    tags = [f'<meta property="{key}" content="{escape(value)}" />' for key, value in properties.items()]
    tags += [f'<meta name="description" content="{escape(about)}" />', *config.ogp_custom_meta_tags]
    context["metatags"] = context.get("metatags", "") + "\n".join(tags) + "\n"


def setup(app):
    app.connect("config-inited", find_address, priority=900)
    app.connect("html-page-context", describe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
