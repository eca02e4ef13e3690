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

from demo import scenario, vsphere
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
        "--vsphere",
        action="store_true",
        help="the same with a VM of a simulated vCenter (govmomi's vcsim; needs Go the first time)",
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
        play = _play_vsphere if options.vsphere else _play_guest
        kept = play(folder, story, keep=options.keep)
    except SendenseError as error:
        story.fail(error.message + (f" ({error.hint})" if error.hint else ""))
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if story.finish() else 1


def _play_guest(folder: Path, story: Story, *, keep: bool) -> bool:
    """Play the story of a real guest; return whether the hub was left running."""
    guest = scenario.make_guest(folder, story)
    with Hub(folder / "hub", folder) as hub, guest:
        scenario.play(scenario.Scene(folder, guest, hub, story))
        _leave(hub, folder, story, keep=keep)
    return keep


def _play_vsphere(folder: Path, story: Story, *, keep: bool) -> bool:
    """Play the story of a vCenter's VM; return whether the hub was left running."""
    with vsphere.start(folder, story) as vcenter, Hub(folder / "hub", folder) as hub:
        vsphere.play(vsphere.Scene(folder, vcenter, hub, story))
        _leave(hub, folder, story, keep=keep)
    return keep


def _leave(hub: Hub, folder: Path, story: Story, *, keep: bool) -> None:
    """Leave the hub running where that is wished, and say where it is."""
    if keep:
        hub.leave_running()
        story.figures["hub"] = {
            "address": hub.address,
            "process_id": hub.process_id,
            "folder": str(folder),
        }
        story.say(f"\nThe hub answers at {hub.address}/api/v1/docs until: kill {hub.process_id}")
        story.say(f"Its data is in {folder}")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
