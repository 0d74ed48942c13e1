# SPDX-License-Identifier: GPL-2.0-only
"""HTML pages that need no other file, from the Jinja templates in this folder."""

from __future__ import annotations

from pathlib import Path

import jinja2


def render(template: str, **values: object) -> str:
    """Render `template`, the name of a file in this folder.

    Raises jinja2.UndefinedError when the template uses a value that is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)
