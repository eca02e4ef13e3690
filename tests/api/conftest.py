"""The API over HTTP, on real catalogs and real repositories in a folder.

What rests on the catalog's semantics runs on all three databases, the rest on SQLite; `--long` runs
everything everywhere.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.db.catalog import Catalog
from tests.api import kit
from tests.servers.fixtures import KINDS

# Whatever lists, filters, sorts, counts, searches, or decides between two requests.
EVERYWHERE = {
    "test_a_chain_tells_where_a_disks_backups_begin_and_end",
    "test_a_deleted_backup_is_gone_and_the_chain_follows",
    "test_a_failed_backup_is_retried_as_a_new_job",
    "test_a_job_shows_its_steps_log_and_error",
    "test_a_key_is_forgotten_after_a_week",
    "test_a_key_is_not_used_for_another_request",
    "test_a_listener_that_comes_back_learns_what_it_missed",
    "test_a_pending_backup_shows_everything_that_is_known",
    "test_a_repository_with_backups_is_not_forgotten",
    "test_a_second_backup_of_a_vm_is_refused_and_names_the_first",
    "test_a_vm_is_forgotten_once_it_has_no_backups",
    "test_a_vm_that_its_source_lost_is_kept_but_not_backed_up",
    "test_an_ambiguous_name_is_refused_with_the_candidates",
    "test_backups_are_listed_newest_first_and_in_pages",
    "test_credentials_are_sealed_and_opened_again",
    "test_cancelling_asks_the_job_and_only_while_it_may_still_stop",
    "test_each_filter_leaves_what_it_names",
    "test_events_begin_with_the_state_and_go_on_with_changes",
    "test_first_contact_settles_who_a_platform_is",
    "test_jobs_are_listed_newest_first_and_filtered",
    "test_names_are_unique",
    "test_names_at_their_limits_work",
    "test_of_many_requests_at_once_one_starts_a_backup",
    "test_progress_and_end_are_shown",
    "test_progress_of_a_running_backup_is_shown",
    "test_readiness_says_why_a_backup_will_not_be_incremental",
    "test_several_disks_or_repositories_make_a_list_of_chains",
    "test_tags_and_exclusions_are_set_and_replaced",
    "test_the_type_is_decided_from_the_catalog_with_its_reason",
    "test_without_the_key_only_logging_in_fails",
    "test_vms_and_disks_are_written_at_discovery",
    "test_vms_are_filtered_and_searched",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the databases of each test that asks for a lab."""
    if "database" in metafunc.fixturenames:
        everywhere = metafunc.config.option.long or metafunc.function.__name__ in EVERYWHERE
        metafunc.parametrize("database", KINDS if everywhere else KINDS[:1])


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, migrated_urls: Callable[[str], str]
) -> Iterator[kit.Served]:
    catalog = Catalog(migrated_urls("sqlite"))
    hub, _, _ = kit.make_hub(tmp_path_factory.mktemp("hub"), catalog)
    with kit.serve(hub) as running:
        yield running
    catalog.close()


@pytest.fixture
def lab(
    tmp_path: Path, database: str, open_catalog: Callable[[str], Catalog], served: kit.Served
) -> Iterator[kit.Lab]:
    with kit.open_lab(tmp_path, open_catalog(database), served) as opened:
        yield opened
