"""The pages are checked like code: links, commands, options, words and kinds of failure."""

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from sendense.cli import main
from sendense.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "sendense"
DOCS = ROOT / "docs"

LINK = re.compile(r"(?<!\!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r"^([a-z][a-z-]*)(?: [^:\n]*)?:(?!=)", re.MULTILINE)
NOUNS = ("sources", "vms", "repositories", "backups", "restores", "jobs")
KIND_TABLE = re.compile(r"_KIND$|_KIND_OF_")
ERROR_TREE_DEPTH_MAX = 5  # classes under classes; the tree of core/errors.py has three levels


def list_pages() -> list[Path]:
    """Return every page a person may read."""
    return sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def strip_code(text: str) -> str:
    """Return a page without its fenced blocks and code spans: what is left is prose."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def make_anchor(heading: str) -> str:
    """Return the anchor that renderers give a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", ""))
    return plain.replace(" ", "-")


def list_anchors(text: str) -> set[str]:
    return {
        make_anchor(found) for found in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    }


def _read(place: Path) -> str:
    return place.read_text() if place.is_file() else ""


def find_broken_links(page: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere within the tree."""
    broken = []
    for groups in LINK.findall(strip_code(text)):
        target = groups[0] or groups[1]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        anchors = list_anchors(text if place == page else _read(place)) if anchor else {anchor}
        if not place.exists() or anchor not in anchors:
            broken.append(target)
    return broken


def list_recipes() -> set[str]:
    return set(RECIPE.findall((ROOT / "justfile").read_text())) - {"default"}


def list_console_lines() -> list[tuple[Path, str]]:
    """Return the commands of all ```console blocks, continued lines joined."""
    return [
        (page, line.removeprefix("$ "))
        for page in list_pages()
        for language, body in FENCE.findall(page.read_text())
        if language == "console"
        for line in body.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]


def find_unknown_words(words: list[str]) -> list[str]:
    """Return which commands and options of a `sendense` command line do not exist."""
    main.register_servers()
    command: Any = typer.main.get_command(main.app)
    for word in words:
        children = getattr(command, "commands", {})
        if children and not word.startswith("-"):
            if word not in children:
                return [f"no command {word}"]
            command = children[word]
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
    return [
        f"no option {word}"
        for word in (word.partition("=")[0] for word in words)
        if word.startswith("-") and word not in known | {"--help", "-h", "-"}
    ]


def _name_of_call(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2].partition("[")[0]


def _list_texts(node: ast.expr | None) -> list[str]:
    """Return the strings an expression can give: a constant, a choice, the values of a table."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _list_texts(node.body) + _list_texts(node.orelse)
    if isinstance(node, ast.Dict):
        return [text for value in node.values for text in _list_texts(value)]
    return []


def find_makers(trees: Iterable[ast.Module]) -> set[str]:
    """Return the names of the classes of errors, and of the functions that return one."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    makers = {"SendenseError"}
    for _ in range(ERROR_TREE_DEPTH_MAX):
        makers |= {
            node.name for node in classes if makers & {_name_of_call(base) for base in node.bases}
        }
    return makers | {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and node.returns is not None
        and _name_of_call(node.returns) in makers
    }


def _kinds_of_call(node: ast.Call) -> list[str]:
    return [
        text
        for keyword in node.keywords
        if keyword.arg == "kind"
        for text in _list_texts(keyword.value)
    ]


def _kinds_of_class(node: ast.ClassDef) -> list[str]:
    kinds = []
    for line in node.body:
        if isinstance(line, ast.AnnAssign | ast.Assign):
            target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
            if ast.unparse(target) in {"kind", "default_kind"}:
                kinds += _list_texts(line.value)
    return kinds


def _kinds_of_function(node: ast.FunctionDef) -> list[str]:
    named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [
        text
        for argument, default in named
        if argument.arg == "kind"
        for text in _list_texts(default)
    ]


def find_kinds(tree: ast.Module, makers: set[str]) -> set[str]:
    """Return the kinds of failure that a module names."""
    kinds: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name_of_call(node.func) in {*makers, "__init__"}:
            kinds.update(_kinds_of_call(node))
        elif isinstance(node, ast.ClassDef) and node.name in makers:
            kinds.update(_kinds_of_class(node))
        elif isinstance(node, ast.FunctionDef) and node.name in makers:
            kinds.update(_kinds_of_function(node))
        elif isinstance(node, ast.Assign) and KIND_TABLE.search(ast.unparse(node.targets[0])):
            kinds.update(_list_texts(node.value))
    return kinds


def list_kinds() -> set[str]:
    """Return every kind of failure that the product names."""
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    makers = find_makers(trees)
    return {kind for tree in trees for kind in find_kinds(tree, makers)}


@pytest.mark.parametrize("page", list_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert find_broken_links(page, page.read_text()) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        if page in seen:
            continue
        seen.add(page)
        for groups in LINK.findall(strip_code(page.read_text())):
            place = (page.parent / (groups[0] or groups[1]).partition("#")[0]).resolve()
            if place.is_dir():
                open_pages.extend(place.glob("*.md"))
            elif place.suffix == ".md" and place.is_file():
                open_pages.append(place)
    assert [str(page.relative_to(ROOT)) for page in list_pages() if page not in seen] == []


def test_every_dev_command_in_the_pages_is_a_recipe() -> None:
    named = {
        found
        for page in list_pages()
        for found in re.findall(r"\./dev ([a-z][a-z-]*)", page.read_text())
    }
    assert named - list_recipes() == set()


def test_every_recipe_is_documented() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    public = {recipe for recipe in list_recipes() if not recipe.startswith("_")}
    assert [recipe for recipe in sorted(public) if f"./dev {recipe}" not in text] == []


def test_every_recipe_says_in_one_line_what_it_does() -> None:
    lines = (ROOT / "justfile").read_text().splitlines()
    for number, line in enumerate(lines):
        if RECIPE.match(line) and not line.startswith(("default", "_")):
            above = [each for each in lines[:number] if not each.startswith("[")]
            assert above[-1].startswith("# "), f"{line} has no line above that says what it does"


def test_every_command_in_the_pages_exists() -> None:
    lines = [(page, shlex.split(line)) for page, line in list_console_lines()]
    ours = [(page, words) for page, words in lines if words[0] == "sendense"]
    assert ours
    complaints = [
        f"{page.relative_to(ROOT)}: {complaint}"
        for page, words in ours
        for complaint in find_unknown_words(words[1:])
    ]
    assert complaints == []


def test_every_setting_is_documented_with_its_default() -> None:
    text = (DOCS / "operations" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(SENDENSE_[A-Z_]+)` \| (.+?) \|", text, re.MULTILINE))
    known = {f"SENDENSE_{name.upper()}": field for name, field in Settings.model_fields.items()}
    assert set(rows) - {"SENDENSE_URL", "SENDENSE_TOKEN"} == set(known)
    for name, field in known.items():
        if isinstance(field.default, bool | int | float) or not field.default:
            default = str(field.default).lower().removesuffix(".0") if field.default else None
        else:
            default = str(field.default)
        if default is not None:
            assert default in rows[name], f"the default of {name} is {default}"


def find_route(method: str, path: str) -> APIRoute | None:
    """Return the route of the API that answers such a request."""
    for noun in NOUNS:
        router = importlib.import_module(f"sendense.hub.{noun}.routes").router
        for route in router.routes:
            if method in route.methods and route.path_regex.fullmatch(f"/{path}"):
                assert isinstance(route, APIRoute)
                return route
    return None


def list_requests() -> list[tuple[str, str, str]]:
    """Return method, path and body of the requests in the walk through the API."""
    text = (DOCS / "operations" / "backup-and-restore.md").read_text()
    posts = re.findall(r"^post (\S+) '(.*?)'$", text, re.MULTILINE | re.DOTALL)
    curls = re.findall(r'^curl -sS (?:-X (\w+) )?"\$API/([^"?]+)', text, re.MULTILINE)
    return [("POST", path, body) for path, body in posts] + [
        (method or "GET", path, "") for method, path in curls
    ]


@pytest.mark.parametrize(("method", "path", "body"), list_requests())
def test_every_request_in_the_walk_can_be_sent(method: str, path: str, body: str) -> None:
    route = find_route(method, path)
    assert route is not None, f"the API has no {method} /{path}"
    models = [
        hint
        for name, hint in get_type_hints(route.endpoint).items()
        if name != "return" and isinstance(hint, type) and issubclass(hint, BaseModel)
    ]
    if body:
        assert json.loads(body) == {} or any(_fits(model, body) for model in models), models


def _fits(model: type[BaseModel], body: str) -> bool:
    try:
        model.model_validate_json(body)
    except ValidationError:
        return False
    return True


def test_every_library_is_explained_by_the_decisions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    explained = (DOCS / "decisions" / "0003-libraries.md").read_text().lower()
    names = {re.split(r"[\[>=<]", requirement)[0].lower() for requirement in wanted}
    # Type stubs come with what they describe.
    assert {
        name for name in names if not name.startswith("types-") and name not in explained
    } == set()


def test_the_changelog_has_a_place_for_what_is_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[?Unreleased\]?$", text, re.MULTILINE)


def test_the_glossary_explains_each_word_once_and_in_order_of_need() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    words = [word for row in rows for word in row.split(", ")]
    assert len(words) == len(set(words))
    for needed in ["source", "connector", "extent", "snapshot", "change id", "backup", "chain"]:
        assert needed in words
    for needed in ["repository", "storage", "chunk", "pack", "disk map", "manifest", "job"]:
        assert needed in words


def test_the_pages_use_the_words_of_the_glossary() -> None:
    text = (DOCS / "glossary.md").read_text()
    avoided = re.findall(r"^\| \*\*.+?\*\* \|.*\| never: (.+?) \|$", text, re.MULTILINE)
    words = [word for row in avoided for word in row.split(", ")]
    assert words
    found = [
        f"{page.relative_to(ROOT)}: {word}"
        for page in list_pages()
        if page.name != "glossary.md"
        for word in words
        if re.search(rf"\b{re.escape(word)}s?\b", strip_code(page.read_text()), re.IGNORECASE)
    ]
    assert found == []


def test_every_kind_of_failure_is_explained() -> None:
    page = DOCS / "problems.md"
    explained = set(re.findall(r"^### `([a-z-]+)`$", page.read_text(), re.MULTILINE))
    assert list_kinds() - explained == set(), "used in the product, not explained"
    assert explained - list_kinds() == set(), "explained, not used in the product"


def test_kinds_are_found_wherever_they_are_named() -> None:
    text = """
class Full(errors.NoSpace):
    default_kind: ClassVar[str] = "a"
class SendenseError(Exception): ...
class NoSpace(SendenseError): ...
def refuse(name: str, *, kind: str = "b") -> Full: ...
Full("x", kind="c" if x else "d"); refuse("y", kind="e"); Job(kind="not-one"); errors.Full(kind="f")
OTHER_KIND = "g"
_KIND_OF_STATUS = {404: "h"}
"""
    tree = ast.parse(text)
    assert find_kinds(tree, find_makers([tree])) == set("abcdefgh")


def test_the_pages_check_notices_what_it_is_for() -> None:
    page = ROOT / "README.md"
    assert find_broken_links(page, "[a](nowhere.md)") == ["nowhere.md"]
    assert find_broken_links(page, "[a](LICENSE) ![b](none.svg)") == ["none.svg"]
    assert find_broken_links(page, "# One word\n[a](#one-word) [b](#two)") == ["#two"]
    assert find_broken_links(page, "`[a](nowhere.md)` https://example.org") == []
