"""Who can open a repository: the recovery key on paper, and passphrases."""

import dataclasses
import time

import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import Corrupt, Denied, Invalid, NotFound
from sendense.core.ids import SeededIds
from sendense.repository import format, recipients, record, recovery
from sendense.repository.format import Frame
from sendense.repository.keys import UNSEALED
from sendense.repository.recipients import Recipient
from sendense.repository.storage.memory import MemoryStorage
from tests.repository_kit import KEYS, ROOT

PHRASE = "four words you keep"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in milliseconds."""
    monkeypatch.setattr(recipients, "ITERATIONS", 1)
    monkeypatch.setattr(recipients, "MEMORY_KIB", 64)


def _add(storage: MemoryStorage, phrase: str, *, seed: int = 1, root: bytes = ROOT) -> Recipient:
    return recipients.add_passphrase(
        storage, root, phrase, label="office", clock=ManualClock(), ids=SeededIds(seed)
    )


class TestRecoveryKey:
    def test_it_says_what_it_is_and_is_read_back(self) -> None:
        text = recovery.to_text(ROOT)
        assert text.startswith("SENDENSE-1-")
        assert [len(group) for group in text.split("-")[2:]] == [4] * 14
        assert recovery.parse(text) == ROOT

    def test_spaces_case_and_look_alikes_do_not_matter(self) -> None:
        text = recovery.to_text(ROOT)
        plain = text.removeprefix("SENDENSE-1-").replace("-", "")
        assert recovery.parse(f"  {text.lower()}\n") == ROOT
        assert recovery.parse(plain.replace("O", "0").replace("I", "1").replace("B", "8")) == ROOT
        assert recovery.parse("\n".join(text.split("-")[2:])) == ROOT

    def test_each_single_slip_is_noticed(self) -> None:
        text = recovery.to_text(ROOT)
        for at in range(len("SENDENSE-1-"), len(text)):
            if text[at] == "-":
                continue
            slipped = text[:at] + ("A" if text[at] != "A" else "C") + text[at + 1 :]
            with pytest.raises(Invalid):
                recovery.parse(slipped)

    @pytest.mark.parametrize("text", ["", "SENDENSE-1", "passphrase", "ä" * 56, "A" * 64, "A" * 55])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(Invalid) as caught:
            recovery.parse(text)
        assert caught.value.kind == "recovery-key-invalid"


class TestPassphrases:
    def test_each_opens_until_it_is_removed(self) -> None:
        storage = MemoryStorage()
        first, second = _add(storage, PHRASE), _add(storage, PHRASE + "!", seed=2)
        assert recipients.open_by_passphrase(storage, PHRASE) == ROOT
        assert recipients.open_by_passphrase(storage, PHRASE + "!") == ROOT
        assert recipients.remove(storage, first.recipient_id) == first
        with pytest.raises(Denied) as caught:
            recipients.open_by_passphrase(storage, PHRASE)
        assert caught.value.kind == "passphrase-wrong"
        assert recipients.list_recipients(storage) == ([second], [])

    def test_accents_may_be_encoded_either_way(self) -> None:
        storage = MemoryStorage()
        _add(storage, "schöne grüße an alle")
        assert recipients.open_by_passphrase(storage, "scho\u0308ne gru\u0308ße an alle") == ROOT

    def test_it_is_not_stored(self) -> None:
        storage = MemoryStorage()
        made = _add(storage, PHRASE)
        assert made.name == f"keys/{KEYS.domain.hex()}.{made.recipient_id}"
        data = storage.get(made.name)
        for secret in (PHRASE.encode(), ROOT, ROOT.hex().encode()):
            assert secret not in data

    @pytest.mark.parametrize("phrase", ["", "short", "x" * 1025])
    def test_one_that_is_too_short_or_long_is_refused(self, phrase: str) -> None:
        storage = MemoryStorage()
        with pytest.raises(Invalid) as caught:
            _add(storage, phrase)
        assert caught.value.kind == "passphrase-invalid"
        assert list(storage.list_objects()) == []

    def test_what_is_not_there_is_said(self) -> None:
        storage = MemoryStorage()
        with pytest.raises(NotFound) as none:
            recipients.open_by_passphrase(storage, PHRASE)
        with pytest.raises(NotFound) as unknown:
            recipients.remove(storage, "nobody")
        assert (none.value.kind, unknown.value.kind) == ("passphrase-none", "recipient-unknown")

    def test_a_damaged_wrap_keeps_no_other_from_opening(self) -> None:
        storage = MemoryStorage()
        first = _add(storage, PHRASE)
        storage.delete(first.name)
        storage.put_if_absent(first.name, b"junk")
        with pytest.raises(Corrupt):
            recipients.open_by_passphrase(storage, PHRASE)
        _add(storage, PHRASE, seed=2)
        assert recipients.open_by_passphrase(storage, PHRASE) == ROOT
        assert [one.fields["name"] for one in recipients.list_recipients(storage)[1]] == [
            first.name
        ]

    def test_one_that_vanishes_after_the_listing_is_passed_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = MemoryStorage()
        made = _add(storage, PHRASE)
        real = storage.size

        def removed(name: str) -> int:
            storage.delete(made.name)
            return real(name)

        monkeypatch.setattr(storage, "size", removed)
        assert recipients.list_recipients(storage) == ([], [])

    @pytest.mark.parametrize(
        "change",
        [
            {"domain": b"short"},
            {"salt": b"short"},
            {"iterations": 0},
            {"iterations": recipients.ITERATIONS_MAX + 1},
            {"lanes": 0},
            {"lanes": recipients.LANES_MAX + 1},
            {"memory_kib": 31},
            {"memory_kib": recipients.MEMORY_KIB_MAX + 1},
            {"wrapped": b"short"},
            {"recipient_id": "another"},
        ],
    )
    def test_a_forged_wrap_costs_neither_time_nor_memory(self, change: dict[str, object]) -> None:
        storage = MemoryStorage()
        made = _add(storage, PHRASE)
        forged: Recipient = dataclasses.replace(made, **change)  # type: ignore[arg-type]
        name = made.name if "recipient_id" in change else forged.name
        storage.delete(made.name)
        sealed = format.seal_frame(UNSEALED, Frame.KEY_WRAP, record.dump(forged))
        storage.put_if_absent(name, sealed)
        begun = time.monotonic()
        with pytest.raises(Corrupt):
            recipients.open_by_passphrase(storage, PHRASE)
        assert time.monotonic() - begun < 5

    def test_a_wrap_that_holds_another_domain_s_key_does_not_open(self) -> None:
        storage = MemoryStorage()
        made = _add(storage, PHRASE, root=ROOT[::-1])
        forged = dataclasses.replace(made, domain=KEYS.domain)
        sealed = format.seal_frame(UNSEALED, Frame.KEY_WRAP, record.dump(forged))
        storage.put_if_absent(forged.name, sealed)
        storage.delete(made.name)
        with pytest.raises(Denied):
            recipients.open_by_passphrase(storage, PHRASE)
