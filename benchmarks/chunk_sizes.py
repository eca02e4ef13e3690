"""`./dev bench --chunk-sizes`: what chunks of each size cost, full and incremental.

The increment changes places of 64 KiB anywhere in the image's data: the larger the chunks, the more
is read and stored for each.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import contenders, content, report, scale
from benchmarks.contenders import Contender, Figures
from sendense.core import units
from sendense.repository import chunk

SIZES = tuple(size * units.KIB for size in (128, 256, 512, 1024, 4096))
CONTENT_BYTES = 768 * units.MIB
PLACES = 400
ROUNDS = 3


def main() -> None:
    """Measure, and print a table for the full backup and one for the increment."""
    image = content.make_image(scale.CACHE, content_bytes=CONTENT_BYTES)
    with scale.work_folder() as folder:
        changed, listed = folder / "changed.raw", folder / "changes.json"
        contenders.run_program(["cp", "--sparse=always", str(image), str(changed)])
        changes = content.change_places(changed, image, places=PLACES, seed=1)
        listed.write_text(json.dumps(changes))
        with contenders.served(image) as before, contenders.served(changed) as after:
            full = report.measure(
                [_full(folder, before, size) for size in SIZES], rounds=ROUNDS, note=_note
            )
            more = report.measure(
                [_more(folder, after, size, listed) for size in SIZES], rounds=ROUNDS, note=_note
            )
    for title, rows in (
        ("Full backup", full),
        (f"Incremental backup of {PLACES} places of 64 KiB", more),
    ):
        print("\n".join(report.Table(title, title, rows, _name(chunk.SIZE_DEFAULT)).to_lines()))


def _full(folder: Path, socket: Path, size: int) -> Contender:
    place = _place(folder, size)
    arguments = ["--name", "first", "--socket", str(socket), "--chunk-size", str(size)]
    return _contender(size, place, ["full", *arguments], lambda: contenders.remove(place))


def _more(folder: Path, socket: Path, size: int, listed: Path) -> Contender:
    kept, place = _place(folder, size), folder / "again"

    def prepare() -> None:
        contenders.remove(place)
        shutil.copytree(kept, place)

    arguments = ["--name", "second", "--parent", "first", "--socket", str(socket)]
    arguments += ["--changes", str(listed)]
    return _contender(size, place, ["incremental", *arguments], prepare)


def _contender(
    size: int, place: Path, arguments: list[str], prepare: Callable[[], None]
) -> Contender:
    def run() -> Figures:
        return contenders.run_ours(*arguments, "--repository", str(place))

    return Contender(_name(size), "", run, prepare)


def _place(folder: Path, size: int) -> Path:
    return folder / f"repository-{size // units.KIB}"


def _name(size: int) -> str:
    return f"chunks of {units.format_size(size)}"


def _note(text: str) -> None:
    print(text, file=sys.stderr)
