"""The documentation page: drawn from the OpenAPI document, without scripts and without a network.

FastAPI's own page loads scripts from elsewhere: it would stay blank on a machine without internet,
and whoever serves them could act as a local user of a server without accounts.
"""

import html
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

router = APIRouter()

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem } summary { cursor: pointer } details { margin: .4rem 0 }
code, pre { font: 14px/1.45 ui-monospace, monospace } pre { background: #f4f4f4; padding: .8rem;
overflow-x: auto } table { border-collapse: collapse } td { padding: .1rem .8rem .1rem 0;
vertical-align: top } .method { display: inline-block; width: 4.5rem; font-weight: 600 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } a { color: #8bf }
pre { background: #262626 } }
"""


@router.get("/docs", include_in_schema=False)
def get_docs(request: Request) -> HTMLResponse:
    """Return the documentation as one page."""
    return HTMLResponse(render(request.app.openapi()))


def render(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as a page."""
    info = document["info"]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            group = operation.get("tags", ["other"])[0]
            groups.setdefault(group, []).append(_operation(document, path, method, operation))
    parts = [
        f"<h2>{html.escape(group)}</h2>{''.join(found)}" for group, found in sorted(groups.items())
    ]
    title = html.escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{html.escape(info['description'])}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(parts)}</body></html>"
    )


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(found['name'])}</code></td><td>{found['in']}</td>"
        f"<td>{html.escape(found.get('description', ''))}</td></tr>"
        for found in operation.get("parameters", [])
    ]
    answers = [
        f"<tr><td>{code}</td><td>{html.escape(found['description'])}</td></tr>"
        for code, found in operation["responses"].items()
    ]
    return (
        f'<details><summary><span class="method">{method.upper()}</span>'
        f"<code>{html.escape(path)}</code> {html.escape(operation['summary'])}</summary>"
        f"<p>{html.escape(operation.get('description', ''))}</p>"
        f"<table>{''.join(rows)}</table>{_examples(document, operation)}"
        f"<table>{''.join(answers)}</table></details>"
    )


def _examples(document: dict[str, Any], operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    found = []
    for option in [schema, *schema.get("anyOf", [])]:
        name = option.get("$ref", "").rpartition("/")[2]
        found.extend(document["components"]["schemas"].get(name, {}).get("examples", []))
    return "".join(f"<pre>{html.escape(json.dumps(one, indent=2))}</pre>" for one in found)
