"""The connector against a real guest that writes all the time."""

from pathlib import Path

import pytest

from tests.system.conftest import DISK_BYTES, SECOND_BYTES, MakeGuest, open_source
from tests.system.copying import Chain

pytestmark = pytest.mark.guest

WRITER = (
    "while :; do for d in a b; do dd if=/dev/urandom of=/mnt/$d/busy bs=64k count=8 conv=notrunc;"
    " sync; done; done"
)


def test_increments_equal_the_truth_while_the_guest_writes(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    guest.spawn(WRITER)
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    guest.shell("dd if=/dev/urandom of=/mnt/a/known bs=64k count=20; sync")
    for _ in range(3):
        read = chain.back_up()
        assert chain.list_reasons() == [None, None]
        assert 0 < read[2000] < DISK_BYTES / 4
        assert 0 < read[2001] < SECOND_BYTES / 4
