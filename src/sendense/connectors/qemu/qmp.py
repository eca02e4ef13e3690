"""QMP, blocking: one connection to one QEMU process, with a time limit on everything.

The protocol is spoken by the project's own binding, `qemu.qmp`, which is asynchronous; it runs on a
loop in a thread of its own. A QMP socket serves one client at a time: while one holds it, others
are accepted by the kernel but never greeted. The connector relies on that for mutual exclusion.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from sendense.core.errors import Denied, Unavailable

CONNECT_SECONDS_MAX = 10.0  # a QEMU under TCG on a busy machine greets within one
COMMAND_SECONDS_MAX = 60.0  # draining and flushing slow disks is the longest that a command does
CLOSE_SECONDS_MAX = 5.0

# What a socket says whose QEMU has ended, or is ending.
_GONE = (FileNotFoundError, ConnectionError, EOFError)

# What a connect says while the socket's queue is full: the kernel says EAGAIN, which asyncio takes
# for a connect that goes on, and then finds a socket without a peer.
_FULL = {errno.EAGAIN, errno.EINVAL, errno.ENOTCONN}

_T = TypeVar("_T")


class CommandFailed(Unavailable):
    """QEMU understood the command and refused it.

    Attributes:
        description: QEMU's own words.
    """

    default_kind = "qmp-command-failed"

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(
            f"QEMU refused {command}: {description}",
            command=command,
            error_class=error_class,
            description=description,
        )
        self.description = description


class Qmp:
    """An open connection. Closing it leaves the VM as it is.

    Raises Unavailable where the process is gone or silent, Denied where the socket may not be
    opened, and CommandFailed where QEMU refuses a command.
    """

    def __init__(self, path: Path, *, connect_seconds_max: float = CONNECT_SECONDS_MAX) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"qmp {path.name}", daemon=True
        )
        self._thread.start()
        self._client = QMPClient("sendense")
        self._client.logger.disabled = True  # whatever it would log is raised as well
        try:
            self._connect(connect_seconds_max)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def execute(
        self, command: str, *, seconds_max: float = COMMAND_SECONDS_MAX, **arguments: Any
    ) -> Any:
        """Run one command and return what it returned.

        Underscores in the names of arguments stand for hyphens.
        """
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._run(self._client.execute(command, given or None), seconds_max)
        except ExecuteError as error:
            raise CommandFailed(command, error.error_class, str(error)) from error
        except TimeoutError as error:
            raise Unavailable(
                f"QEMU at {self._path} did not answer {command} in {seconds_max:g} s",
                kind="qmp-silent",
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise Unavailable(
                f"the connection to QEMU at {self._path} broke during {command}", kind="qmp-lost"
            ) from error

    def close(self) -> None:
        """Disconnect; safe to call twice and after QEMU ended."""
        if self._loop.is_closed():
            return
        # A broken connection reports its fault once more here; whoever used it has seen it.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            self._run(self._client.disconnect(), CLOSE_SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _connect(self, seconds_max: float) -> None:
        try:
            self._run(self._client.connect(str(self._path)), seconds_max)
        except TimeoutError as error:
            raise _busy(f"QEMU at {self._path} did not greet within {seconds_max:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            cause = getattr(error, "exc", error)  # the binding wraps what the socket said
            if getattr(cause, "errno", None) in _FULL:
                # The few places to wait are taken by clients that were never greeted, ours too.
                raise _busy(f"QEMU at {self._path} takes no more connections") from error
            if isinstance(cause, PermissionError):
                raise Denied(
                    f"the QMP socket {self._path} may not be opened by this user",
                    hint="run the hub as the user that runs QEMU",
                ) from error
            raise Unavailable(
                f"no QEMU answers at {self._path}: {cause}",
                kind="qmp-unreachable" if isinstance(cause, _GONE) else "qmp-failed",
                hint="is the VM running, and was QEMU started with -qmp unix:…,server=on,wait=off?",
            ) from error

    def _run(self, coroutine: Coroutine[Any, Any, _T], seconds_max: float) -> _T:
        limited = asyncio.wait_for(coroutine, seconds_max)
        future = asyncio.run_coroutine_threadsafe(limited, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise EOFError("disconnected meanwhile") from error


def _busy(message: str) -> Unavailable:
    return Unavailable(
        message,
        kind="qmp-busy",
        hint="a QMP socket serves one client at a time: give Sendense one of its own",
    )
