from pathlib import Path

import pytest

from sendense.core.errors import Denied, Invalid
from sendense.hub.paths import USER_FOLDERS, AllowedDirs


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("data/backups", "data/locks", "allowed/deep", "allowedness"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def paths(place: Path) -> AllowedDirs:
    return AllowedDirs(place / "data", [place / "allowed"])


@pytest.mark.parametrize(
    "inside",
    [
        "allowed",
        "allowed/x",
        "allowed/deep/x/y",
        "allowed//deep/./x",
        "data/backups/x",
        "data/images",
    ],
)
def test_what_lies_below_an_allowed_place_is_resolved(
    paths: AllowedDirs, place: Path, inside: str
) -> None:
    assert paths.resolve(f"{place}/{inside}") == Path(f"{place}/{inside.replace('//', '/')}")


@pytest.mark.parametrize(
    "outside",
    [
        "",
        "x",
        "allowedness",
        "allowedness/x",
        "data",
        "data/x",
        "data/catalog.sqlite",
        "data/locks/x",
    ],
)
def test_what_lies_elsewhere_is_denied(paths: AllowedDirs, place: Path, outside: str) -> None:
    with pytest.raises(Denied) as caught:
        paths.resolve(f"{place}/{outside}".rstrip("/"))
    assert caught.value.kind == "path-not-allowed"
    assert "--allow-dir" in caught.value.hint


def test_links_are_followed_before_the_question(paths: AllowedDirs, place: Path) -> None:
    (place / "allowed" / "out").symlink_to("/etc")
    (place / "allowed" / "up").symlink_to("..")
    (place / "allowed" / "dangling").symlink_to(place / "not-there")
    (place / "inward").symlink_to(place / "allowed" / "deep")
    for name in ("out/passwd", "up/x", "dangling", "dangling/x"):
        with pytest.raises(Denied):
            paths.resolve(f"{place}/allowed/{name}")
    assert paths.resolve(f"{place}/inward/x") == place / "allowed" / "deep" / "x"


def test_a_link_that_changes_its_target_is_followed_anew(paths: AllowedDirs, place: Path) -> None:
    link = place / "allowed" / "link"
    link.symlink_to(place / "allowed" / "deep")
    paths.resolve(str(link))
    link.unlink()
    link.symlink_to("/etc")
    with pytest.raises(Denied):
        paths.resolve(str(link))


def test_an_allowed_place_that_is_a_link_allows_where_it_leads(place: Path) -> None:
    (place / "alias").symlink_to(place / "allowed")
    paths = AllowedDirs(place / "data", [place / "alias"])
    assert paths.resolve(f"{place}/allowed/x") == place / "allowed" / "x"
    assert paths.resolve(f"{place}/alias/x") == place / "allowed" / "x"


def test_the_data_directory_stays_private_inside_an_allowed_place(place: Path) -> None:
    paths = AllowedDirs(place / "data", [place])
    with pytest.raises(Denied):
        paths.resolve(f"{place}/data/catalog.sqlite")
    assert paths.resolve(f"{place}/other") == place / "other"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "relative",
        "./x",
        "~/x",
        "{place}/allowed/../allowed/x",
        "{place}/allowed/..",
        "{place}/allowed/a\0b",
        "{place}/allowed/" + "x" * 256,
        "{place}/allowed/" + "ü" * 128,
        "{place}/allowed" + "/x" * 2100,
        "{place}/allowed/\ud800",
    ],
)
def test_what_is_no_plain_absolute_path_is_invalid(
    paths: AllowedDirs, place: Path, path: str
) -> None:
    with pytest.raises(Invalid) as caught:
        paths.resolve(path.format(place=place))
    assert caught.value.kind == "path-invalid"


def test_a_circle_of_links_is_invalid(paths: AllowedDirs, place: Path) -> None:
    (place / "allowed" / "a").symlink_to("b")
    (place / "allowed" / "b").symlink_to("a")
    with pytest.raises(Invalid):
        paths.resolve(f"{place}/allowed/a/x")


def test_hints_name_all_allowed_places(paths: AllowedDirs, place: Path) -> None:
    assert str(place / "allowed") in paths.described
    assert all(name in paths.described for name in USER_FOLDERS)
