"""The page in a real browser: no errors, no requests, sorting, filtering, and nothing that overflows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from clipguard.cli import run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
SCHEMES = ("light", "dark")

# Every piece of text against the nearest background that is not see-through: the lowest contrast (WCAG 2.1, 1.4.3).
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = [21, ""];
  for (const element of document.querySelectorAll("body *:not(svg *):not(script):not(option)")) {
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    let under = element;
    while (under && (rgb(getComputedStyle(under).backgroundColor)[3] ?? 1) === 0) under = under.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(under ?? document.body).backgroundColor];
    const [low, high] = pair.map((c) => light(rgb(c))).sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < worst[0]) worst = [contrast, element.outerHTML.slice(0, 200)];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert run(["-q", "report", *(str(runs / name) for name in ("both", "other", "images")), "--out", str(out)]) == 0
    return out.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Chromium's sandbox cannot start as root, as in most containers.
    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield chromium
        chromium.close()


def opened(browser: Browser, address: str, width: int, scheme: str = "light") -> Page:
    """The page, and a check that it asked for nothing else and had nothing to complain of."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url[:100]))
    page.goto(address)
    assert [text for text in trouble if text != address and not text.startswith("data:")] == []
    return page


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_overflows_and_everything_is_readable(width: int, scheme: str, browser: Browser, address: str) -> None:
    page = opened(browser, address, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Whatever is wider than the window scrolls in a box of its own.
    outside = """() => [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, .skip") &&
        e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 100))"""
    assert page.evaluate(outside) == []
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where


def test_the_scheme_follows_the_system_in_plots_too(browser: Browser, address: str) -> None:
    colours = """() => [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("figure svg path[style*='--ink'], figure svg g[style*='--ink']")).fill,
        getComputedStyle(document.querySelector("figure svg path[style*='--s1']")).stroke]"""
    light, dark = (opened(browser, address, 1400, scheme).evaluate(colours) for scheme in SCHEMES)
    assert all(one != other for one, other in zip(light, dark, strict=True))


def column(page: Page, number: int) -> list[str]:
    cells = "(n) => [...document.querySelectorAll('#table-1 tbody tr')].filter((r) => !r.hidden).map((r) => "
    return list(page.evaluate(cells + "r.cells[n].firstChild.textContent.trim())", number))


def test_columns_sort_by_mouse_and_keyboard(browser: Browser, address: str) -> None:
    page = opened(browser, address, 1400)
    header = page.locator("#table-1 th", has_text="clean")
    header.get_by_role("button").click()
    values = [float(text) for text in column(page, 3)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 1
    assert header.get_attribute("aria-sort") == "descending"
    header.get_by_role("button").press("Enter")
    assert [float(text) for text in column(page, 3)] == sorted(values)
    assert header.get_attribute("aria-sort") == "ascending"
    model = page.locator("#table-1 th", has_text="Model")
    model.get_by_role("button").press("Space")
    assert column(page, 0) == sorted(column(page, 0))
    assert page.locator("#table-1 th[aria-sort]").count() == 1


def test_missing_values_sort_last_either_way(browser: Browser, address: str) -> None:
    page = opened(browser, address, 1400)
    page.evaluate("document.querySelector('#table-1 tbody tr').cells[3].dataset.value = ''")
    first = page.evaluate("document.querySelector('#table-1 tbody tr').textContent")
    button = page.locator("#table-1 th", has_text="clean").get_by_role("button")
    for _ in range(2):
        button.click()
        assert page.evaluate("document.querySelector('#table-1 tbody tr:last-child').textContent") == first


def test_rows_are_filtered_by_text_model_and_data_set(browser: Browser, address: str) -> None:
    page = opened(browser, address, 1400)
    everything = len(column(page, 0))
    page.locator("form").get_by_label("Search").fill("FOOD tiny")
    assert set(column(page, 1)) == {"emoji-food"}
    assert page.locator("form output").inner_text() == f"{len(column(page, 0))} of {everything} rows"
    page.locator("form").get_by_label("Search").fill("")
    page.locator("form").get_by_label("Model").select_option("tiny")
    assert set(column(page, 0)) == {"tiny"}
    page.locator("form").get_by_label("Data set").select_option("average")
    assert column(page, 1) == ["average"]
    page.locator("form").get_by_label("Search").fill("nothing like it")
    assert column(page, 0) == []


def test_headings_images_and_plots_have_names(browser: Browser, address: str) -> None:
    page = opened(browser, address, 1400)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("img").count() >= 9
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("figure svg").count() == page.locator("figure svg[role=img][aria-label*=' ']").count() > 5
    loaded = "[...document.images].every((i) => i.complete && i.naturalWidth > 0)"
    assert page.evaluate(loaded)


def test_print_is_dark_on_white_and_fits(browser: Browser, address: str) -> None:
    page = opened(browser, address, 760, "dark")  # A4 without margins
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") == 760
    assert page.locator("form.controls").is_hidden()
