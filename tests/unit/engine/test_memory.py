"""Memory does not grow with the disk: measured in a process of its own."""

import json
import subprocess
import sys

from sendense.core import units

SCRIPT = """
import json, random, threading, time
from pathlib import Path
from sendense.core import units
from tests.engine_kit import Lab, SparseDisk, PAGE

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("RssAnon:"))

class Noise(SparseDisk):
    # Dense data that is nowhere kept, a third of it noise, so that packs fill as with real data.
    def read(self, offset, length):
        data = bytearray(length)
        for at in range(0, length, 65536):
            count = 4000 + (offset + at) // 524288 * 31 % 17 * 2500
            start = (offset + at) // 65536 * 22013 % (len(self.noise) - count)
            data[at:at + count] = self.noise[start:start + count]
            data[at:at + 8] = (offset + at).to_bytes(8, "big")
        return bytes(data[:length])
    def list_allocated(self):
        from sendense.core.extent import Extent
        yield Extent(0, units.GIB)
        yield Extent(units.GIB, self.size_bytes - units.GIB, zero=True)

class Nowhere:
    # Takes packs and forgets their bytes; keeps the rest.
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def put_if_absent(self, name, data):
        if not name.startswith("packs/"): self.inner.put_if_absent(name, data)

from sendense.repository.storage.memory import MemoryStorage
disk = Noise(4 * units.TIB)
disk.noise = random.Random(1).randbytes(8 * units.MIB)
lab = Lab(Nowhere(MemoryStorage()), chunk_size=512 * units.KIB)
before = anonymous()
peak, ended = [0], threading.Event()
def watch():
    while not ended.wait(0.02): peak[0] = max(peak[0], anonymous())
threading.Thread(target=watch, daemon=True).start()
_, done = lab.back_up(disk)
ended.set()
print(json.dumps({"before": before, "peak": peak[0], "read": done.record.bytes_read,
    "stored": done.record.bytes_stored}))
"""


def test_a_huge_sparse_disk_with_a_dense_gibibyte_stays_within_its_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    told = json.loads(done.stdout)
    assert told["read"] == units.GIB
    assert told["stored"] > 256 * units.MIB
    assert told["peak"] < 200 * units.MIB, told
