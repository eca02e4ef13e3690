"""Waiting for a job: polled with back-off, through restarts of the server, until it ends."""

from dataclasses import dataclass
from typing import Any

from sendense.cli import progress
from sendense.cli.client import Answer
from sendense.cli.command import Session
from sendense.cli.failure import ExitCode, Failure
from sendense.core.clock import Clock, SystemClock

ENDED = frozenset({"completed", "failed", "cancelled"})

_POLL_SECONDS_MIN = 0.1  # a small job is over before anybody notices the wait
_POLL_SECONDS_MAX = 1.0  # progress is written at most every second
_BACK_OFF = 1.4
OUTAGE_SECONDS_MAX = 120.0  # a restart takes seconds, a machine's reboot a minute or two
PENDING_SECONDS_NOTED = 30.0  # a worker picks a job up within a second; this long is worth a word
WAIT_SECONDS_MAX = 7 * 86_400.0  # longer than any transfer should take; the job itself goes on


@dataclass(frozen=True)
class Ended:
    """A job that came to its end, and the backup or restore it made, as last read."""

    job: Answer
    subject: Answer | None

    @property
    def body(self) -> str:
        """Return what `--json` prints: what the job made, else the job."""
        return (self.subject or self.job).text


def wait_for_job(session: Session, job_id: str, *, clock: Clock | None = None) -> Ended:
    """Return once the job has ended, however it ended, showing progress on the way.

    A server that goes away is waited for up to `OUTAGE_SECONDS_MAX`. Ctrl-C detaches: the job goes
    on, and the failure raised says how to cancel it.
    """
    used_clock = clock or SystemClock()
    waiter = _Waiter(session, job_id, used_clock)
    display = progress.open_display(session.output.err, used_clock, silent=session.output.as_json)
    try:
        with display:
            return waiter.wait(display)
    except KeyboardInterrupt as interrupt:
        raise Failure(
            f"stopped waiting; job {job_id} goes on",
            ExitCode.INTERRUPTED,
            hint=f"cancel it by `sendense job cancel {job_id}`, "
            f"see it by `sendense job watch {job_id}`",
        ) from interrupt


def check_completed(ended: Ended) -> None:
    """Raise Failure with the job's own reason unless it completed."""
    job = ended.job.data
    status = job.get("status")
    if status == "completed":
        return
    kind = job.get("kind", "job")
    message, hint = read_error(job.get("error"))
    verb = "was cancelled" if status == "cancelled" else "failed"
    raise Failure(
        f"{kind} {verb}: {message}" if message else f"{kind} {verb}",
        ExitCode.FAILED,
        hint=hint or f"see `sendense job show {job.get('job_id')}`",
    )


def read_error(error: object) -> tuple[str, str]:
    """Return message and hint of a job's error, which is text or a problem document."""
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error.get("title") or ""
        return str(message), str(error.get("hint") or "")
    return (str(error) if error else ""), ""


class _Waiter:
    """The loop, and what it has to remember from turn to turn."""

    def __init__(self, session: Session, job_id: str, clock: Clock) -> None:
        self._session = session
        self._job_id = job_id
        self._clock = clock
        self._lost_at: float | None = None
        self._pending_noted = False
        self._status = progress.Status("waiting", 0.0)

    def wait(self, display: progress.Display) -> Ended:
        started = self._clock.monotonic()
        pause = _POLL_SECONDS_MIN
        while (waited := self._clock.monotonic() - started) < WAIT_SECONDS_MAX:
            seen = self._look(display)
            if seen is not None:
                job = seen.job.data
                if job.get("status") in ENDED:
                    return seen
                self._status = progress.read_status(job)
                display.show(self._status)
                self._note_pending(display, job, waited)
            self._clock.sleep(pause)
            pause = min(pause * _BACK_OFF, _POLL_SECONDS_MAX)
        raise Failure(
            f"job {self._job_id} has not ended in {WAIT_SECONDS_MAX / 86_400:.0f} days",
            ExitCode.UNAVAILABLE,
            hint=f"it goes on; see `sendense job show {self._job_id}`",
        )

    def _look(self, display: progress.Display) -> Ended | None:
        """Return the job, at its end with its subject; or None while the server is away."""
        try:
            job = self._session.api.get("jobs", self._job_id)
            ended = job.data.get("status") in ENDED
            subject = self._look_at_subject(job.data.get("subject")) if ended else None
        except Failure as problem:
            if problem.code != ExitCode.UNAVAILABLE:
                raise
            self._bear(problem, display)
            return None
        if self._lost_at is not None:
            display.note("the server answers again")
            self._lost_at = None
        return Ended(job, subject)

    def _look_at_subject(self, subject: Any) -> Answer | None:
        names = subject if isinstance(subject, dict) else {}
        for key, noun in (("backup_id", "backups"), ("restore_id", "restores")):
            if names.get(key):
                try:
                    return self._session.api.get(noun, str(names[key]))
                except Failure as problem:
                    if problem.code != ExitCode.NOT_FOUND:
                        raise
        return None

    def _bear(self, problem: Failure, display: progress.Display) -> None:
        now = self._clock.monotonic()
        display.show(progress.Status("waiting for the server", self._status.percent))
        if self._lost_at is None:
            self._lost_at = now
            display.note(f"{problem.message}; waiting for it up to {OUTAGE_SECONDS_MAX:.0f} s")
        if now - self._lost_at > OUTAGE_SECONDS_MAX:
            raise Failure(
                f"{problem.message}; gave up waiting after {OUTAGE_SECONDS_MAX:.0f} s",
                ExitCode.UNAVAILABLE,
                hint=f"the job may go on; see `sendense job watch {self._job_id}` later",
            ) from problem

    def _note_pending(self, display: progress.Display, job: dict[str, Any], waited: float) -> None:
        if self._pending_noted or job.get("status") != "pending" or waited < PENDING_SECONDS_NOTED:
            return
        self._pending_noted = True
        display.note(f"no worker has taken the job for {waited:.0f} s; see `sendense doctor`")
