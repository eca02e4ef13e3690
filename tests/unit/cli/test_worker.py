from tests.unit.cli.conftest import Hub, Run

WORKER = {
    "id": "worker-1",
    "host": "nas1",
    "pid": 7,
    "labels": {"host": "nas1", "site": "berlin"},
    "version": "0.1.0",
    "started_at": "2026-01-02T03:04:05Z",
    "beat_age_seconds": 1.5,
    "status": "live",
    "jobs": ["job-1", "job-2"],
}


def test_workers_are_listed(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/workers", {"workers": [WORKER], "total": 1, "unplaced_jobs": ["job-9"]})

    result = run("worker", "list")

    assert result.code == 0
    heading, line = result.out.splitlines()
    assert heading.split() == ["HOST", "STATUS", "BEAT", "JOBS", "LABELS", "WORKER"]
    assert "nas1" in line
    assert "host=nas1, site=berlin" in line
    assert "1 job that no live worker may run: job-9" in result.err


def test_where_no_worker_is_this_is_said(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/workers", {"workers": [], "total": 0, "unplaced_jobs": []})

    result = run("worker", "list")

    assert (result.code, result.out) == (0, "")
    assert "no workers" in result.err


def test_with_json_the_list_is_the_server_s(run: Run, hub: Hub) -> None:
    body = '{"workers":[],"total":0,"unplaced_jobs":[]}'
    hub.answer("GET", "/workers", body)

    assert run("worker", "list", "--json").out == body + "\n"


def test_a_label_that_is_none_is_refused_before_anything_is_opened(run: Run) -> None:
    result = run("worker", "--data-dir", "/nonexistent/sendense", "--label", "berlin")

    assert result.code == 2
    assert "must be written as key=value" in result.err


def test_there_is_no_other_command_of_workers(run: Run) -> None:
    assert run("worker", "stop").code == 2
