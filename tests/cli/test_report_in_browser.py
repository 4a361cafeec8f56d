"""The page of a run as a person sees it: in Chromium, wide and narrow, light, dark, on paper."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Tab, chromium
from recorded_run import MARKUP, Recorded

DESKTOP, PHONE = (1200, 800), (390, 844)
BOTH = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])

# Contrast by WCAG 2.2, 1.4.3, of every text against the nearest background that is painted.
CONTRASTS = """
(() => {
  const parts = text => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const painted = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = parts(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return [...document.querySelectorAll("body *")]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => [e.textContent.trim().slice(0, 40),
               ratio(light(parts(getComputedStyle(e).color)), light(painted(e)))]);
})()
"""

OUTSIDE = """
[...document.querySelectorAll("section *, header *, .tiles *, footer *")]
  .filter(e => e.getClientRects().length)
  .filter(e => getComputedStyle(e.closest("thead") || e).position !== "absolute")
  .filter(e => { const own = e.getBoundingClientRect(),
                 box = e.closest("section, header, .tiles, footer").getBoundingClientRect();
                 return own.right > box.right + 1 || own.left < box.left - 1; })
  .map(e => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: sudo apt install chromium")
    with chromium(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(recorded: Recorded) -> Path:
    return recorded.directory / "page.html"


def visible(tab: Tab) -> str:
    return " ".join(str(tab.ask("document.body.innerText")).split())


@BOTH
def test_it_loads_nothing_else_and_breaks_no_rule_of_its_own(
    tab: Tab, page: Path, size: tuple[int, int]
) -> None:
    tab.show(page, *size)
    asked = [
        told["request"]["url"] for name, told in tab.events if name == "Network.requestWillBeSent"
    ]
    assert asked == [page.as_uri()]
    complaints = [
        told for name, told in tab.events if name in ("Log.entryAdded", "Runtime.consoleAPICalled")
    ]
    assert complaints == []
    assert tab.ask("document.scripts.length") == 0
    assert tab.ask("document.images.length") == 0
    # The style sheet was permitted by its hash, and counts.
    assert tab.ask("getComputedStyle(document.querySelector('section')).borderTopStyle") == "solid"


@BOTH
def test_simulated_is_what_is_seen_first(tab: Tab, page: Path, size: tuple[int, int]) -> None:
    tab.show(page, *size)
    banner = tab.ask(
        "(() => { const e = document.querySelector('.banner strong');"
        "const r = e.getBoundingClientRect();"
        "return {text: e.innerText, top: r.top, bottom: r.bottom, left: r.left, right: r.right,"
        "size: parseFloat(getComputedStyle(e).fontSize)}; })()"
    )
    assert banner["text"] == "SIMULATED"
    assert banner["size"] > tab.ask(
        "parseFloat(getComputedStyle(document.querySelector('h1')).fontSize)"
    )
    assert banner["top"] >= 0
    assert banner["bottom"] <= size[1] / 2
    assert banner["left"] >= 0
    assert banner["right"] <= size[0]


@BOTH
def test_everything_fits_the_window(tab: Tab, page: Path, size: tuple[int, int]) -> None:
    tab.show(page, *size)
    tab.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert tab.ask("document.documentElement.scrollWidth") <= size[0]
    assert tab.ask(OUTSIDE) == []


@BOTH
def test_a_person_reads_what_happened(tab: Tab, page: Path, size: tuple[int, int]) -> None:
    tab.show(page, *size)
    text = visible(tab)
    for words in (
        "The program ended with exit code 3.",
        "Keys released 1",
        "The key server's log confirms it: 1 release to this very measurement",
        f"etc/{MARKUP}",
        'add "file:trusted/unlisted.txt" to sgx.trusted_files and build again',
        "Encrypted files",
        "MRENCLAVE",
        "What it leaves to the machine",
    ):
        assert words in text


@BOTH
def test_long_lists_open_by_a_click_without_scripts(
    tab: Tab, page: Path, size: tuple[int, int]
) -> None:
    tab.show(page, *size)
    name = "trusted/<script>alert(1).txt"
    assert name not in visible(tab)
    tab.click("summary")
    assert name in visible(tab)


def test_columns_of_a_table_stand_below_each_other_on_a_phone(tab: Tab, page: Path) -> None:
    lefts = (
        "[...document.querySelectorAll('[aria-labelledby=denials] tbody tr:first-child > *')]"
        ".map(e => e.getBoundingClientRect().left)"
    )
    tab.show(page, *DESKTOP)
    assert len(set(tab.ask(lefts))) == 5
    tab.show(page, *PHONE)
    assert len(set(tab.ask(lefts))) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_suffices(tab: Tab, page: Path, scheme: str) -> None:
    tab.show(page, *DESKTOP, prefers_color_scheme=scheme)
    tab.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    measured: list[tuple[str, float]] = tab.ask(CONTRASTS)
    assert len(measured) > 100
    assert [each for each in measured if each[1] < 4.5] == []
    ground = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 128) == (scheme == "dark")


def test_it_prints_black_on_white(tab: Tab, page: Path) -> None:
    tab.show(page, *DESKTOP, media="print", prefers_color_scheme="dark")
    assert [each for each in tab.ask(CONTRASTS) if each[1] < 7] == []
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = base64.b64decode(
        tab.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]
    )
    assert printed.startswith(b"%PDF-")
    assert 1 <= printed.count(b"/Type /Page\n") <= 8


def test_readers_of_the_screen_hear_its_structure(tab: Tab, page: Path) -> None:
    tab.show(page, *DESKTOP)
    nodes: list[dict[str, Any]] = tab.call("Accessibility.getFullAXTree")["nodes"]

    def names(role: str) -> list[str]:
        found = [node for node in nodes if not node["ignored"] and node["role"]["value"] == role]
        return [node.get("name", {}).get("value", "") for node in found]

    assert "app" in names("heading")
    assert names("RootWebArea") == ["SIMULATED: Run of app"]
    assert all(names("table"))
    assert len(names("table")) >= 6
    assert set(names("region")) >= {"Denials", "Times", "Who proved what to whom"}
    assert any("The program: " in name for name in names("image"))
    assert len(names("note")) == 1
    assert {"main", "banner", "contentinfo"} <= {node["role"]["value"] for node in nodes}
