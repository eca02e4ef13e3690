"""`python -m demo`: see the main job done on a real guest, from discovery to equal bytes.

Exit status 0 only if everything held.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from demo import scenario
from demo.hub import Hub
from demo.story import Story
from sendense.core.errors import SendenseError


def main() -> int:
    """Run the demonstration and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="./dev demo",
        description="Back up a real guest in full and incrementally through the REST API, restore "
        "both points, and compare every byte with copies made past the product.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the hub running and print its address"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)  # clean up as after Ctrl-C
    story = Story(as_json=options.json)
    # A short path: unix sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="sendense-demo-"))
    kept = False
    try:
        kept = _run(folder, story, keep=options.keep)
    except SendenseError as error:
        story.fail(error.message + (f" ({error.hint})" if error.hint else ""))
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if story.finish() else 1


def _run(folder: Path, story: Story, *, keep: bool) -> bool:
    """Play the story; return whether the hub was left running."""
    guest = scenario.make_guest(folder, story)
    with Hub(folder / "hub", folder) as hub, guest:
        scenario.play(scenario.Scene(folder, guest, hub, story))
        if keep:
            hub.leave_running()
            story.figures["hub"] = {
                "address": hub.address,
                "process_id": hub.process_id,
                "folder": str(folder),
            }
            story.say(
                f"\nThe hub answers at {hub.address}/api/v1/docs until: kill {hub.process_id}"
            )
            story.say(f"Its data is in {folder}")
    return keep


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
