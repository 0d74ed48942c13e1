"""Pages that need nothing else, from the templates beside this file."""

from __future__ import annotations

from pathlib import Path

import jinja2


def render(template: str, **values: object) -> str:
    """The page that `template` (a file's name) gives with `values`; one that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)
