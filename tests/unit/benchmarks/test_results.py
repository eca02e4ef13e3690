"""Results in the tree: what is replaced, and what people wrote around it."""

from pathlib import Path

from benchmarks import results

COMMAND = "./dev bench --save"


def test_a_new_page_holds_the_lines_between_marks() -> None:
    page = results.replace("", COMMAND, ["first"])
    assert page == f"<!-- begin: {COMMAND} -->\n\nfirst\n<!-- end: {COMMAND} -->\n"


def test_remarks_before_between_and_behind_the_blocks_stay() -> None:
    page = results.replace("# Results\n\nBefore.\n", COMMAND, ["old"])
    page = results.replace(page + "\nBetween.\n", "./dev other", ["of another command"])
    changed = results.replace(page + "\nBehind.\n", COMMAND, ["new"])
    assert changed == (page + "\nBehind.\n").replace("old", "new")


def test_the_page_of_the_tree_has_its_marks() -> None:
    assert f"<!-- end: {COMMAND} -->" in results.PAGE.read_text()


def test_scales_are_saved_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert results.load(path, "whole") is None
    results.save(path, "whole", {"figure": 1})
    results.save(path, "quick", {"figure": 2})
    results.save(path, "whole", {"figure": 3})
    assert results.load(path, "whole") == {"figure": 3}
    assert results.load(path, "quick") == {"figure": 2}
    assert results.load(path, "unknown") is None
