import pytest

from sendense.core.errors import NoSpace
from sendense.repository.storage.memory import MemoryStorage


def test_a_full_storage_refuses_what_does_not_fit_and_keeps_the_rest() -> None:
    storage = MemoryStorage(capacity_bytes=10)
    storage.put_if_absent("a", bytes(6))
    with pytest.raises(NoSpace) as caught:
        storage.put_if_absent("b", bytes(5))
    assert caught.value.kind == "repository-full"
    storage.put_if_absent("b", bytes(4))
    assert [found.name for found in storage.list_objects()] == ["a", "b"]
