"""The tripwires of CONTRIBUTING.md, held by a machine.

A tripwire may be crossed with a written reason: `# tidy: <reason>` on the line of a long function's
`def`, or anywhere in a module that is too long. A split that only serves a number makes code worse.
"""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "sendense"

FUNCTION_LINES_MAX = 70  # fits one screen
MODULE_LINES_MAX = 500  # fits one head; the aim is 300
TEST_MODULE_LINES_MAX = 800  # examples are long but plain
TEST_NAME_WORDS_MIN = 3  # fewer do not make a sentence
FILE_BYTES_MAX = 1024 * 1024  # nobody reads more; data belongs to the tests that make it

REASON = re.compile(r"#\s*tidy:\s*\S+(\s+\S+){2,}")  # three words at least, or it is no reason
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "managers", "manager", "misc", "common"}
STATUS_NAMES = re.compile(
    r"(status|plan|todo|progress|notes|session|handover|roadmap)([-_].*)?\.(md|txt|rst)",
    re.IGNORECASE,
)
# Put together here, so that this file does not hold what it looks for.
PRIVATE_PLACES = re.compile(
    r"(?<![\w.$}~\-/])/("
    + "|".join(["wo" + "rk", "fa" + "rm", "ho" + "me/[a-z]", "ro" + "ot"])
    + r")/"
)
INDEX_ADDRESS = re.compile(r"(https?://|--(extra-)?index-url|--find-links|-i\s)")


@cache
def list_files() -> tuple[Path, ...]:
    """Return the files of the tree: those git knows, and new ones it does not ignore."""
    if shutil.which("git") is not None:
        listing = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
        )
        if listing.returncode == 0:
            names = [name for name in listing.stdout.split("\0") if name]
            return tuple(path for path in (ROOT / name for name in names) if path.is_file())
    # An unpacked archive has no git; then what tools leave behind has to be left out by name.
    left_out = {".venv", ".cache", ".git", "__pycache__", "dist"}
    return tuple(
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(
            part in left_out or part.endswith("_cache") or part.startswith((".hypo", ".cov"))
            for part in path.relative_to(ROOT).parts
        )
    )


def list_modules(*folders: str) -> list[Path]:
    """Return the Python files below the given folders of the tree."""
    return [
        path
        for path in list_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders
    ]


def read_text(path: Path) -> str | None:
    """Return a file's text, or None where it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def list_functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def find_long_functions(text: str, *, lines_max: int) -> list[str]:
    """Return the functions that are too long and give no reason."""
    lines = text.splitlines()
    return [
        f"{function.name} has {function.end_lineno - function.lineno + 1} lines"
        for function in list_functions(text)
        if function.end_lineno is not None
        and function.end_lineno - function.lineno + 1 > lines_max
        and not REASON.search(lines[function.lineno - 1])
    ]


def is_too_long(text: str, *, lines_max: int) -> bool:
    """Whether a module is too long and gives no reason."""
    return text.count("\n") > lines_max and not REASON.search(text)


def is_sentence(name: str) -> bool:
    """Whether a test's name says what is promised."""
    return len(name.removeprefix("test_").split("_")) >= TEST_NAME_WORDS_MIN


def is_strong_copyleft(licence: str) -> bool:
    """Whether a licence names the GPL or AGPL, and not only the LGPL."""
    return re.search(r"(?<!L)(A?GPL)|(?<!Lesser )General Public License", licence) is not None


def read_licence(name: str) -> str:
    """Return what a package says of its licence; "" where it is locked for other platforms."""
    try:
        facts = importlib.metadata.metadata(name).json
    except importlib.metadata.PackageNotFoundError:
        return ""
    classifiers = [line for line in facts.get("classifier", []) if "License" in line]
    first_line = str(facts.get("license", "")).partition("\n")[0]
    return " ".join([str(facts.get("license_expression", "")), first_line, *classifiers])


def find_prints(text: str) -> list[int]:
    """Return the lines that call `print`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


def test_no_function_is_longer_than_a_screen() -> None:
    found = [
        f"{name_of(path)}: {complaint}"
        for path in list_modules("src", "tests", "demo", "benchmarks")
        if "migrations" not in path.parts  # generated: a table is as long as its columns
        for complaint in find_long_functions(path.read_text(), lines_max=FUNCTION_LINES_MAX)
    ]
    assert found == []


def test_no_module_is_longer_than_a_head_can_hold() -> None:
    found = [
        name_of(path)
        for path in list_modules("src", "demo", "benchmarks")
        if is_too_long(path.read_text(), lines_max=MODULE_LINES_MAX)
    ]
    assert found == []


def test_no_test_module_is_longer_than_its_limit() -> None:
    found = [
        name_of(path)
        for path in list_modules("tests")
        if is_too_long(path.read_text(), lines_max=TEST_MODULE_LINES_MAX)
    ]
    assert found == []


def test_modules_are_named_for_what_they_hold() -> None:
    found = [
        name_of(path)
        for path in list_modules("src", "tests", "demo", "benchmarks")
        if VAGUE_NAMES & set(path.stem.split("_"))
    ]
    assert found == []


def test_every_package_says_what_it_is_for() -> None:
    folders = {path.parent for path in list_modules("src") if SOURCE in path.parents}
    silent = [
        name_of(folder)
        for folder in folders
        if not (folder / "__init__.py").is_file()
        or not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ]
    # Migrations are scripts that Alembic runs one by one, not a package.
    assert [name for name in sorted(silent) if "/migrations" not in name] == []


def test_only_the_command_line_prints() -> None:
    found = [
        f"{name_of(path)}:{line}"
        for path in list_modules("src")
        # The reader that lies in repositories is a command line of its own.
        if (SOURCE / "cli") not in path.parents and path.name != "standalone_reader.py"
        for line in find_prints(path.read_text())
    ]
    assert found == []


def test_the_name_of_every_test_is_a_sentence() -> None:
    found = [
        f"{name_of(path)}: {function.name}"
        for path in list_modules("tests")
        for function in list_functions(path.read_text())
        if function.name.startswith("test_") and not is_sentence(function.name)
    ]
    assert found == []


def test_no_file_names_a_private_place() -> None:
    found = [
        f"{name_of(path)}:{number}"
        for path in list_files()
        for number, line in enumerate((read_text(path) or "").splitlines(), start=1)
        if PRIVATE_PLACES.search(line)
    ]
    assert found == []


def test_the_tree_holds_no_status_or_plan_files() -> None:
    found = [
        name_of(path)
        for path in list_files()
        if STATUS_NAMES.fullmatch(path.name) and "tests" not in path.parts
    ]
    assert found == []


def test_no_file_is_too_large_to_review() -> None:
    assert [name_of(p) for p in list_files() if p.stat().st_size > FILE_BYTES_MAX] == []


@pytest.mark.parametrize("name", ["dev.txt", "runtime.txt", "benji.txt"])
def test_locks_carry_hashes_and_name_no_index(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert INDEX_ADDRESS.search(text) is None
    pinned = re.findall(r"^(\S+==\S+)(?: ;[^\\\n]*)? (.*)$", text, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE)) > 0
    assert [requirement for requirement, rest in pinned if rest != "\\"] == []
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_every_dependency_is_bounded_and_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    locked = (ROOT / "requirements" / "dev.txt").read_text()
    for requirement in wanted:
        assert re.search(r">=.*,<", requirement), f"{requirement} has no lower and upper bound"
        name = re.split(r"[\[>=<]", requirement)[0].lower().replace(".", "-").replace("_", "-")
        assert re.search(rf"^{name}==", locked, re.MULTILINE), f"{name} is not locked"


def test_no_library_at_run_time_is_under_the_gpl() -> None:
    locked = (ROOT / "requirements" / "runtime.txt").read_text()
    names = set(re.findall(r"^([A-Za-z0-9._-]+)==", locked, re.MULTILINE))
    # Only its module `legacy` is under the GPL; the next test keeps that one out.
    names.remove("qemu-qmp")
    licences = {name: read_licence(name) for name in names}
    assert sum(text != "" for text in licences.values()) > len(names) / 2
    assert [name for name, text in licences.items() if is_strong_copyleft(text)] == []


def test_the_one_module_of_qemu_qmp_under_the_gpl_is_not_used() -> None:
    pattern = re.compile(r"^\s*(from|import) qemu.*\blegacy\b", re.MULTILINE)
    found = [name_of(p) for p in list_modules("src", "demo") if pattern.search(p.read_text())]
    assert found == []
    assert pattern.search("from qemu.qmp.legacy import QEMUMonitorProtocol")


def test_decisions_are_numbered_pages_that_end_with_what_enforces_them() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in pages]
    assert len(numbers) == len(set(numbers)) > 0
    for page in pages:
        assert re.fullmatch(r"\d{4}-[a-z0-9]+(-[a-z0-9]+)*\.md", page.name), page.name
        last = page.read_text().strip().split("\n\n")[-1]
        assert last.startswith("Enforced by"), f"{page.name} does not say what enforces it"


def test_the_layers_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    outcome = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_tripwires_notice_what_they_are_for() -> None:
    long_function = "def walk():\n" + "    step()\n" * 80
    assert find_long_functions(long_function, lines_max=70) == ["walk has 81 lines"]
    excused = long_function.replace(":\n", ":  # tidy: one table, read from top to bottom\n", 1)
    assert find_long_functions(excused, lines_max=70) == []
    lazily_excused = long_function.replace(":\n", ":  # tidy: long\n", 1)
    assert find_long_functions(lazily_excused, lines_max=70) != []
    assert is_too_long("x = 1\n" * 501, lines_max=500)
    assert not is_too_long("x = 1\n" * 500, lines_max=500)
    assert find_prints("def f():\n    print(1)\n") == [2]
    assert find_prints("console.print(1)\n") == []
    assert not is_sentence("test_backup")
    assert is_sentence("test_a_torn_pack_is_refused")
    assert PRIVATE_PLACES.search('open("/ro' + 'ot/x")')
    assert not PRIVATE_PLACES.search("https://example.org/wo" + "rk/x")
    assert not PRIVATE_PLACES.search("{data_dir}/wo" + "rk/x")
    assert is_strong_copyleft("AGPL-3.0-or-later")
    assert is_strong_copyleft("GPLv2+")
    assert not is_strong_copyleft("LGPL-3.0-only")
    assert STATUS_NAMES.fullmatch("STATUS.md")
    assert STATUS_NAMES.fullmatch("plan-2.md")
    assert not STATUS_NAMES.fullmatch("planning.md")
