# SPDX-License-Identifier: GPL-2.0-only
"""The pages in a real browser: light and dark, on a phone, by keyboard, and for screen readers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Open = Callable[..., Any]
KINDS = ("pass", "fail", "64 CPUs", "site")
PHONE = 375

CUT = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
  return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 ||
    box.y + box.height > view.height + 1;
}).map(text => text.textContent)"""
"""Texts of pictures that are not wholly in them."""

OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter(element =>
  element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".wide")
).map(element => element.outerHTML.slice(0, 80))"""
"""What is wider than the window and cannot be scrolled to."""


@pytest.mark.parametrize("width", [PHONE, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_everybody_can_read_a_page(
    open_page: Open, pages: dict[str, Path], kind: str, scheme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(pages[kind], scheme, width)
    # axe takes half a minute for the long table of 64 CPUs, which is made like the others.
    for details in page.locator("details").all() if kind != "64 CPUs" else ():
        details.evaluate("element => element.open = true")
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CUT) == []


def test_dark_is_dark(open_page: Open, pages: dict[str, Path]) -> None:
    script = "() => getComputedStyle(document.body).backgroundColor"
    assert open_page(pages["fail"], "light").evaluate(script) == "rgb(255, 255, 255)"
    assert open_page(pages["fail"], "dark").evaluate(script) == "rgb(13, 17, 23)"


def focused(page: Any) -> str:
    return str(page.evaluate("() => document.activeElement.outerHTML.slice(0, 90)"))


def test_the_picture_and_its_table_are_reached_by_keyboard(
    open_page: Open, pages: dict[str, Path]
) -> None:
    page = open_page(pages["fail"])
    page.keyboard.press("Tab")
    assert "The poke over time" in focused(page)
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Tab")
    assert "<summary>The same as a table" in focused(page)
    page.keyboard.press("Enter")
    assert page.locator("tr.wrong").first.is_visible()


def test_what_a_check_says_leads_to_the_event(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["fail"])
    row = page.locator("tr.wrong[id]")
    assert not row.is_visible()
    link = page.locator(f"a[href='#{row.get_attribute('id')}']").first
    link.evaluate("element => element.closest('details').open = true")
    link.click()
    assert row.is_visible()


def test_the_first_screen_of_a_failure_says_who_missed_what(
    open_page: Open, pages: dict[str, Path]
) -> None:
    page = open_page(pages["64 CPUs"], width=1100)
    assert "CPU 37 did not sync" in page.locator("h1").inner_text()
    said = page.locator(".poke .round.bad")
    assert said.all_text_contents() == ["CPU 37", "did not sync"]
    assert page.locator(".m.missing").count() == 1
    box = page.locator(".poke").bounding_box()
    assert box and box["y"] < 400


def test_a_phone_shows_first_what_is_wrong_and_can_scroll_away(
    open_page: Open, pages: dict[str, Path]
) -> None:
    page = open_page(pages["64 CPUs"], width=PHONE)
    mark, frame = page.locator(".poke .wrong").first.bounding_box(), page.locator(".wide").first
    assert mark and 0 < mark["x"] < mark["x"] + mark["width"] < PHONE
    assert frame.evaluate("element => element.scrollLeft") > 50
    page.wait_for_timeout(500)
    frame.evaluate("element => { element.scrollLeft = 0 }")
    page.wait_for_timeout(100)
    assert frame.evaluate("element => element.scrollLeft") == 0


@pytest.mark.parametrize("width", [PHONE, 1100])
def test_durations_fit_and_their_numbers_do_not_overlap(
    open_page: Open, pages: dict[str, Path], width: int
) -> None:
    page = open_page(pages["pass"], width=width)
    bars = page.locator(".histogram i[title]")
    heights = [box["height"] for bar in bars.all() if (box := bar.bounding_box())]
    assert len(heights) == 17 and heights == sorted(heights) and heights[0] > 1
    places = [box for tick in page.locator(".ticks span").all() if (box := tick.bounding_box())]
    assert len(places) > 3
    for left, right in itertools.pairwise(places):
        assert left["x"] + left["width"] < right["x"]


def test_filters_work_without_a_server_and_can_be_linked_to(
    open_page: Open, pages: dict[str, Path]
) -> None:
    page = open_page(pages["site"])
    rows, count = page.locator("#runs tr:visible"), page.locator("#count")
    assert (rows.count(), count.inner_text()) == (3, "3 runs")
    page.locator("#kernel").fill("DEBIAN")
    assert (rows.count(), count.inner_text()) == (1, "1 run")
    assert page.locator("#grid tr:visible").count() == 1
    page.locator("#kernel").fill("")
    page.locator("#status").select_option("error")
    assert rows.count() == 1 and page.url.endswith("#status=error")
    page.reload()
    assert rows.count() == 1
    page.locator("#status").select_option("")
    page.locator("#smp").select_option("4")
    assert rows.count() == 2
