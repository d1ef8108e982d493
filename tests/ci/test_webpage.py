"""The page of a run: whole, escaped, without anything that is fetched, and in a real browser, where there is one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from assay import webpage
from assay.bench import Missing, Timed
from assay.cli import main
from assay.expected import read
from assay.failures import Judged
from assay.kernels import resolve
from assay.properties.atlas import Class, Curve
from assay.properties.contract import Work
from assay.properties.trial import Miss
from assay.roofline import Rates
from assay.timing import Setup
from tests.browser import BROWSER, DRIVER, Browser, browser
from tests.ci.test_markdown import HOSTILE, judged


KERNELS = Path(__file__).parent.parent / "kernels.py"
VOID = {"meta", "link", "wbr"}
CURVES = (
    Curve("outputs", "position", (Class(0, 9, 0.0, 0.0), Class(1, 4, 0.1, 0.2), Class(2.0**20, 2, 3.0, np.inf))),
    Curve("gradients", "position", (Class(0, 9, 0.1, 0.2), Class(1, 4, 0.1, 0.4))),
    Curve("outputs", "magnitude", (Class(1e-38, 3, 0.1, 0.3), Class(0.1, 9, 0.2, 0.5))),
    Curve("outputs", "size", (Class(64, 12, 0.1, 0.5),)),
)


def found(
    name: str, dtype: str, verdict: Any, message: str = "output[0] is 1, exact 0", atlas: tuple[Curve, ...] = ()
) -> Judged:
    """A judgement with everything that a page shows."""
    kernel, examination = judged(name, dtype, verdict, message)
    examination.atlas = atlas
    for result in examination.results:
        if result.counterexample:
            result.values = {"x": "[[1. 2.]]"}
            result.miss = Miss("output", (0, 1), 0.1, np.nan, 2.0**-24, 1, 2)
    return kernel, examination


def run(name: str = "mine.py:f") -> list[Judged]:
    verdicts = ("pass", "fail", "error", "undecided", "skipped")
    return [
        found(name, "float32", "fail", atlas=CURVES),
        *(found(f"torch:{verdict}", "float32", verdict) for verdict in verdicts),
    ]


def timed() -> str:
    (kernel,) = resolve("rope=assay.impl.rope:rope")
    setup = Setup("rope", "short", "float32", False, 1)
    one = (kernel, setup, (1e-3, 1.1e-3, 1.2e-3), 1, "loop", Work(4000, 10), Rates(1e7, 1e9, 1e9), {})
    missing = [Missing("a:<b>", "short", "it <raises>", fails=True)]
    return webpage.of_bench([Timed(*one, 1 << 20), Timed(*one, None, "breaks <it>")], missing, {"x": "no <GPU>"})


class Parsed(HTMLParser):
    """The elements of a page. Fails where one is not closed as it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


PAGES: dict[str, Callable[[], str]] = {
    "a run": lambda: webpage.of_check(run(), {"a": "b"}),
    "nothing": lambda: webpage.of_check([], {}),
    "timings": timed,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_fetches_nothing(name: str) -> None:
    text = PAGES[name]()
    assert text.startswith("<!DOCTYPE html>")
    elements = Parsed(text).elements
    ids = [given["id"] for _, given in elements if "id" in given]
    assert len(set(ids)) == len(ids)
    links = [given[key] or "" for _, given in elements for key in ("href", "src", "data", "action") if key in given]
    links += re.findall(r"url\(([^)]*)\)", text)
    assert len(links) > 1
    assert {link for link in links if link.removeprefix("#") not in ids} <= {"data:,"}
    assert not {"script", "iframe", "object", "img", "base", "form"} & {tag for tag, _ in elements}
    assert not any(key.startswith("on") for _, given in elements for key in given)
    assert "://" not in text
    assert "@import" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_what_strangers_chose_is_shown_as_it_is(name: str) -> None:
    def elements(chosen: str) -> list[Any]:
        one = found(f"{chosen}:f", "float32", "fail", f"it says {chosen}")
        return Parsed(webpage.of_check([one], {chosen: chosen})).elements

    text = webpage.of_check([found(f"{name}:f", "float32", "fail", f"it says {name}")], {})
    tags = [tag for tag, _ in elements(name) if tag != "wbr"]  # between the parts of a name
    assert tags == [tag for tag, _ in elements("a") if tag != "wbr"]
    assert f"it says {' '.join(name.split())}" in unescape(text)


def test_what_no_page_can_show_is_replaced() -> None:
    text = webpage.of_check([found("a\x00b\udc80\u202e:f", "float32", "fail")], {})
    assert "a?b??:" in text
    text.encode()


def test_each_failure_has_its_diagnosis_first_then_the_case_and_the_command() -> None:
    text = webpage.of_check(run(), {})
    articles = re.findall('<article id="(.*?)".*?>(.*?)</article>', text, re.DOTALL)
    assert len(articles) == 4
    for anchor, article in articles:
        assert f'href="#{anchor}"' in text
        if "undecided" in article:
            continue
        told = ["Diagnosis"] if "! </span> error" not in article and "fail" in article.partition("</h4>")[0] else []
        told += ["output[0] is 1, exact 0", "Smallest input", "x[1, 2], position[1]", "[[1. 2.]]"]
        told += ["output[0, 1], 1 of 2 are outside", "Exact", "0.1000", "Got", "nan", "Bound", "5.96e-08"]
        told += [f"assay replay {shlex.quote('.assay/c e.json')}"]
        places = [unescape(article).find(part) for part in told]
        assert -1 not in places
        assert places == sorted(places)


def test_what_is_only_undecided_does_not_hide_what_fails() -> None:
    kernel, examination = found("a:f", "float32", "fail")
    first, second = examination.results
    first.verdict, first.message, first.diagnosis, second.diagnosis = "undecided", "too few", [], first.diagnosis
    (article,) = re.findall("<article.*?</article>", webpage.of_check([(kernel, examination)], {}), re.DOTALL)
    places = [article.index(text) for text in ("Diagnosis", "position off by one", "inverse", "too few")]
    assert places == sorted(places)


def test_a_kernel_in_two_dtypes_has_one_name_and_one_that_is_named_twice_two() -> None:
    one, other = found("a:f", "float32", "pass"), found("a:f", "float32", "pass")
    again = one[0], found("a:f", "bfloat16", "pass")[1]
    text = webpage.of_check([one, again, other], {})
    assert re.findall('rowspan="(\\d)"', text) == ["2", "1"]


def test_every_verdict_is_told_by_a_word_and_a_symbol() -> None:
    text = webpage.of_check(run(), {})
    cells = re.findall('<td class="cell (.*?)" title="(.*?)"><span aria-hidden="true">(.*?)</span>'
                       '<span class="spoken">(.*?)</span></td>', text)  # fmt: skip
    assert len(cells) == 2 * len(run())
    assert text.count(">torch:<wbr>undecided<") == 1
    for verdict, told, symbol, word in cells:
        assert symbol == webpage.SYMBOLS[verdict]
        assert word == verdict
        assert verdict in told
    symbols = [s for v, s in webpage.SYMBOLS.items() if v]
    assert len(set(symbols)) == len(symbols)


def test_known_failures_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    entry = "dtype = 'float32'\nsignature = 'a'\nreason = 'up<stream'\nexpires = 9999-12-31\n"
    path.write_text(f"[[known]]\nkernel = 'a:*'\nproperty = ['agrees_with_oracle', 'inverse']\n{entry}")
    text = webpage.of_check([found("a:f", "float32", "fail")], {}, read(path))
    assert "<h1>assay: 1 known</h1>" in text
    assert "<article" not in text
    assert "a:f float32 inverse: up&lt;stream (until 9999-12-31)" in text


def test_the_atlas_tells_its_worst_to_those_who_do_not_see_it() -> None:
    text = webpage.of_check([found(name, "float32", "pass", atlas=CURVES[:2]) for name in ("a:f", "b:f")], {})
    assert text.count("<svg") == 2
    label = "outputs at most inf of the bound, at position 1048576 and above; gradients at most 0.4 of the bound"
    assert text.count(label) == 2


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 has it."""
    digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_letters_have_the_contrast_of_wcag_in_both_themes() -> None:
    style = Path(webpage.__file__).with_name("webpage.css").read_text()
    themes = [dict(re.findall("--(\\w+): (#\\w+)", block)) for block in re.findall(":root {(.*?)}", style, re.DOTALL)]
    assert len(themes) == 2
    for colors in themes:
        for name in ("ink", "quiet", "mark", *webpage.MEANINGS):
            for ground in ("ground", "raised"):
                dark, light = sorted((luminance(colors[name]), luminance(colors[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


# The command line ----------------------------------------------------------------------------------------------------


def check(monkeypatch: pytest.MonkeyPatch, path: str) -> Any:
    monkeypatch.setattr("assay.jobs.judge", lambda kernel, dtype, *_: found(kernel.name, dtype, "fail")[1])
    command = ["check", f"rope={KERNELS}:right", "--dtype", "float32", "--in-process", "--jobs", "1", "--html", path]
    return CliRunner().invoke(main, command)


def test_the_command_line_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("webpage.html").write_text("the last one")
    assert check(monkeypatch, "webpage.html").exit_code == 1
    assert "<h1>assay: 1 fail</h1>" in Path("webpage.html").read_text()
    full = check(monkeypatch, "/dev/full")
    assert full.exit_code == 2
    assert full.output.splitlines()[-1] == "Error: /dev/full cannot be written: No space left on device"


def test_what_a_page_needs_is_told_before_anything_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for command in (["check", f"rope={KERNELS}:right"], ["bench"]):
        result = CliRunner().invoke(main, [*command, "--html", "page.html"])
        told = f"Error: assay {command[0]} --html needs jinja2 and matplotlib: pip install 'assay[report]'\n"
        assert (result.exit_code, result.output) == (2, told)


# In a browser --------------------------------------------------------------------------------------------------------

TAB, ENTER = "\ue004", "\ue007"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    long = "a/rather_long_path/" * 6 + "kernels.py:a_function_with_a_name_that_goes_on"
    content = {"check": webpage.of_check(run(long), {long: "of " + "w" * 200}), "bench": timed()}
    for name, text in content.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in content}


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    if not (BROWSER and DRIVER):
        pytest.skip("there is no chromium with its chromedriver here")
    with browser() as one:
        yield one


@pytest.mark.parametrize("name", ["check", "bench"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_and_nothing_is_said(shown: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    grounds = set()
    for dark in (False, True):
        shown.show(pages[name], width=width, dark=dark)
        shown.js("for (const one of document.querySelectorAll('details')) one.open = true")
        assert shown.js("return innerWidth") == width
        assert shown.js("return document.documentElement.scrollWidth") <= width
        wide = "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, .skip')"
        assert shown.js(f"return [...document.body.querySelectorAll('*')].filter({wide}).map(e => e.outerHTML)") == []
        ground, ink, drawn = shown.js(
            "const of = (one, what) => getComputedStyle(document.querySelector(one))[what];"
            "return [of('body', 'backgroundColor'), of('body', 'color'), of('svg text', 'fill')]"
        )
        assert ink == drawn  # what is drawn has the colours of the page
        grounds.add(ground)
    assert len(grounds) == 2
    assert shown.console() == []


def test_everything_can_be_reached_by_keyboard(shown: Browser, pages: dict[str, Path]) -> None:
    shown.show(pages["check"])
    shown.press(TAB)
    assert shown.js("return document.activeElement.className") == "skip"
    assert shown.js("return document.activeElement.getBoundingClientRect().left") > 0
    shown.press(ENTER)
    assert shown.js("return location.hash") == "#results"
    shown.show(pages["check"])
    wanted = shown.js(
        "window.seen = new Set(); document.addEventListener('focusin', e => seen.add(e.target));"
        "window.wanted = [...document.querySelectorAll('a, summary, .scroll')]; return wanted.length"
    )
    for _ in range(wanted):
        shown.press(TAB)
        assert shown.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert shown.js("return wanted.filter(e => !seen.has(e)).map(e => e.outerHTML)") == []
    shown.js("wanted.find(e => e.parentElement.matches('.failing details')).focus()")
    shown.press(ENTER)
    assert shown.js("return document.activeElement.parentElement.open")
