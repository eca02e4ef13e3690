"""`python -m tests.fuzz [options of libFuzzer] [folder of inputs]`: atheris over all parsers.

    python -m tests.fuzz -max_total_time=3600 .cache/fuzz

The first byte chooses the parser and the second one of its seeds to begin with: bytes that follow
are laid over it.
"""

import contextlib
import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["sendense.repository"]):
    from tests.fuzz.parsers import REFUSALS, list_parsers

PARSERS = list_parsers()


def parse(data: bytes) -> None:
    """Give bytes to a parser; any error but a refusal is a finding."""
    if len(data) < 4:
        return
    parser = PARSERS[data[0] % len(PARSERS)]
    seed = parser.seeds[data[1] % len(parser.seeds)]
    at = int.from_bytes(data[2:4], "little") % (len(seed) + 1)
    laid = data[4:]
    with contextlib.suppress(*REFUSALS):
        parser.parse(seed[:at] + laid + seed[at + len(laid) :])


atheris.Setup(sys.argv, parse)
atheris.Fuzz()
