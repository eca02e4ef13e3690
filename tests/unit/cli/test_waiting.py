from typing import Any

import pytest

from sendense.cli import progress, waiting
from sendense.cli.command import Session
from sendense.cli.failure import ExitCode, Failure
from sendense.cli.output import Output
from sendense.core.clock import ManualClock
from tests.unit.cli.conftest import Hub, Run

JOB = "/jobs/job-1"


def _job(status: str, percent: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "job_id": "job-1",
        "kind": "backup",
        "status": status,
        "progress_percent": percent,
        "current_phase": status,
        "error": None,
        "subject": {},
        **more,
    }


def _wait(hub: Hub, clock: ManualClock | None = None) -> waiting.Ended:
    session = Session(Output(as_json=False), url=hub.url)
    try:
        return waiting.wait_for_job(session, "job-1", clock=clock or ManualClock())
    finally:
        session.close()


def test_a_job_is_followed_to_its_end_with_the_backup_it_makes(hub: Hub) -> None:
    subject = {"backup_id": "b-1"}
    for status in ("pending", "running", "completed"):
        hub.answer("GET", JOB, _job(status, subject=subject))
    hub.answer("GET", "/backups/b-1", {"backup_id": "b-1", "bytes_read": 5, "total_bytes": 10})
    ended = _wait(hub)
    assert ended.job.data["status"] == "completed"
    assert ended.subject is not None
    assert ended.body == ended.subject.text
    waiting.check_completed(ended)


def test_polling_backs_off_to_one_second(hub: Hub) -> None:
    for _ in range(20):
        hub.answer("GET", JOB, _job("running"))
    hub.answer("GET", JOB, _job("completed"))
    clock = ManualClock()
    _wait(hub, clock)
    assert 12 < clock.monotonic() < 20


def test_a_restart_of_the_server_is_borne(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.answer("GET", JOB, _job("running"))
    for _ in range(5):
        hub.hang_up("GET", JOB)
    hub.refuse("GET", JOB, 503, detail="starting")
    hub.answer("GET", JOB, _job("completed"))
    assert _wait(hub).job.data["status"] == "completed"
    said = capsys.readouterr().err
    assert said.count("waiting for it up to 120 s") == 1
    assert "the server answers again" in said


def test_a_server_that_stays_away_is_given_up_and_the_job_is_named(hub: Hub) -> None:
    hub.answer("GET", JOB, _job("running"))
    hub.hang_up("GET", JOB)
    clock = ManualClock()
    with pytest.raises(Failure) as caught:
        _wait(hub, clock)
    assert caught.value.code == ExitCode.UNAVAILABLE
    assert "sendense job watch job-1" in caught.value.hint
    assert waiting.OUTAGE_SECONDS_MAX < clock.monotonic() < waiting.OUTAGE_SECONDS_MAX + 10


def test_two_short_outages_do_not_add_up(hub: Hub) -> None:
    for _ in range(2):
        for _ in range(100):
            hub.hang_up("GET", JOB)
        hub.answer("GET", JOB, _job("running"))
    hub.answer("GET", JOB, _job("completed"))
    assert _wait(hub).job.data["status"] == "completed"


def test_a_job_that_vanishes_is_not_waited_for(hub: Hub) -> None:
    hub.answer("GET", JOB, _job("running"))
    hub.refuse("GET", JOB, 404, detail="no such job")
    with pytest.raises(Failure) as caught:
        _wait(hub)
    assert caught.value.code == ExitCode.NOT_FOUND


def test_a_job_nobody_takes_is_worth_a_word(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(60):
        hub.answer("GET", JOB, _job("pending"))
    hub.answer("GET", JOB, _job("completed"))
    _wait(hub)
    assert capsys.readouterr().err.count("no worker has taken the job") == 1


def test_waiting_ends_even_where_the_job_never_does(hub: Hub) -> None:
    class Leaping(ManualClock):
        def sleep(self, seconds: float) -> None:
            self.advance(seconds * 100_000)

    hub.answer("GET", JOB, _job("running"))
    with pytest.raises(Failure, match="has not ended in 7 days"):
        _wait(hub, Leaping())


def test_ctrl_c_detaches_and_says_how_to_cancel(hub: Hub) -> None:
    class Interrupting(ManualClock):
        def sleep(self, seconds: float) -> None:  # noqa: ARG002 - the clock's signature
            raise KeyboardInterrupt

    hub.answer("GET", JOB, _job("running"))
    with pytest.raises(Failure) as caught:
        _wait(hub, Interrupting())
    assert caught.value.code == ExitCode.INTERRUPTED
    assert "sendense job cancel job-1" in caught.value.hint
    assert not hub.sent("POST", f"{JOB}/cancel")


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_that_did_not_complete_ends_the_command_with_1(
    run: Run, hub: Hub, status: str
) -> None:
    error = {"message": "the source went away", "hint": "start it"}
    hub.answer("GET", JOB, _job(status, error=error))
    result = run("job", "watch", "job-1")
    assert result.code == 1
    assert "the source went away" in result.err
    assert "hint: start it" in result.err
    as_json = run("job", "watch", "job-1", "--json")
    assert as_json.code == 1
    assert f'"status": "{status}"' in as_json.out


def test_progress_in_a_log_is_plain_lines_at_phases(run: Run, hub: Hub) -> None:
    counts = {"bytes_total": 4096, "bytes_done": 1024, "transfer_speed_bps": 1024.0}
    for phase, percent in (("plan", 0), ("transfer", 10), ("transfer", 60), ("commit", 99)):
        more = {"current_phase": phase, "seconds_left": 3.0, **counts}
        hub.answer("GET", JOB, _job("running", percent, **more))
    hub.answer("GET", JOB, _job("completed", 100))
    result = run("job", "watch", "job-1")
    assert result.code == 0
    assert result.err.splitlines() == [
        "plan, 0 %, 1.0 KiB of 4.0 KiB, 1.0 KiB/s, 3 s left",
        "transfer, 10 %, 1.0 KiB of 4.0 KiB, 1.0 KiB/s, 3 s left",
        "commit, 99 %, 1.0 KiB of 4.0 KiB, 1.0 KiB/s, 3 s left",
    ]
    assert "\x1b" not in result.out + result.err


def test_what_a_job_does_not_know_is_not_shown() -> None:
    assert progress.read_status({"status": "running"}).describe() == "running, 0 %"
    job = {"current_phase": "read", "progress_percent": 250, "bytes_done": 7, "bytes_total": 0}
    assert progress.read_status(job).describe() == "read, 100 %"
