"""Pages in a real headless Chromium: they load, sort, play, and can be read on a phone."""

import base64
import io
import shutil

import mujoco
import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.cli.command import main
from experiments.show import page, scene
from tests.test_gather import make_run as make_folder
from tests.test_gather import reseal
from tests.test_pages import SWEPT
from tests.test_render import BODY, bodies_scene, fall

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium with its chromedriver here", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver")
PHONE, DESK = 400, 1280
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                 f"--user-data-dir={profile}", "--disable-dev-shm-usage"):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


def wide(browser, width, height=900):
    """Gives the page a width in pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def load(browser, path, width=DESK):
    """Opens a file; asserts that the console says nothing."""
    browser.get_log("browser")
    wide(browser, width)
    browser.get(path.as_uri())
    settle(browser)
    assert browser.get_log("browser") == []


def settle(browser):
    """Waits for two frames to be drawn."""
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
    )


def picture(browser):
    """Returns what is on the screen [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"), float)


def canvas(browser, name="world"):
    """Returns the pixels of a canvas [height, width, 4]."""
    settle(browser)
    url = browser.execute_script(f"return document.getElementById('{name}').toDataURL()")
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(image.convert("RGBA"), float)


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    """The page of a finished sweep."""
    root = tmp_path_factory.mktemp("browser")
    folder = make_folder(root, *SWEPT, drawn=True)
    with np.load(folder / "rollouts.npz") as arrays:
        paths, mask = arrays["paths"], arrays["mask"]
    along = np.linspace(0, 1, paths.shape[2])[:, None]
    np.savez(folder / "rollouts.npz", paths=np.broadcast_to(along, paths.shape), mask=mask)
    reseal(folder)
    assert main(report.COMMAND, ["report", f"--run={folder}", f"--html={root / 'p.html'}"]) == 0
    return root / "p.html"


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_a_page_is_drawn_and_no_wider_than_the_screen(browser, report_page, width):
    load(browser, report_page, width)
    shown = picture(browser)
    assert shown.shape[1] == width and shown.std() > 10  # not blank
    inside = browser.execute_script("return document.documentElement.scrollWidth")
    assert inside <= width
    loaded = browser.execute_script(
        "return [...document.images].map((one) => one.complete && one.naturalWidth > 50)"
    )
    assert len(loaded) == 5 and all(loaded)


def test_the_chosen_episode_plays(browser, report_page):
    load(browser, report_page)
    frame = browser.find_element("tag name", "iframe")
    choices = browser.find_elements("css selector", ".plays option")
    assert len(choices) == 10 and choices[0].text.startswith("test task")
    browser.switch_to.frame(frame)
    first = browser.find_element("id", "title").text
    browser.execute_script("seek(0)")
    still = canvas(browser)
    browser.execute_script("seek(last)")
    assert (canvas(browser) != still).any() and still[..., 3].any()
    assert "step 20 of 20" in browser.find_element("id", "now").text
    browser.switch_to.default_content()
    choices[1].click()
    settle(browser)
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    assert browser.find_element("id", "title").text != first
    browser.switch_to.default_content()


ROWS = "\n".join([
    "| name | mean | interval | mixed |", "|---|---|---|---|",
    "| b | -2.5 ± 1 (0.2) | [3, 4]† | 1 |", "| a | 10 | [-1, 2] | word |",
    "| C | - | - | - |", "| d | 9.5e-1 | [20, 30] | nan |",
])  # fmt: skip
NAMES = "\n".join(["| name |", "|---|", *(f"| {n} |" for n in ("1:12", "1:0", "1:9", "1.2.3"))])


def test_tables_sort_by_numbers_and_words_and_what_is_missing_stays_last(browser, tmp_path):
    path = tmp_path / "t.html"
    path.write_text(page.page("t", [page.Text(ROWS), page.Text(ROWS)]))
    load(browser, path)
    names = lambda: [
        cell.text for cell in browser.find_elements("css selector", "tbody td:first-child")
    ]
    buttons = browser.find_elements("css selector", "th button")

    def after(column):
        buttons[column].click()
        assert names()[4:] == list("baCd")  # the other table is as it was
        return "".join(names()[:4])

    assert after(1) == "adbC" and after(1) == "bdaC"
    assert after(2) == "dbaC" and after(0) == "dCba" and after(0) == "abCd"
    assert after(3)[:2] == "ba"
    marked = browser.find_elements("css selector", "th[aria-sort]")
    assert [head.get_attribute("aria-sort") for head in marked] == ["descending"]


def test_names_with_numbers_sort_as_a_reader_counts(browser, tmp_path):
    path = tmp_path / "n.html"
    path.write_text(page.page("n", [page.Text(NAMES)]))
    load(browser, path)
    button = browser.find_element("css selector", "th button")
    button.click()  # from the last to the first
    button.click()
    cells = [cell.text for cell in browser.find_elements("css selector", "tbody td")]
    assert cells == ["1:0", "1:9", "1:12", "1.2.3"]


def test_the_viewer_draws_the_bodies_and_listens(browser, tmp_path):
    model = mujoco.MjModel.from_xml_string(BODY)
    path = tmp_path / "v.html"
    path.write_text(scene.page(bodies_scene(model, fall(model))))
    load(browser, path)
    assert browser.find_element("id", "details").text == "</script><b>"
    for step, reward, total in ((0, 0, 0), (5, 5, 15)):
        browser.execute_script(f"seek({step})")
        world = canvas(browser)
        now = browser.find_element("id", "now").text
        assert f"step {step} of 5" in now and f"{reward:.3f}" in now and f"{total:.2f}" in now
        # the camera looks at the torso, the red capsule: it lies around the canvas' middle
        red = (world[..., 0] > 150) & (world[..., 1] < 60) & (world[..., 2] < 60)
        places = np.argwhere(red) / red.shape
        assert len(places) > 100 and np.abs(places.mean(0) - 0.5).max() < 0.25
    assert canvas(browser, "plots")[..., 3].any()
    keys = browser.find_element("tag name", "body")
    keys.send_keys(webdriver.Keys.ARROW_LEFT)
    settle(browser)
    assert "step 4 of 5" in browser.find_element("id", "now").text
    before = canvas(browser)
    drag = webdriver.ActionChains(browser)
    drag.drag_and_drop_by_offset(browser.find_element("id", "world"), 120, 10).perform()
    assert (canvas(browser) != before).any()
    keys.send_keys(" ")  # plays on
    assert browser.find_element("id", "play").text == "pause"
    assert browser.get_log("browser") == []
