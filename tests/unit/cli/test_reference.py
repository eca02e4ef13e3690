from pathlib import Path

from sendense.cli import reference

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_on_the_command_line_is_the_programs_own_help() -> None:
    assert PAGE.read_text() == reference.render(), (
        "run: python -m sendense.cli.reference > docs/cli.md"
    )


def test_every_command_has_a_summary_and_examples() -> None:
    page = reference.render()
    for section in page.split("\n### ")[1:]:
        assert "```\nsendense " in section, section.splitlines()[0]
