"""What a run read is read ahead in the next one, with all checks, and only what it read itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from applications import CLOISTER, KEY, App
from cloister.runtime.foresight import Record, Trail, divided
from processes import children, descendants, wait_until_gone

SIZE = 6 << 20


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cloister" / "reads"


@pytest.fixture
def reader(app: App) -> App:
    """An enclave with a large trusted and a large encrypted file."""
    (app.directory / "files").mkdir()
    (app.directory / "secret").mkdir()
    (app.directory / "files" / "large").write_bytes(bytes(range(256)) * (SIZE // 256))
    app.mount("/files", "file:files")
    app.mount("/secret", "file:secret", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.trusted.append("file:files/large")
    app.build_shell()
    app.run_shell(f"head -c {SIZE} /files/large > /secret/large")
    return app


READ = "cat /files/large /secret/large | wc -c"


def kept(records: Path) -> dict[str, list[list[int]]]:
    """The largest record: path -> ranges."""
    largest = max(records.iterdir(), key=lambda path: path.stat().st_size)
    steps, _ = json.loads(largest.read_bytes().partition(b"\n")[2])
    return dict(steps)


def test_a_second_run_has_the_same_result(reader: App, records: Path) -> None:
    for _ in range(3):
        assert reader.run_shell(READ).stdout == f"{2 * SIZE}\n"
    found = kept(records)
    assert sum(end - first for first, end in found["/files/large"]) >= SIZE
    assert sum(end - first for first, end in found["/secret/large"]) >= SIZE
    assert records.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in records.iterdir())


def test_what_lies_below_a_mount_of_the_kernel_is_remembered_where_it_is_seen(
    app: App, records: Path
) -> None:
    """Such files wait in a hidden place, from which the fetching process could not read them."""
    (app.directory / "files").mkdir()
    (app.directory / "files" / "large").write_bytes(bytes(SIZE))
    app.mount("/scratch", kind="tmpfs")
    app.mount("/scratch/files", "file:files")
    app.trusted.append("file:files/large")
    app.build_shell()
    assert app.run_shell("cat /scratch/files/large | wc -c").stdout == f"{SIZE}\n"
    found = kept(records)
    assert sum(end - first for first, end in found["/scratch/files/large"]) >= SIZE
    assert not any(".cloister" in path for path in found)


def test_other_arguments_have_a_record_of_their_own(reader: App, records: Path) -> None:
    reader.run_shell(READ)
    before = set(records.iterdir())
    reader.run_shell("cat /secret/large | wc -c")
    (new,) = set(records.iterdir()) - before
    assert b"/files/large" not in new.read_bytes()


def test_the_kernel_has_what_the_last_run_read(reader: App, records: Path) -> None:
    """Every byte: nothing is read from the host any more, where other bytes are now."""
    script = "echo ready; read x; cat /files/large | cksum"
    large = reader.directory / "files" / "large"
    signed = large.read_bytes()
    printed: list[str] = []
    for _ in range(2):
        large.write_bytes(signed)
        with reader.start_shell(script) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            if printed:
                until_all_is_fetched(run.pid)
                large.write_bytes(bytes(SIZE))
            printed.append(run.communicate("\n", timeout=60)[0])
    assert printed[0] == printed[1]


def until_all_is_fetched(runtime: int) -> None:
    """The process that fetches is a child of process 1, beside the program."""
    deadline = time.monotonic() + 30
    while len(descendants(runtime)) > len(children(runtime)) + 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_changed_bytes_are_refused_when_read_ahead(reader: App) -> None:
    reader.run_shell(READ)
    large = reader.directory / "files" / "large"
    content = bytearray(large.read_bytes())
    content[SIZE // 2] ^= 1
    large.write_bytes(content)
    done = reader.run_shell("cat /files/large > /dev/null || echo refused")
    assert done.stdout == "refused\n"
    assert "are not those that were signed" in done.stderr


def test_the_host_adds_nothing_to_a_record(reader: App, records: Path) -> None:
    """A forged record would make the runtime read what the program never asked for."""
    (reader.directory / "files" / "unlisted").write_bytes(b"x")
    reader.run_shell(READ)
    record = next(path for path in records.iterdir() if b"/secret/large" in path.read_bytes())
    mac, _, text = record.read_bytes().partition(b"\n")
    record.write_bytes(mac + b"\n" + text.replace(b"/files/large", b"/files/unlisted"))
    done = reader.run_shell(READ)
    assert "unlisted" not in done.stderr
    assert "/files/unlisted" not in kept(records)


NAMES = """
ls /files; test -e /files/absent || echo absent; test -e /secret/made || echo unmade
cat /files/large > /secret/made; wc -c < /secret/made; rm /secret/made
test -e /secret/made || echo unmade
"""


def test_names_and_listings_are_fetched_too(reader: App, records: Path) -> None:
    for _ in range(3):
        done = reader.run_shell(NAMES)
        assert done.stdout == f"large\nabsent\nunmade\n{SIZE}\nunmade\n"
    steps = kept(records)
    assert steps["/files/"] == steps["/files/absent"] == []
    assert "/secret/made" in steps
    assert list(steps).index("/files/") < list(steps).index("/files/absent")


def test_ranges_are_kept_in_order_and_without_small_gaps(tmp_path: Path) -> None:
    trail = Trail()
    for first, size in ((SIZE, 4096), (4096, 4096), (0, 100), (20 << 10, SIZE - (500 << 10))):
        trail.read(1, lambda: "/a", first, size)
    Record(tmp_path, b"k" * 16, ["a"]).learn(trail)
    expected = [(0, SIZE - (480 << 10)), (SIZE, SIZE + 4096)]
    assert Record(tmp_path, b"k" * 16, ["a"]).foreseen == {"/a": expected}


def test_names_take_no_room_from_reads(tmp_path: Path) -> None:
    """A run that looks up very many names has a record of what it read all the same."""
    trail = Trail()
    for number in range(60_000):
        trail.name(f"/absent/{number}")
        if not trail.names:
            break
    for node in range(40_000):
        trail.read(node, lambda node=node: f"/{node}", 0, 20_000)  # type: ignore[misc]
    record = Record(tmp_path, b"k" * 16, ["a"])
    record.learn(trail)
    foreseen = Record(tmp_path, b"k" * 16, ["a"]).foreseen
    assert sum(1 for spans in foreseen.values() if spans) == 40_000
    assert len(foreseen) < 70_000


def test_a_run_of_too_many_ranges_has_no_record_and_takes_no_more_memory(tmp_path: Path) -> None:
    trail = Trail()
    for node in range(100_000):
        trail.read(node, lambda node=node: f"/{node}", 0, 1000)  # type: ignore[misc]
    assert trail.is_cut
    assert len(trail.steps) == 50_000
    Record(tmp_path / "kept", b"k" * 16, ["a"]).learn(trail)
    assert not (tmp_path / "kept").exists()


def test_gaps_do_not_make_more_than_the_limit(tmp_path: Path) -> None:
    trail = Trail()
    for number in range(40_000):
        trail.read(1, lambda: "/a", number * (68 << 10), 4096)
    Record(tmp_path, b"k" * 16, ["a"]).learn(trail)
    (spans,) = Record(tmp_path, b"k" * 16, ["a"]).foreseen.values()
    assert sum(end - first for first, end in spans) == 40_000 * 4096


def test_the_host_learns_no_name_that_it_was_not_asked_for(app: App, records: Path) -> None:
    """Below the way to a mount point, and what no encrypted directory can hold, nobody asks it."""
    (app.directory / "secret").mkdir()
    app.mount("/way/to/secret", "file:secret", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.build_shell()
    asked = "/way/to/secret/asked /way/patient-4711 /way/to/secret/.p.0123456789ab.tmp"
    app.run_shell(f"head -c {SIZE} /dev/zero > /way/to/secret/large; : > /way/to/secret/asked")
    app.run_shell(f"for f in {asked}; do test -e $f; done; cat /way/to/secret/large | wc -c")
    texts = [path.read_text() for path in records.iterdir()]
    assert any("/way/to/secret/asked" in text for text in texts)
    assert not [text for text in texts if "patient" in text]
    assert not [text for text in texts if "0123456789ab" in text]


def test_a_record_that_does_not_fit_is_forgotten(reader: App, records: Path) -> None:
    """The same arguments read other files: what the host changed in an allowed place, say."""
    script = f"f=$(cat /secret/name); cat $f | head -c {SIZE} | wc -c"
    reader.run_shell("echo /files/large > /secret/name")
    reader.run_shell(script)
    assert "/files/large" in kept(records)
    reader.run_shell("echo /secret/large > /secret/name")
    reader.run_shell(script)  # learns that the record is outdated
    reader.run_shell(script)
    assert "/files/large" not in kept(records)
    assert "/secret/large" in kept(records)


Ranges = list[tuple[int, int]]
ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: (r[0], sum(r))))


def _bytes(spans: Ranges) -> Iterator[int]:
    for first, end in spans:
        yield from range(first, end)


@given(read=ranges, foreseen=ranges)
def test_unforeseen_bytes_are_counted(read: Ranges, foreseen: Ranges) -> None:
    trail = Trail()
    for first, end in read:
        trail.read(7, lambda: "/a", first, end - first)
    known = set(_bytes(foreseen))
    expected = sum(byte not in known for byte in _bytes(read))
    assert trail.unforeseen({"/a": foreseen, "/b": [(0, 100)]}) == expected
    assert trail.bytes == sum(end - first for first, end in read)


def test_only_the_right_key_opens_a_record(tmp_path: Path) -> None:
    trail = Trail()
    trail.read(1, lambda: "/a", 0, SIZE)
    Record(tmp_path / "new" / "reads", b"k" * 16, ["a"]).learn(trail)
    assert Record(tmp_path / "new" / "reads", b"k" * 16, ["a"]).foreseen == {"/a": [(0, SIZE)]}
    assert Record(tmp_path / "new" / "reads", b"k" * 16, ["b"]).foreseen == {}
    (path,) = (tmp_path / "new" / "reads").iterdir()
    other = Record(tmp_path / "new" / "reads", b"l" * 16, ["a"])
    other.learn(trail)
    (theirs,) = set(path.parent.iterdir()) - {path}
    theirs.write_bytes(path.read_bytes())
    assert Record(tmp_path / "new" / "reads", b"l" * 16, ["a"]).foreseen == {}


@pytest.mark.parametrize("what", ["directory", "FIFO", "no directory"])
def test_a_record_that_cannot_be_kept_costs_time_and_nothing_else(
    reader: App, records: Path, what: str
) -> None:
    assert reader.run_shell(READ).stdout == f"{2 * SIZE}\n"
    for record in records.iterdir():
        record.unlink()
        if what == "directory":
            record.mkdir()
        elif what == "FIFO":
            os.mkfifo(record)
    if what == "no directory":
        records.rmdir()
        records.touch()
    for code in (5, 0):
        done = reader.run_shell(f"{READ}; exit {code}", expect=code)
        assert done.stdout == f"{2 * SIZE}\n"


def test_names_as_deep_as_a_program_likes(app: App) -> None:
    """The trail notes whole paths; their depth is the program's choice."""
    (app.directory / "secret").mkdir()
    app.mount("/secret", "file:secret", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    deeper = "i=0; while [ $i -lt 1500 ]; do mkdir d; cd -P d; i=$((i+1)); done"
    done = app.enclave_shell(f"cd /secret; {deeper}; ls nothing", expect=2)
    subprocess.run(["rm", "-rf", "secret"], cwd=app.directory, check=True)  # too deep for Python
    assert "cannot access 'nothing'" in done.stderr
    assert "internal error" not in done.stderr


def test_what_needs_a_key_is_fetched_later() -> None:
    steps = {path: [(0, 1)] for path in ("/a", "/secret", "/secret/", "/secret/b", "/secrets/c")}
    now, later = divided(steps, ["/secret"])
    assert list(now) == ["/a", "/secrets/c"]
    assert list(later) == ["/secret", "/secret/", "/secret/b"]
    assert divided(steps, ["/"]) == ({}, steps)
    assert divided(steps, []) == (steps, {})


def test_the_runtime_uses_all_processors_when_nothing_is_left_to_fetch(
    reader: App, records: Path
) -> None:
    """It shares one with what fetches ahead, and only as long as that works."""
    script = f"{READ}; while cat /files/large > /dev/null; do sleep 0.02; done"
    for _ in range(2):
        with subprocess.Popen(
            [*CLOISTER, "run", "app", "-c", script], cwd=reader.directory, text=True,
            stdout=subprocess.PIPE,
        ) as run:  # fmt: skip
            assert run.stdout is not None
            counted = run.stdout.readline()
            deadline = time.monotonic() + 10
            while os.sched_getaffinity(run.pid) != os.sched_getaffinity(0):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            uses = os.sched_getaffinity(run.pid)
            run.terminate()
        assert counted == f"{2 * SIZE}\n"
        assert uses == os.sched_getaffinity(0)
        assert run.returncode == 128 + signal.SIGTERM
    assert kept(records)


def test_a_file_that_is_there_twice(reader: App, records: Path) -> None:
    reader.mount("/again", "file:files")
    reader.build_shell()
    script = "cmp /files/large /again/large; cat /files/large /again/large | wc -c"
    for _ in range(3):
        assert reader.run_shell(script).stdout == f"{2 * SIZE}\n"


def test_nothing_stays_when_the_runtime_is_killed(reader: App, records: Path) -> None:
    """Also while the program reads what is just being fetched."""
    for number in range(40):
        (reader.directory / "files" / str(number)).write_bytes(bytes(1 << 20))
    reader.trusted.append("file:files/")
    reader.build_shell()
    script = "echo ready; cat /files/* > /dev/null; echo done"
    assert reader.run_shell(script).stdout == "ready\ndone\n"
    for moment in range(8):
        with reader.start_shell(script) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            forked = descendants(run.pid)
            assert len(forked) > 3
            time.sleep(moment / 100)
            run.kill()
        wait_until_gone(forked)
