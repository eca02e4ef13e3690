import ast
from pathlib import Path

import sendense

SOURCE = Path(sendense.__file__).parent


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def test_only_durable_imports_dbos() -> None:
    users = {path for path in SOURCE.rglob("*.py") if "dbos" in _imports(path)}

    assert users, "the search finds nothing at all"
    assert {path.parent.name for path in users} == {"durable"}


def test_only_the_engine_and_the_flow_use_dbos_itself() -> None:
    """A second `DBOS` object in another process would re-run the jobs of the first."""
    for path in (SOURCE / "durable").glob("*.py"):
        launches = "DBOS.launch(" in path.read_text()
        assert launches == (path.name == "engine.py"), path
