"""The page of a report in a real browser: what it shows, sorts and hides, and what it never does."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bfl_mcp.config import Settings
from bfl_mcp.dataset.folder import ImageFile, read_dataset
from bfl_mcp.report.judged import Wanted, judge_folder
from bfl_mcp.report.page import build_page
from bfl_mcp.report.tiles import Tile
from tests.dataset.test_judge import fill
from tests.report.folders import HOSTILE_CAPTION

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# The least contrast of text, by the Web Content Accessibility Guidelines 2.2, level AA.
LEAST_CONTRAST = 4.5

CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const parse = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
return [...document.querySelectorAll("body *")]
  .filter((e) => e.getClientRects().length && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [e.className || e.tagName, Math.round((a + 0.05) / (b + 0.05) * 100) / 100];
  });
"""


def read_log(chromium: "Chrome", kind: str) -> list[dict[str, Any]]:
    """What a log got since it was read last."""
    entries: list[dict[str, Any]] = chromium.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def show(chromium: "Chrome", page: Path, *, width: int = 1280, scheme: str = "light", script: bool = True) -> None:
    """Open the page as a device with that width and colour scheme would. Logs of before are dropped."""
    for log in ("browser", "performance"):
        read_log(chromium, log)
    device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    chromium.get(page.as_uri())


def ask(chromium: "Chrome", expression: str) -> Any:
    """The value of an expression, by way of the debugger, which works where the page's scripts are disabled."""
    answer = chromium.execute_cdp_cmd("Runtime.evaluate", {"expression": expression, "returnByValue": True})
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")


def visible(chromium: "Chrome", selector: str) -> list[str]:
    """The classes of what matches and is shown."""
    shown = f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.getClientRects().length)"
    classes: list[str] = ask(chromium, f"{shown}.map((e) => e.className)")
    return classes


def column(chromium: "Chrome", number: int) -> list[str]:
    texts: list[str] = ask(
        chromium, f"[...document.querySelectorAll('tbody td:nth-child({number})')].map((e) => e.innerText)"
    )
    return texts


def choose(chromium: "Chrome", code: str) -> None:
    chromium.find_element("css selector", f"label:has(#show-{code})").click()


@pytest.mark.parametrize("name", ["fine", "attacked"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_asks_for_nothing_and_complains_of_nothing(
    chromium: "Chrome", request: pytest.FixtureRequest, name: str, scheme: str
) -> None:
    """One file: no request leaves it, no rule of its own policy is broken, and every picture is there."""
    page: Path = request.getfixturevalue(name)
    show(chromium, page, scheme=scheme)

    events = [json.loads(entry["message"])["message"] for entry in read_log(chromium, "performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert {url.split(":")[0] for url in asked if url != page.as_uri()} <= {"data"}
    assert read_log(chromium, "browser") == []
    pictures = ask(chromium, "[...document.images].map((e) => [e.complete && e.naturalWidth > 0, e.alt])")
    assert pictures
    assert all(there and alt.startswith("Image ") for there, alt in pictures)


def test_names_and_captions_do_nothing(chromium: "Chrome", attacked: Path) -> None:
    """A folder from elsewhere must not run in the browser of whoever looks at it."""
    show(chromium, attacked)

    assert ask(chromium, "window.pwned") is None
    assert ask(chromium, "document.scripts.length") == 1
    assert ask(chromium, "document.querySelectorAll('svg, iframe, object, [onerror], [onload]').length") == 0
    assert ask(chromium, "[...document.links].every((e) => e.getAttribute('href').startsWith('#image-'))")
    words = ask(chromium, "document.body.innerText")
    assert "<img src=x onerror=window.pwned=1>.jpg" in words
    assert HOSTILE_CAPTION.replace("\u202e", "\\u202e") in words
    assert "&lt;b&gt; &amp; x.jpg" in words
    assert ask(chromium, "document.title").startswith("<script>window.pwned=1<x>&'\":")
    source = attacked.read_text(encoding="utf-8")
    assert not {"\u202e", "\x1b", "\x07"} & set(source)


def test_the_policy_stops_what_got_in_all_the_same(chromium: "Chrome", attacked: Path) -> None:
    """The second lock: were a name ever written unescaped, it could neither run nor tell anybody."""
    show(chromium, attacked)

    broken = chromium.execute_async_script("""
        const done = arguments[0], broken = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          broken.push(event.effectiveDirective);
          if (broken.length === 4) done(broken.sort());
        });
        const script = document.createElement("script");
        script.textContent = "window.pwned = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<img src="http://127.0.0.1:9/x"><p style="color: red">');
        document.body.insertAdjacentHTML("beforeend", '<iframe src="http://127.0.0.1:9/y"></iframe>');
    """)

    assert broken == ["frame-src", "img-src", "script-src-elem", "style-src-attr"]
    assert ask(chromium, "window.pwned") is None


def test_a_click_on_a_header_sorts_the_rows(chromium: "Chrome", attacked: Path) -> None:
    """By image, by words, and back again; the header says so to whoever cannot see the arrow."""
    show(chromium, attacked)
    headers = chromium.find_elements("css selector", "thead th button")
    states = "[...document.querySelectorAll('th')].map((e) => e.getAttribute('aria-sort'))"
    before = column(chromium, 4)

    assert ask(chromium, states) == ["ascending", None, None, None]
    assert column(chromium, 1) == sorted(column(chromium, 1), key=_rank)
    headers[3].click()
    ascending = column(chromium, 4)
    assert ask(chromium, states) == [None, None, None, "ascending"]
    headers[3].click()
    descending = column(chromium, 4)
    assert ask(chromium, states) == [None, None, None, "descending"]
    headers[1].click()
    numbers = ask(chromium, "[...document.querySelectorAll('td.files')].map((e) => Number(e.dataset.order))")

    assert before != ascending
    assert ascending == sorted(before)
    assert descending == sorted(before, reverse=True)
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 5


def _rank(text: str) -> int:
    return next(place for place, word in enumerate(("Fault", "Warning", "Note")) if word in text)


@pytest.mark.parametrize("script", [True, False])
def test_a_choice_shows_its_kind_alone(chromium: "Chrome", attacked: Path, script: bool) -> None:
    """Of findings and of pictures, with the page's script and without it."""
    show(chromium, attacked, script=script)
    rows, tiles = visible(chromium, "tbody tr"), visible(chromium, ".tile")

    for code in ("fault", "warning", "info"):
        choose(chromium, code)
        assert visible(chromium, "tbody tr") == [kinds for kinds in rows if f"has-{code}" in kinds] != []
        assert visible(chromium, ".tile") == [kinds for kinds in tiles if f"has-{code}" in kinds]
        assert len(visible(chromium, "tbody tr")) < len(rows)
    choose(chromium, "all")
    assert (visible(chromium, "tbody tr"), visible(chromium, ".tile")) == (rows, tiles)


def test_without_scripts_nothing_is_offered_that_does_not_work(chromium: "Chrome", attacked: Path) -> None:
    """No dead button, no dead field; all the rest is there."""
    show(chromium, attacked, script=False)

    assert visible(chromium, "button, #search") == []
    assert len(visible(chromium, ".tile img")) > 10
    assert len(visible(chromium, "tbody tr")) > 10


def test_words_find_findings_and_pictures(chromium: "Chrome", attacked: Path) -> None:
    """Among a thousand pictures one looks for a name."""
    show(chromium, attacked)
    chromium.find_element("id", "search").send_keys("DESCRIPTION very")

    assert len(visible(chromium, ".tile")) == 1
    assert ask(chromium, "document.getElementById('shown').innerText") == "0 findings, 1 image"
    chromium.find_element("id", "search").clear()
    chromium.find_element("id", "search").send_keys("no such words")
    assert visible(chromium, "tbody tr, .tile") == []


def test_a_finding_leads_to_its_picture(chromium: "Chrome", attacked: Path) -> None:
    """A name in a table is not a picture."""
    show(chromium, attacked)
    chromium.find_element("link text", _link(chromium, "blurred.jpg")).click()

    name = ask(chromium, "document.querySelector(':target .name').innerText")
    assert name.endswith(" blurred.jpg")


def _link(chromium: "Chrome", name: str) -> str:
    texts: list[str] = ask(chromium, "[...document.links].map((e) => e.innerText)")
    return next(text for text in texts if text.endswith(name))


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_sticks_out_on_a_phone(chromium: "Chrome", attacked: Path, width: int) -> None:
    """Names of 200 letters without a gap included."""
    show(chromium, attacked, width=width)

    assert ask(chromium, "document.documentElement.scrollWidth") == width
    wide = f"[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > {width} + 0.5)"
    assert ask(chromium, f"{wide}.map((e) => e.className || e.tagName)") == []
    assert ask(chromium, "parseFloat(getComputedStyle(document.querySelector('figcaption')).fontSize)") >= 13


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
@pytest.mark.parametrize("name", ["fine", "attacked"])
def test_text_stands_out_in_light_and_dark(
    chromium: "Chrome", request: pytest.FixtureRequest, name: str, scheme: str, is_dark: bool
) -> None:
    """Every text on the page, whatever is behind it."""
    show(chromium, request.getfixturevalue(name), scheme=scheme)
    background = ask(chromium, "getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    contrasts = chromium.execute_script(CONTRASTS)

    assert (red < 60) == is_dark, background
    assert len(contrasts) > 20
    assert [pair for pair in contrasts if pair[1] < LEAST_CONTRAST] == []


def test_a_reader_that_does_not_see_finds_its_way(chromium: "Chrome", attacked: Path) -> None:
    """Landmarks, headings in order, headers of columns, ids that are there once, and links that lead somewhere."""
    show(chromium, attacked)

    assert ask(chromium, "document.documentElement.lang") == "en"
    assert ask(chromium, "document.querySelectorAll('header, nav[aria-label], main, footer').length") == 4
    headings = ask(chromium, "[...document.querySelectorAll('h1, h2, h3')].map((e) => e.tagName)")
    assert headings[0] == "H1"
    assert set(headings[1:]) == {"H2"}
    assert ask(chromium, "[...document.querySelectorAll('thead th')].every((e) => e.scope === 'col')")
    assert ask(chromium, "document.querySelectorAll('[aria-sort]').length") == 1
    assert ask(chromium, "new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == ask(
        chromium, "document.querySelectorAll('[id]').length"
    )
    assert ask(chromium, "[...document.links].every((e) => document.querySelector(e.getAttribute('href')))")
    assert ask(chromium, "[...document.querySelectorAll('input')].every((e) => e.labels.length || e.ariaLabel)")


def test_on_paper_it_is_light_and_without_controls(chromium: "Chrome", attacked: Path) -> None:
    """Whoever prints in the evening saves no ink with a black page."""
    show(chromium, attacked)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})

    assert ask(chromium, "getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert ask(chromium, "getComputedStyle(document.body).color") == "rgb(35, 33, 30)"
    assert visible(chromium, "nav") == []
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_is_made_picture_by_picture(tmp_path: Path, settings: Settings) -> None:
    """A thousand pictures must not be in memory at once."""
    drawn = 0

    def tiles(images: Iterable[ImageFile]) -> Iterable[tuple[ImageFile, Tile | None]]:
        nonlocal drawn
        for image in images:
            drawn += 1
            yield image, Tile(b"picture", 4, 3)

    told: list[int] = []
    with read_dataset(fill(tmp_path / "pictures")) as dataset:
        judged = judge_folder(dataset, Wanted(), settings, lambda _: None)
        for part in build_page(judged, tiles(dataset.images), told.append):
            assert part.count("<figure") <= 1
            if "<figure" in part:
                assert f'id="image-{drawn}"' in part

    assert drawn == 6
    assert told == [1, 2, 3, 4, 5, 6]
