"""Bit rot: every kind of object flipped, cut, zeroed, exchanged or lost, at places chance chooses.

Whatever happens to one object: no wrong byte is ever returned, a backup that has nothing to do with
it restores, and what hurts a backup is found by a check, which names the backup.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from sendense.core.errors import SendenseError
from sendense.core.ids import SeededIds
from sendense.repository import hub_exports, pack, recipients
from sendense.repository.check import Severity, check
from sendense.repository.gc import run as collection
from sendense.repository.gc.protocol import Options
from sendense.repository.repository import Repository
from sendense.repository.storage.memory import MemoryStorage
from sendense.repository.verify.run import Level, verify
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, ROOT, Kit

pytestmark = pytest.mark.usefixtures("untraced")

SIZE = 7 * CHUNK - 512
OTHER_KEY = 2001
PLACES = 2  # of each object and kind of damage
DAMAGES = ("flip", "cut", "zero", "exchange", "lose")


@dataclass
class World:
    """A repository after a busy week, and what its backups hold.

    Attributes:
        far: a backup that shares nothing with the others; their objects do not matter to it.
    """

    objects: dict[str, bytes]
    root_key: bytes | None
    truth: dict[str, bytes]
    far: str = "far"
    far_objects: set[str] = field(default_factory=set)

    def is_superseded(self, name: str, how: str) -> bool:
        """Return whether an object counts for nobody any more: what it was for was collected."""
        if how == "lose" and kind_of(name) in {"tombs", "holds", "hub"}:
            return True  # the backup is back, and whole; what is gone otherwise, nothing tells
        if how == "exchange" and kind_of(name) == "hub":
            return True  # both are whole; whoever has the hub's key is told
        if kind_of(name) == "outcomes":
            return name in {"outcomes/near-0", "outcomes/near-1"}
        segments = self.open(self.objects).segments.counted
        named = {ref.name for segment in segments for ref in segment.packs()}
        return kind_of(name) in {"index", "packs", "meta"} and name not in named | {
            segment.name for segment in segments
        }

    def open(self, objects: dict[str, bytes]) -> Repository:
        storage = MemoryStorage()
        for name, data in objects.items():
            storage.put_if_absent(name, data)
        return Kit(storage, root_key=self.root_key).open(seed=99)


def build(*, encrypted: bool) -> World:
    randomness = random.Random(8)
    made = Kit(MemoryStorage(), root_key=ROOT if encrypted else None)
    repository = made.create()
    if encrypted:
        recipients.add_passphrase(
            made.storage, ROOT, "correct horse", label="", clock=made.clock, ids=SeededIds(5)
        )
    truth: dict[str, bytes] = {}
    disk = bytearray(randomness.randbytes(SIZE))
    parent = None
    for number in range(4):
        name = f"near-{number}"
        changed = {number, number + 1}
        for at in changed:
            disk[at * CHUNK + 5] ^= 0xFF
        if number == 2:
            disk[3 * CHUNK : 4 * CHUNK] = bytes(CHUNK)
            changed.add(3)
        kit.back_up(
            repository, name, bytes(disk), parent=parent, changed=changed if parent else None
        )
        truth[name] = bytes(disk)
        parent = name
    repository.delete_backup("near-0", who="test", why="test")
    del truth["near-0"]
    collection.run(repository, Options(grace_seconds=0, is_confirmed=True))
    collection.run(repository, Options())  # condemned, and not decided yet
    before = {found.name for found in repository.storage.list_objects()}
    far = randomness.randbytes(SIZE)
    kit.back_up(repository, "far", far)
    truth["far"] = far
    after = {found.name for found in repository.storage.list_objects()}
    repository.delete_backup("near-1", who="test", why="test")
    del truth["near-1"]
    for name in ("near-2", "far"):
        repository.backups.hold(name, who="test", why="test")
    about = hub_exports.About("hub-1", made.clock.now(), "0", "1", {})
    rows = hub_exports.compress([("t", {"id": n}) for n in range(50)])
    hub_exports.put(hub_exports.open_place(made.storage, ROOT[::-1]), about, rows, SeededIds(6))
    repository.begin_session("open")
    kit.write_disk(repository, "open", far[::-1], moment="at-open", stop=5)
    verify(repository, Level.STORED)
    storage = repository.storage
    objects = {found.name: storage.get(found.name) for found in storage.list_objects()}
    return World(objects, made.root_key, truth, far_objects=after - before)


def kind_of(name: str) -> str:
    top, _, rest = name.partition("/")
    if top == "sessions":
        return "sessions/" + rest.split("/")[1].partition("-")[0]
    return top + "/" + rest.rpartition("/")[2] if top == "gc" else top


def damage(
    objects: dict[str, bytes], name: str, how: str, randomness: random.Random
) -> dict[str, bytes] | None:
    """Return the objects with one of them damaged; None where that would change nothing."""
    data = bytearray(objects[name])
    if how == "flip":
        data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
    elif how == "cut":
        del data[randomness.randrange(len(data)) :]
    elif how == "zero":
        start = randomness.randrange(len(data))
        end = min(len(data), start + randomness.randint(1, 4096))
        data[start:end] = bytes(end - start)
    changed = dict(objects)
    if how == "lose":
        del changed[name]
    elif how == "exchange":
        others = [one for one in objects if one != name and kind_of(one) == kind_of(name)]
        if not others:
            return None
        changed[name] = objects[randomness.choice(others)]
    else:
        changed[name] = bytes(data)
    return changed if changed != objects else None


@pytest.fixture(scope="module", params=["encrypted", "plain"])
def world(request: pytest.FixtureRequest) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)
        return build(encrypted=request.param == "encrypted")


@pytest.mark.parametrize("how", DAMAGES)
def test_no_damage_of_one_object_returns_wrong_bytes_or_goes_unseen(
    world: World, how: str, seed: int
) -> None:
    randomness = random.Random(f"{seed}{how}")
    tried: Counter[str] = Counter()
    for name in world.objects:
        for _ in range(PLACES if how in {"flip", "cut", "zero"} else 1):
            changed = damage(world.objects, name, how, randomness)
            if changed is not None:
                tried[kind_of(name)] += 1
                judge(world, changed, name, how)
    assert tried["packs"] >= 5, tried
    assert tried["meta"] >= 2, tried
    assert sum(tried.values()) > 30, tried


def judge(world: World, changed: dict[str, bytes], name: str, how: str) -> None:
    told = f"{how} {name}"
    try:
        repository = world.open(changed)
    except SendenseError:
        assert name == "sendense.json", told
        return
    hurt = set()
    for backup_id, content in world.truth.items():
        try:
            found = kit.restore(repository, backup_id)
        except SendenseError:
            hurt.add(backup_id)
        else:
            assert found == content, told
    if name not in world.far_objects:
        assert world.far not in hurt, told
    repository = world.open(changed)  # without what the restores have mended
    report = check(repository, read_data=True)
    named = {one.backup_id for one in report.problems if one.severity is Severity.ERROR}
    if hurt:
        assert not report.clean, told
    if kind_of(name) in {"packs", "meta"} and hurt:
        assert named >= hurt, (told, named)
        verified = verify(world.open(changed))
        assert name in verified.bad, told
        assert verified.check is not None
        assert {one.backup_id for one in verified.check.problems} >= hurt, told
    if kind_of(name) in ALWAYS_SEEN and not world.is_superseded(name, how):
        assert report.problem_count, told


# Of what the others are for see docs/operations/verification.md.
ALWAYS_SEEN = {"packs", "meta", "backups", "outcomes", "tombs", "index", "holds", "hub"}


def test_a_control_that_nothing_hurts(world: World) -> None:
    repository = world.open(world.objects)
    for backup_id, content in world.truth.items():
        assert kit.restore(repository, backup_id) == content
    report = check(world.open(world.objects), read_data=True)
    assert report.clean, report.problems
