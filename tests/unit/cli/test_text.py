import json

from sendense.cli import text


def test_letters_of_all_scripts_stay_as_they_are() -> None:
    assert text.escape("Büro-服务器-خادم-сервер 🖥") == "Büro-服务器-خادم-сервер 🖥"


def test_an_escape_sequence_in_a_name_is_shown_and_not_sent() -> None:
    assert text.escape("a\x1b[2Jb") == "a\\x1b[2Jb"


def test_a_name_stays_on_one_line() -> None:
    assert text.escape("a\nb\r\tc\u2028d") == "a\\nb\\r\\tc\\u2028d"


def test_c1_controls_and_bidirectional_overrides_are_escaped() -> None:
    assert text.escape("\x9b31m\u202egpj.exe\u200b") == "\\x9b31m\\u202egpj.exe\\u200b"


def test_a_lone_surrogate_of_a_broken_argument_is_escaped() -> None:
    assert text.escape("a\udcffb") == "a\\udcffb"


def test_escaped_json_keeps_its_meaning() -> None:
    document = {"name": "x\x9b31m\u202e\x1b[0m", "list": [1, "é\U000e0001"]}
    body = json.dumps(document, ensure_ascii=False, indent=1)
    shown = text.escape_json(body)
    assert json.loads(shown) == document
    assert not any(character in shown for character in "\x9b\u202e\x1b\U000e0001")


def test_a_percentage_is_complete_only_at_the_end() -> None:
    assert text.percent(99.99) == "99 %"
    assert text.percent(100.0) == "100 %"
    assert text.percent(None) == "-"


def test_durations_use_their_two_largest_units() -> None:
    assert [text.duration(value) for value in (0.4, 59, 61, 3_720, 90_000, None, -1)] == [
        "0.4 s",
        "59 s",
        "1 min 01 s",
        "1 h 02 min",
        "1 d 01 h",
        "-",
        "-",
    ]


def test_an_estimate_is_whole_seconds_rounded_up() -> None:
    shown = [text.remaining(value) for value in (0, 0.2, 59.5, 61)]
    assert shown == ["0 s left", "1 s left", "1 min 00 s left", "1 min 01 s left"]


def test_a_time_is_shown_in_utc_whatever_its_zone() -> None:
    assert text.moment("2026-01-01T02:00:00+02:00") == "2026-01-01 00:00:00"
    assert text.moment("2026-01-01T00:00:00") == "2026-01-01 00:00:00"
    assert text.moment(None) == "-"
    assert text.moment("soon\x1b") == "soon\\x1b"


def test_tags_are_listed_as_they_are_typed() -> None:
    assert text.listing({"a": "1", "b": "x y"}) == "a=1, b=x y"
    assert text.listing([]) == "-"
    assert text.listing(["a", 2]) == "a, 2"


def test_many_lines_of_a_kind_become_some_and_a_count() -> None:
    lines = [("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b2")]
    assert text.shorten(lines, most=2) == ["a1", "b1", "a2", "… and 2 more of this kind", "b2"]
    assert text.shorten(lines[:3]) == ["a1", "b1", "a2"]
