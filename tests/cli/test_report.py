"""``cloister run --record`` and ``cloister report``: a real run, and the page made of it."""

from __future__ import annotations

import base64
import html
import json
import os
import ssl
import stat
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from applications import App
from cloister.cli.main import run
from recorded_run import MARKUP, Recorded

# The record


def test_files_are_counted_by_what_protects_them(recorded: Recorded) -> None:
    encrypted = recorded.files("encrypted")
    assert encrypted["data/in.txt"]["size"] == 17 * 1000
    written = encrypted["data/<b>&amp; \"'\\x1b[31m\\u202e.txt"]
    assert (written["size"], written["read"], written["written"]) == (17, 0, 17)
    signed = recorded.files("trusted")["trusted/<script>alert(1).txt"]
    assert (signed["size"], signed["read"], signed["written"]) == (5000, 5000, 0)
    allowed = recorded.files("allowed")
    assert allowed["open/given.txt"] == {
        "path": "open/given.txt", "size": 5, "read": 5, "written": 0,
    }  # fmt: skip
    assert allowed["open/taken.txt"]["written"] == 5005
    assert {files["kind"] for files in recorded.record["files"]} == {
        "trusted", "encrypted", "allowed",
    }  # fmt: skip


def test_what_lay_in_memory_is_told(recorded: Recorded) -> None:
    (held,) = [each for each in recorded.record["memory"] if each["path"] == "/tmp"]
    assert held["files"] == 2
    assert held["size"] == 2 * os.sysconf("SC_PAGE_SIZE")


def test_denials_are_counted_with_their_mends(recorded: Recorded) -> None:
    found = {each["path"]: each for each in recorded.record["denials"]}
    assert found.keys() == {"trusted/unlisted.txt", f"etc/{MARKUP}"}
    twice = found["trusted/unlisted.txt"]
    assert (twice["kind"], twice["intent"], twice["count"]) == ("denied", "read", 2)
    assert "sgx.trusted_files" in twice["mend"]


def test_the_enclave_is_the_one_that_was_built(recorded: Recorded) -> None:
    enclave = recorded.record["enclave"]
    for name in ("mrenclave", "mrsigner"):
        assert enclave[name] == recorded.built[name]
    manifest = (recorded.directory / "app.manifest.sgx").read_bytes()
    index = (recorded.directory / "app.index").read_bytes()
    assert enclave["manifest"] == sha256(manifest).hexdigest()
    assert enclave["index"] == sha256(index).hexdigest()
    assert recorded.record["platform"]["simulated"] is True


def test_the_key_server_is_known_by_its_certificate(recorded: Recorded) -> None:
    (release,) = recorded.record["releases"]
    pem = (recorded.directory / "certs" / "server.crt").read_text()
    assert release["certificate"] == sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert release["key"] == "data"


def test_quotes_that_the_program_takes_are_counted(recorded: Recorded) -> None:
    assert recorded.record["quotes"]["count"] == 2
    assert "took 2 quotes of the platform" in Page.of(recorded.page).text


def test_times_are_in_order(recorded: Recorded) -> None:
    times = recorded.record["times"]
    order = ["begun", "enclave", "program", "program_ended", "ended"]
    assert sorted(times.values()) == [times[name] for name in order]


def test_neither_keys_nor_content_are_in_it(recorded: Recorded) -> None:
    key = (recorded.directory / "wrap-key").read_bytes()
    for name in ("run.json", "page.html"):
        path = recorded.directory / name
        data = path.read_bytes()
        assert key not in data
        assert key.hex().encode() not in data.lower()
        assert b"the owner's line" not in html.unescape(data.decode()).encode()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_run_that_does_not_start_is_recorded_too(recorded: Recorded) -> None:
    """The key server is gone by now."""
    app = App(recorded.directory)
    done = app.cloister("run", "--record", "failed.json", "app", "-c", "true", expect=None)
    assert done.returncode == 1
    record = json.loads((recorded.directory / "failed.json").read_text())
    assert record["exit_code"] is None
    assert record["failure"]["message"] in done.stderr
    assert record["times"]["program"] is None
    page = app.cloister("report", "failed.json", "-o", "-").stdout
    assert "The program did not run to its end." in page
    assert "cannot connect" in Page.of(page).text


def test_a_record_that_cannot_be_written_stops_the_run_before_it_begins(
    recorded: Recorded,
) -> None:
    app = App(recorded.directory)
    done = app.cloister("run", "--record", "none/run.json", "app", "-c", "true", expect=2)
    assert done.stderr.startswith("cloister: error: none: no such directory")
    assert "SIMULATED enclave" not in done.stderr


def test_direct_mode_says_that_there_was_no_enclave(tmp_path: Path) -> None:
    app = App(tmp_path)
    app.direct(["/bin/cat", "/etc/passwd"])
    app.cloister("run", "--mode", "direct", "--record", "run.json", "app")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["platform"] is record["enclave"] is None
    assert "/etc/passwd" in {f["path"] for each in record["files"] for f in each["listed"]}
    assert app.cloister("report", "run.json").stdout == "run.html\n"
    page = Page.of((tmp_path / "run.html").read_text())
    assert "NO ENCLAVE" in page.text
    assert "SIMULATED" not in page.text


# The page

VOID = ("meta", "rect")


class Page(HTMLParser):
    """A page, parsed by the rules that browsers have for markup; nesting must be exact."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.headings: list[int] = []
        self.children: dict[str, list[str]] = {}

    @classmethod
    def of(cls, text: str) -> Page:
        page = cls()
        page.feed(text)
        page.close()
        assert page.open == []
        return page

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), attrs
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.children["table"] = []
        elif self.open and self.open[-1] == "table":
            self.children["table"].append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "rect"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            assert self.children["table"][0] == "caption"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)


def test_the_page_is_well_formed_and_refers_to_nothing(recorded: Recorded) -> None:
    page = Page.of(recorded.page)
    used = {tag for tag, _ in page.tags}
    assert not used & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "a",
        "b",
    }
    attributes = {name for _, found in page.tags for name in found}
    assert not attributes & {"src", "href", "style", "srcset", "action", "background"}
    assert not {name for name in attributes if name.startswith("on")}
    assert "url(" not in recorded.page
    assert "@import" not in recorded.page


def test_only_its_own_style_is_permitted(recorded: Recorded) -> None:
    style = recorded.page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(sha256(style.encode()).digest()).decode()
    (policy,) = [
        found["content"] or ""
        for tag, found in Page.of(recorded.page).tags
        if found.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]


def test_names_of_files_are_text(recorded: Recorded) -> None:
    text = Page.of(recorded.page).text
    assert f"etc/{MARKUP}" in text
    assert "trusted/<script>alert(1).txt" in text
    assert "data/<b>&amp; \"'\\x1b[31m\\u202e.txt" in text
    assert not {"\x1b", "\u202e"} & set(recorded.page)


def test_simulated_is_said_at_the_top_and_wherever_the_platform_is_named(
    recorded: Recorded,
) -> None:
    page = Page.of(recorded.page)
    top = page.text.partition("Who proved what to whom")[0]
    assert top.count("SIMULATED") == 2  # the title and the banner
    assert "Platform simulated SIMULATED" in page.text
    assert "released data SIMULATED" in page.text


def test_headings_tables_and_language_are_there_for_those_who_cannot_see_it(
    recorded: Recorded,
) -> None:
    page = Page.of(recorded.page)
    assert ("html", {"lang": "en"}) in page.tags
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after - before <= 1 for before, after in steps)
    cells = [found for tag, found in page.tags if tag == "th"]
    assert all(found["scope"] in ("row", "col") for found in cells)
    identifiers = [found["id"] for _, found in page.tags if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    labels = [found["aria-labelledby"] for tag, found in page.tags if tag == "section"]
    assert set(labels) == set(identifiers)


def test_the_owners_log_confirms_the_release(recorded: Recorded) -> None:
    text = Page.of(recorded.page).text
    assert "The key server's log confirms it: 1 release to this very measurement" in text
    assert "TCB status: UpToDate" in text


def reported(recorded: Recorded, audit: str | None, tmp_path: Path) -> str:
    """Return the text of a page made with another audit log."""
    command = ["report", str(recorded.directory / "run.json"), "-o", str(tmp_path / "page.html")]
    if audit is not None:
        (tmp_path / "audit.json").write_text(audit)
        command += ["--audit", str(tmp_path / "audit.json")]
    assert run(command) == 0
    return Page.of((tmp_path / "page.html").read_text(encoding="utf-8")).text


def test_a_log_without_the_release_differs(recorded: Recorded, tmp_path: Path) -> None:
    assert "They differ:" in reported(recorded, "", tmp_path)
    audit = (recorded.directory / "audit.json").read_text()
    another = audit.replace(recorded.built["mrenclave"], "00" * 32)
    text = reported(recorded, another, tmp_path)
    assert "They differ:" in text
    assert "1 other record of the log is about other enclaves" in text
    later = json.loads(audit) | {"time": "2090-01-01T00:00:00+00:00"}
    assert "They differ:" in reported(recorded, json.dumps(later), tmp_path)


def test_one_of_several_programs_of_a_machine_is_found(recorded: Recorded, tmp_path: Path) -> None:
    """As key servers name programs in TDX virtual machines."""
    audit = json.loads((recorded.directory / "audit.json").read_text())
    programs = ", ".join(f"program {each}" for each in (recorded.built["mrenclave"], "11" * 32))
    audit["identity"] = f"MRTD {'22' * 48}, {programs}"
    assert "The key server's log confirms it: 1" in reported(recorded, json.dumps(audit), tmp_path)


def test_without_the_log_nothing_is_said_of_the_owner(recorded: Recorded, tmp_path: Path) -> None:
    assert "log was not given" in reported(recorded, None, tmp_path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "The program ended successfully (exit code 0)."),
        (1, "The program ended with exit code 1."),
        (137, "The program ended with exit code 137, which stands for the signal SIGKILL."),
        (255, "The program ended with exit code 255."),
    ],
)
def test_how_it_ended_is_said_in_words(
    recorded: Recorded, code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(recorded.record | {"exit_code": code}))
    assert run(["report", str(tmp_path / "run.json")]) == 0
    assert words in Page.of((tmp_path / "run.html").read_text()).text


def test_more_than_a_person_reads_is_left_out_and_said(recorded: Recorded, tmp_path: Path) -> None:
    many = [{"path": f"f{n}", "size": 1, "read": 1, "written": 0} for n in range(1500)]
    files = [{"kind": "trusted", "unlisted": 7, "listed": many}]
    (tmp_path / "run.json").write_text(json.dumps(recorded.record | {"files": files}))
    assert run(["report", str(tmp_path / "run.json")]) == 0
    text = Page.of((tmp_path / "run.html").read_text()).text
    assert "1,500 and 7 more openings" in text
    assert "500 more files are in the record and not on this page" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format"),
        ({"exit_code": "<script>"}, "exit_code"),
        ({"more": 1}, "more"),
        ({"files": [{"kind": "secret", "unlisted": 0, "listed": []}]}, "files.0.kind"),
        ({"app": "\ud800"}, "not the record of a run"),
        ({"times": {"begun": "2026-01-01T00:00:00"}}, "times.begun"),
    ],
)
def test_what_is_no_record_is_refused(
    recorded: Recorded,
    change: dict[str, Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(recorded.record | change))
    assert run(["report", str(path)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "hint: cloister run --record" in told
    assert not (tmp_path / "run.html").exists()


@pytest.mark.parametrize("line", ["", "[]", '{"sequence": 1}', "x" * 100])
def test_what_is_no_audit_log_is_refused(
    recorded: Recorded, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audit.json").write_text(
        (recorded.directory / "audit.json").read_text() + line + "\n"
    )
    command = ["report", str(recorded.directory / "run.json"), "-o", str(tmp_path / "page.html")]
    assert run([*command, "--audit", str(tmp_path / "audit.json")]) == 2
    assert "audit.json: line 2" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_record_is_never_replaced_by_its_page(recorded: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_text(json.dumps(recorded.record))
    assert run(["report", str(path)]) == 2
    assert json.loads(path.read_text()) == recorded.record
