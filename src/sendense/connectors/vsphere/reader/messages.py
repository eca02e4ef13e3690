"""What nbdkit writes to its standard error: bounded, without secrets, and understood."""

import threading
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO
from xml.sax import saxutils

LINE_BYTES_MAX = 16_384  # VDDK prints whole requests; the rest of a longer line says nothing new
LINE_CHARACTERS_KEPT = 1000
LINES_KEPT = 200  # VDDK's story of one opening; a library that raves must not fill the memory
JOIN_SECONDS_MAX = 5.0  # the stream ends with the process; a child of VDDK may hold it open
HIDDEN = "***"


class Messages:
    """The last lines of a stream, read by a thread of its own until the stream ends.

    `listen` is called in that thread with each line as it came: it must neither keep nor show it.
    """

    def __init__(
        self, stream: IO[bytes], secrets: Iterable[str], listen: Callable[[str], None]
    ) -> None:
        self._stream = stream
        self._hidden = sorted(_list_spellings(secrets), key=len, reverse=True)
        self._listen = listen
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._errors: deque[str] = deque(maxlen=LINES_KEPT)
        self._thread = threading.Thread(target=self._drain, name="nbdkit-messages", daemon=True)
        self._thread.start()

    def list_lines(self) -> list[str]:
        """Return the last lines, redacted."""
        return list(self._lines)

    def list_errors(self) -> list[str]:
        """Return the last lines that nbdkit calls errors, redacted and without its prefix."""
        return list(self._errors)

    def finish(self) -> None:
        """Wait until everything is read; call it when the process has ended."""
        self._thread.join(JOIN_SECONDS_MAX)

    def _drain(self) -> None:
        with self._stream:
            for raw in _split(self._stream):
                line = raw.decode(errors="replace").rstrip()
                self._listen(line)
                shown = self.redact(line)[:LINE_CHARACTERS_KEPT]
                self._lines.append(shown)
                _, found, error = shown.partition("error: ")
                if found and shown.startswith("nbdkit: "):
                    self._errors.append(error)

    def redact(self, text: str) -> str:
        """Return a text without the secrets, in any spelling that VDDK may print."""
        for secret in self._hidden:
            text = text.replace(secret, HIDDEN)
        return text


def _list_spellings(secrets: Iterable[str]) -> set[str]:
    return {
        spelling
        for secret in secrets
        if secret
        for spelling in (
            secret,
            saxutils.escape(secret),
            saxutils.escape(secret, {'"': "&quot;", "'": "&apos;"}),
            urllib.parse.quote(secret),
            urllib.parse.quote(secret, safe=""),
            urllib.parse.quote_plus(secret),
        )
    }


def _split(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield lines; of one that is too long the rest is dropped, never shown on its own."""
    is_rest = False
    while line := stream.readline(LINE_BYTES_MAX):
        if not is_rest:
            yield line
        is_rest = not line.endswith(b"\n")
