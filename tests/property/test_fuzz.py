"""Every parser against bytes that chance changes: refusals only, and bounded memory."""

import contextlib
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.core import units
from tests.fuzz.parsers import REFUSALS, Parser, list_parsers

PARSERS = list_parsers()
MEMORY_BYTES = (
    24 * units.MIB
)  # a chunk of 4 MiB, its frame and copies; no length field may ask for more
CHANGED_EACH = 150
RUNS = 50_000  # of atheris: some seconds
ROOT = Path(__file__).parents[2]


def change(seed: bytes, randomness: random.Random) -> bytes:
    """Return bytes like these: flipped, cut, spliced, or with a number made huge."""
    data = bytearray(seed)
    for _ in range(randomness.randint(1, 3)):
        at = randomness.randrange(len(data) + 1) if data else 0
        match randomness.randrange(6):
            case 0:
                data[at : at + 1] = bytes([randomness.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at : at + 8] = b"\xff" * randomness.choice([1, 2, 4, 8])
            case 3:
                source = randomness.randrange(len(data) + 1)
                data[at:at] = data[source : source + randomness.randint(1, 64)]
            case 4:
                del data[at : at + randomness.randint(1, 64)]
            case _:
                data[at : at + 4] = randomness.randrange(1 << 32).to_bytes(4, "little")
    return bytes(data)


def parse_bounded(parser: Parser, data: bytes) -> None:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with contextlib.suppress(*REFUSALS):
        parser.parse(data)
    peak = tracemalloc.get_traced_memory()[1] - before
    assert peak <= MEMORY_BYTES + 20 * len(data), (parser.name, len(data), peak)


@pytest.mark.parametrize("parser", PARSERS, ids=[one.name for one in PARSERS])
def test_what_is_nearly_right_is_refused_or_read(
    parser: Parser, seed: int, *, long_run: bool
) -> None:
    randomness = random.Random(f"{seed}{parser.name}")
    tracemalloc.start()
    try:
        for whole in parser.seeds:
            for _ in range(CHANGED_EACH * (100 if long_run else 1) // len(parser.seeds)):
                parse_bounded(parser, change(whole, randomness))
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("parser", PARSERS, ids=[one.name for one in PARSERS])
def test_what_is_right_is_read(parser: Parser) -> None:
    for whole in parser.seeds:
        parser.parse(whole)


@given(st.sampled_from(PARSERS), st.binary(max_size=600))
def test_bytes_of_any_kind_are_refused(parser: Parser, data: bytes) -> None:
    with contextlib.suppress(*REFUSALS):
        parser.parse(data)


@given(st.sampled_from([one for one in PARSERS if one.name.startswith("frame")]), st.binary())
def test_a_header_of_the_right_kind_with_anything_behind_it(parser: Parser, data: bytes) -> None:
    with contextlib.suppress(*REFUSALS):
        parser.parse(parser.seeds[0][:64] + data)


def test_coverage_leads_the_way(tmp_path: Path, seed: int) -> None:
    """A short run of atheris over all parsers, which looks for inputs that reach new branches."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    command = [sys.executable, "-m", "tests.fuzz", f"-runs={RUNS}", f"-seed={seed % 2**31 or 1}"]
    command += [f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr, done.stderr[-3000:]
