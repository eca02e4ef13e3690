from sendense.durable.definition import Retry, step


def test_waits_double_up_to_a_limit() -> None:
    retry = Retry(attempts_max=9, interval_seconds=2.0, interval_seconds_max=10.0)

    assert [retry.wait_seconds(attempt) for attempt in (1, 2, 3, 4)] == [2.0, 4.0, 8.0, 10.0]


def test_a_step_keeps_its_name_whatever_its_function_is_called() -> None:
    @step("take_snapshot")
    def renamed(context: None, number: int) -> int:
        del context
        return number

    assert renamed.name == "take_snapshot"
    assert renamed.function(None, 3) == 3
