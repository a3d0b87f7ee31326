"""The pages in Debian's Chromium: by keyboard, readable for people who see less, to each role its own."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.web.kit import PASSWORDS, ReviewPage, add_part, add_to_ledger, make_part, png

from lineward.daemon.label_records import FAIL, LABELLED, PASS
from lineward.daemon.labels import LabelStore
from lineward.daemon.web.people import People
from lineward.daemon.web.trainingset import is_held_out

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.system.line import Service
    from tests.web.kit import Chromium

PAGES = ("/", "/review", "/conflicts", "/data", "/improve")
SHOWN = "document.querySelector('.lw-part').getAttribute('src')"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewPage]:
    """A page whose labels tests may change: each test has a product of its own."""
    page = ReviewPage(tmp_path_factory.mktemp("own"), second_reader_share=0, blind_repeat_share=0).add_people()
    yield page.start()
    page.kill()


@pytest.fixture
def store(own: ReviewPage) -> Iterator[LabelStore]:
    store = LabelStore(own.storage)
    yield store
    store.close()


@dataclass
class Queue:
    """12 parts of one product that nobody has labelled, the first the most urgent."""

    product: str
    first: int

    def image(self, number: int) -> str:
        return f"{self.first + number:012x}"


@pytest.fixture
def queue(store: LabelStore, request: pytest.FixtureRequest) -> Queue:
    product = request.node.name.removeprefix("test_")[:20]
    made = Queue(product, 100 * (1 + len(store.products())))
    for number in range(12):
        add_part(store, made.first + number, urgency=1 - number / 100, product=product)
    add_to_ledger(store, range(made.first, made.first + 12))
    return made


def press(page: Any, key: str) -> None:
    """Press a key and wait for the next picture."""
    before = page.evaluate(SHOWN)
    page.keyboard.press(key)
    wait_next(page, before)


def click(page: Any, button: str) -> None:
    """Click a button with the mouse and wait for the next picture; the focus stays in the button."""
    before = page.evaluate(SHOWN)
    page.click(f"text={button}")
    wait_next(page, before)


def wait_next(page: Any, before: str) -> None:
    page.wait_for_function(f"before => {SHOWN} !== before && lineward.shown() !== ''", arg=before)


def open_queue(page: Any, url: str, queue: Queue) -> None:
    page.goto(f"{url}/review?product={queue.product}", wait_until="commit")
    page.wait_for_function("window.did_handshake === true")
    page.wait_for_function("window.lineward && lineward.shown() !== ''")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_accessibility_fault(served: ReviewPage, browser: Chromium, scheme: str) -> None:
    """Rule: axe-core finds nothing serious or critical on any page, signed in or not, light or dark."""
    found = []
    with browser.page(served.url, "eve", color_scheme=scheme) as page:
        for path in PAGES:
            page.goto(served.url + path)
            page.wait_for_function("window.did_handshake === true")
            if path == "/review":
                page.wait_for_function("window.lineward && lineward.shown() !== ''")
                page.keyboard.press("f")
                page.wait_for_selector(".lw-types.lw-open")
            result = Axe().run(page).response
            found += [(path, fault["id"], fault["nodes"][0]["html"]) for fault in serious(result)]
        page.context.clear_cookies()
        page.goto(f"{served.url}/login")
        found += [("/login", fault["id"], fault["nodes"][0]["html"]) for fault in serious(Axe().run(page).response)]
    assert not found, "\n".join(map(str, found))


def serious(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [fault for fault in result["violations"] if fault["impact"] in {"serious", "critical"}]


def test_parts_are_labelled_by_keyboard_alone(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: one key passes, skips or takes back, two name a defect; the keyboard reaches a new defect type too."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        press(page, "p")
        page.keyboard.press("f")
        page.wait_for_selector(".lw-types.lw-open")
        page.keyboard.press("n")
        page.keyboard.type("cold shut")
        press(page, "Enter")
        page.keyboard.press("f")
        page.wait_for_selector("button:has-text('1 cold shut')")
        press(page, "1")
        page.keyboard.press("f")
        page.wait_for_selector(".lw-types.lw-open")
        page.keyboard.press("Escape")
        page.wait_for_selector(".lw-types.lw-open", state="detached")
        press(page, "s")
        press(page, "p")
        press(page, "u")
    said = {
        part.seq - queue.first: (part.label, part.label_type) for part in store.parts(queue.product, status=LABELLED)
    }
    assert said == {0: (PASS, ""), 1: (FAIL, "cold shut"), 2: (FAIL, "cold shut")}
    assert store.counts(queue.product) == {"labelled": 3, "skipped": 1, "new": 8}
    (taken_back,) = store.labels(queue.image(4))
    assert taken_back.undone_ns is not None


def test_a_killed_page_has_lost_no_label(own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue) -> None:
    """Rule: a label that was followed by the next picture is there after SIGKILL, and the page starts again."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        for _ in range(3):
            press(page, "p")
        own.kill()
    assert {part.image for part in store.parts(queue.product, status=LABELLED)} == set(map(queue.image, range(3)))
    own.start()
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        assert queue.image(3) in page.evaluate(SHOWN)


def test_a_right_that_was_taken_away_is_gone_on_an_open_page(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: each action asks anew who it is; an open page of a former technician labels nothing more."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        people = People(own.storage)
        people.add("tom", "operator", PASSWORDS["tom"])
        people.close()
        page.keyboard.press("p")
        page.wait_for_selector("text=you are signed out; sign in again, nothing was changed")
    assert store.counts(queue.product) == {"new": 12}
    assert own.lines(r"refused on an open page \(/review\): its session is over")
    own.add_people()


def test_two_people_do_not_get_the_same_part(own: ReviewPage, browser: Chromium, queue: Queue) -> None:
    """Rule: what is on one screen is not shown on another for a while."""
    with browser.page(own.url, "tom") as first, browser.page(own.url, "eve") as second:
        open_queue(first, own.url, queue)
        open_queue(second, own.url, queue)
        assert first.evaluate(SHOWN) != second.evaluate(SHOWN)


def test_two_people_who_label_side_by_side_get_no_part_twice(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: what was put in a queue is shown only if nobody else has labelled it or has it on the screen since."""
    with browser.page(own.url, "tom") as first, browser.page(own.url, "eve") as second:
        open_queue(first, own.url, queue)
        open_queue(second, own.url, queue)
        for _ in range(5):
            press(first, "p")
            press(second, "p")
            assert first.evaluate(SHOWN) != second.evaluate(SHOWN)
        for page in (first, second):
            page.keyboard.press("p")
            page.wait_for_selector("text=Nothing waits to be labelled")
    given = [store.labels(queue.image(number)) for number in range(12)]
    assert [len(labels) for labels in given] == [1] * 12


def test_a_part_that_is_not_known_any_more_does_not_block_the_way(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a label for it is refused in words, and the next part is shown."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        store.forget_parts([queue.image(0)])
        press(page, "p")
        page.wait_for_selector("text=is not known any more; go on with the next one")
        assert queue.image(1) in page.evaluate(SHOWN)


def test_an_upload_is_taken_over_or_refused_in_words(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a good ZIP file is labelled data at once; one that leads out is refused with the reason on the page."""
    good, bad = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(good, "w") as archive:
        archive.writestr("good/a.png", png(901))
        archive.writestr("defect/dent/b.png", png(902))
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../../evil.png", png(903))
    with browser.page(own.url, "eve") as page:
        page.goto(f"{own.url}/data?product={queue.product}")
        page.wait_for_function("window.did_handshake === true")
        for name, content, said in (
            ("good.zip", good, "2 pictures taken over"),
            ("bad.zip", bad, "this name leads out of the folder"),
        ):
            file = {"name": name, "mimeType": "application/zip", "buffer": content.getvalue()}
            page.set_input_files("input[type=file]", file)
            page.wait_for_selector(f"text={said}")
    assert store.by_type(queue.product) == {(PASS, ""): 1, (FAIL, "dent"): 1}
    assert list(own.storage.rglob(".upload-*")) == []


def open_data(page: Any, url: str, product: str = "") -> None:
    page.goto(f"{url}/data?product={product}")
    page.wait_for_function("window.did_handshake === true")


def test_a_file_can_be_chosen_again(own: ReviewPage, browser: Chromium, tmp_path: Path, queue: Queue) -> None:
    """Rule: the same file twice is uploaded twice, after an import and after a refusal."""
    path = tmp_path / "parts.zip"
    with browser.page(own.url, "eve") as page:
        open_data(page, own.url, queue.product)
        for names, said in (
            (["elsewhere/a.png"], ("lies neither below good/", "lies neither below good/")),
            (["good/a.png", "defect/dent/b.png"], ("2 pictures taken over", "2 were there already")),
        ):
            with zipfile.ZipFile(path, "w") as archive:
                for name in names:
                    archive.writestr(name, png(920 + len(name)))
            for words in said:
                page.set_input_files("input[type=file]", path)
                page.wait_for_selector(f"text={words}")
                page.wait_for_selector(f"text={words}", state="detached")


def test_a_file_that_is_not_sent_is_refused_with_its_own_reason(served: ReviewPage, browser: Chromium) -> None:
    """Rule: what is no ZIP file and what is too large are told apart, and the limit is said."""
    with browser.page(served.url, "eve") as page:
        open_data(page, served.url)
        for name, size, said in (
            ("parts.tar", 100, "this is not a ZIP file"),
            ("parts.zip", 3 << 20, "larger than review.upload_mb (2 MB)"),
        ):
            page.set_input_files("input[type=file]", {"name": name, "mimeType": "", "buffer": bytes(size)})
            page.wait_for_selector(f".q-notification:has-text('{said}'):has-text('nothing was changed')")


def test_an_escape_is_not_counted_as_kept_for_testing(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: the page counts as kept for testing what is not trained on; an escape always is."""
    numbers = (number for number in range(5000, 6000) if is_held_out(make_part(number, product=queue.product)))
    for decision, verdict in ((PASS, "review"), (FAIL, "pass")):
        number = next(numbers)
        part = add_part(store, number, product=queue.product, verdict=verdict)
        store.give(part.image, "tom", decision)
    with browser.page(own.url, "tom") as page:
        open_data(page, own.url, queue.product)
        row = page.locator("tr:has-text('of these kept for testing') td")
        assert row.all_inner_texts()[1] == "1"


def test_the_live_page_fits_a_phone_and_a_panel(served: ReviewPage, browser: Chromium) -> None:
    """Rule: nothing is wider than the screen, and what is pressed is at least 40 pixels high."""
    with browser.page(served.url, "eve") as page:
        for width, height in ((390, 844), (1280, 800)):
            page.set_viewport_size({"width": width, "height": height})
            for path in PAGES:
                page.goto(served.url + path)
                page.wait_for_function("window.did_handshake === true")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                low = page.evaluate(
                    "[...document.querySelectorAll('main button, nav a')].filter(e => e.offsetParent"
                    " && e.getBoundingClientRect().height < 40).map(e => e.outerHTML)"
                )
                assert low == [], path


@needs_mosquitto
def test_a_page_that_is_left_lets_go_of_the_line(tmp_path: Path, browser: Chromium, services: list[Service]) -> None:
    """Rule: the broker is asked only while somebody looks."""
    broker = Mosquitto(tmp_path)
    page_ = ReviewPage(tmp_path / "page", broker=broker.port).add_people()
    services.append(page_)
    page_.start()
    assert connections(broker.port) == 0
    with browser.page(page_.url, "olga") as page:
        page.wait_for_selector("text=no part has been judged yet")
        wait_until(lambda: connections(broker.port) == 1, 20, "the page listens to the broker")
    wait_until(lambda: connections(broker.port) == 0, 60, "the page has let go")
    broker.stop()


def connections(port: int) -> int:
    """Count the connections to a port of this machine, as `ss` would."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_a_key_is_for_the_part_that_can_be_seen(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a key or click while the next picture is on the way, and a second press, label nothing."""
    held: list[Any] = []
    with browser.page(own.url, "tom") as page:
        page.route(f"**/picture/{queue.image(1)}/view", lambda route: held.append(route))  # noqa: PLW0108 - it wants a function
        open_queue(page, own.url, queue)
        pressed = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'p', bubbles: true}))"
        page.evaluate(f"for (let i = 0; i < 3; i++) {pressed}")
        page.wait_for_function(f"image => {SHOWN}.includes(image)", arg=queue.image(1))
        page.keyboard.press("p")
        page.click("text=Skip (S)")
        page.keyboard.press("h")  # handled after the two before it
        page.wait_for_selector(".lw-heat", state="attached")
        wait_until(lambda: held, 10, "the picture is asked for")
        page.wait_for_function("document.querySelector('.lw-heat').getAttribute('src')")
        assert store.counts(queue.product) == {"labelled": 1, "new": 11}
        for route in held:
            route.continue_()
        page.wait_for_function("document.querySelector('.lw-part').complete")
        press(page, "p")
    assert {part.image for part in store.parts(queue.product, status=LABELLED)} == {queue.image(0), queue.image(1)}


def test_nobody_labels_a_picture_that_did_not_come(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a key for a picture whose connection broke labels nothing; it is asked for again by itself."""
    broken: list[Any] = []

    def hang_up(route: Any) -> None:
        broken.append(route)
        route.abort()

    address = f"**/picture/{queue.image(1)}/view"
    with browser.page(own.url, "tom") as page:
        page.route(address, hang_up)
        open_queue(page, own.url, queue)
        page.keyboard.press("p")
        page.wait_for_function(f"image => {SHOWN}?.includes(image)", arg=queue.image(1))
        wait_until(lambda: broken, 10, "the picture is asked for")
        page.wait_for_function("document.querySelector('.lw-part').complete")
        page.keyboard.press("p")
        page.keyboard.press("h")  # handled after the one before it
        page.wait_for_selector(".lw-heat", state="attached")
        page.wait_for_function("document.querySelector('.lw-heat').getAttribute('src')")
        assert store.counts(queue.product) == {"labelled": 1, "new": 11}
        page.unroute(address)
        page.wait_for_function("image => lineward.shown() === image", arg=queue.image(1))
        press(page, "p")
    assert {part.image for part in store.parts(queue.product, status=LABELLED)} == {queue.image(0), queue.image(1)}


def test_a_picture_that_is_gone_or_damaged_is_passed_over(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: nobody is asked about a picture that cannot be shown, and the queue goes on behind it."""
    gone, damaged = (store.part(queue.image(number)) for number in (1, 3))
    assert gone is not None
    assert damaged is not None
    (own.storage / gone.path).unlink()
    (own.storage / damaged.path).write_bytes(b"no picture")
    seen = []
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        for _ in range(3):
            seen.append(page.evaluate("lineward.shown()"))
            press(page, "p")
        page.wait_for_selector("text=gone or cannot be read")
        page.wait_for_function("image => lineward.shown() === image", arg=queue.image(5))
    assert seen == [queue.image(number) for number in (0, 2, 4)]


def test_a_number_keeps_its_defect(own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue) -> None:
    """Rule: the key of a defect is the same for the next part, however often each defect was seen."""
    for number, kind in enumerate(("dent", "scratch", "scratch")):
        store.give(queue.image(number), "eve", FAIL, kind)
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        for _ in range(4):
            page.keyboard.press("f")
            page.wait_for_selector("button:has-text('1 scratch')")
            page.wait_for_selector("button:has-text('2 dent')")
            press(page, "2")
    found = [part.label_type for part in store.parts(queue.product, status=LABELLED)]
    assert sorted(found) == ["dent"] * 5 + ["scratch"] * 2


def test_one_person_with_two_windows_contradicts_nobody(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a part that was labelled in one window is passed over in the other, which says so."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        other = page.context.new_page()
        open_queue(other, own.url, queue)
        assert other.evaluate("lineward.shown()") == page.evaluate("lineward.shown()") == queue.image(0)
        press(page, "p")
        press(other, "s")
        other.wait_for_selector("text=was labelled meanwhile")
    assert [(label.decision, label.purpose) for label in store.labels(queue.image(0))] == [(PASS, "first")]


def test_undo_takes_back_the_label_that_came_with_it(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a decision and Undo that arrive together leave the part as it was, and those before it."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        press(page, "p")
        keys = (
            "for (const key of ['p', 'u']) document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
        )
        wanted = queue.image(1)
        for times in range(1, 4):
            page.evaluate(keys)
            wait_until(lambda n=times: len([x for x in store.labels(wanted) if x.undone_ns]) == n, 10, "taken back")
            page.wait_for_function("image => lineward.shown() === image", arg=wanted)
    assert {part.image for part in store.parts(queue.product, status=LABELLED)} == {queue.image(0)}


def test_enter_names_no_defect_whichever_button_was_clicked_before(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: after F, Enter is "not named", before the choice is drawn too; the focused button stays out of it."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        click(page, "Pass (P)")
        page.keyboard.press("f")
        page.wait_for_selector(".lw-types.lw-open")
        press(page, "Enter")
        click(page, "Undo (U)")
        page.keyboard.press("f")
        page.wait_for_selector(".lw-types.lw-open")
        press(page, "Enter")
        click(page, "Pass (P)")
        before = page.evaluate(SHOWN)
        page.evaluate(F_ENTER)
        wait_next(page, before)
        page.keyboard.press("f")
        page.wait_for_selector(".lw-types.lw-open")
        page.focus("button:has-text('Enter: not named')")  # a button of the choice is pressed as any other
        press(page, "Enter")
    given = [[(label.decision, label.undone_ns is None) for label in store.labels(queue.image(n))] for n in range(6)]
    assert given == [[(PASS, True)], [(FAIL, False), (FAIL, True)], [(PASS, True)], [(FAIL, True)], [(FAIL, True)], []]


F_ENTER = """() => {
    const tell = (kind, key, code) => document.activeElement.dispatchEvent(
        new KeyboardEvent(kind, {key, keyCode: code, bubbles: true, cancelable: true}));
    for (const [key, code] of [['f', 70], ['Enter', 13]]) { tell('keydown', key, code); tell('keyup', key, code); }
}"""
"""Both keys before the server can answer."""


def test_a_part_that_was_zoomed_into_is_labelled_like_any_other(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: the whole picture that zooming brings is the same part, for keys and for clicks."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        for label in (lambda: press(page, "p"), lambda: click(page, "Skip (S)")):
            page.hover(".lw-viewer")
            page.mouse.wheel(0, -100)
            page.mouse.wheel(0, -100)
            page.wait_for_function(f"{SHOWN}.endsWith('/whole')")
            label()
    assert store.counts(queue.product) == {"labelled": 1, "skipped": 1, "new": 10}


def test_an_open_page_goes_on_after_the_server_was_away(
    own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue
) -> None:
    """Rule: a key pressed meanwhile labels the part that was seen or none, and the page works again by itself."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        press(page, "p")
        own.kill()
        seen = {queue.image(0), page.evaluate(PRESS_ON_SHOWN)}
        own.start()
        page.wait_for_function("window.did_handshake === true && window.lineward && lineward.shown() !== ''")
        wait_until(lambda: labels_one_more(page, store, queue, seen), 60, "a key is obeyed again")
    labelled = {part.image for part in store.parts(queue.product, status=LABELLED)}
    assert {queue.image(0), queue.image(1)} <= labelled <= seen


PRESS_ON_SHOWN = """() => {
    const shown = lineward.shown();
    document.dispatchEvent(new KeyboardEvent('keydown', {key: 'p', bubbles: true}));
    return shown;
}"""


def labels_one_more(page: Any, store: LabelStore, queue: Queue, seen: set[str]) -> bool:
    """Press a key once on what is shown, which joins ``seen``; tell whether that part was labelled."""
    try:
        image = page.evaluate(PRESS_ON_SHOWN)
    except Exception:  # noqa: BLE001 - the page is just being loaded again
        return False
    seen.add(image)
    return image != "" and any(part.image == image for part in store.parts(queue.product, status=LABELLED))


def test_quick_hands_get_no_part_twice(own: ReviewPage, browser: Chromium, store: LabelStore, queue: Queue) -> None:
    """Rule: labels given one after the other as fast as pictures come are each for another part."""
    with browser.page(own.url, "tom") as page:
        open_queue(page, own.url, queue)
        for _ in range(11):
            press(page, "p")
        page.keyboard.press("p")
        page.wait_for_selector("text=Nothing waits to be labelled")
    assert store.counts(queue.product) == {"labelled": 12}
    assert all(len(store.labels(queue.image(number))) == 1 for number in range(12))
