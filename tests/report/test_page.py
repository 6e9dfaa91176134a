"""The report in a real browser: headless Chromium, driven by Selenium, opens the file from the disk."""

import shutil

import pytest

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import VLNEgo
from habitat_vlnr1.report.build import write_data_report, write_results_report
from tests.report.sample import EVIL, WORDS, write_results
from tests.tiny_run import write_tiny_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver here (Debian: apt install chromium chromium-driver)"
)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, of the extra dev, is not installed")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait


class Page:
    """A report, opened; everything is found by CSS selectors."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, file, width=1300):
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")  # else another file of the same name would be taken for the same page
        self.driver.get(file.as_uri())
        return self.wait(lambda: self.driver.execute_script("return document.body.dataset.ready"))

    def wait(self, condition):
        WebDriverWait(self.driver, 60).until(lambda _: condition())
        return self

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def texts(self, selector):
        return [node.text for node in self.all(selector)]

    def choose(self, select, text):
        (option,) = [o for o in self.all(f"{select} option") if o.text == text]
        option.click()

    def set(self, selector, value):
        """A value as a user's input gives it; sliders cannot be typed into."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.driver.execute_script(script, self.one(selector), value)

    def wide(self):
        return self.driver.execute_script("return document.documentElement.scrollWidth")

    def complaints(self):
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    home = write_results(tmp_path_factory.mktemp("results"), {"model": 1, "blind": 2, "random": 0})
    return write_results_report(home / "report.html", [home])


@pytest.fixture
def page(browser, report):
    opened = Page(browser).open(report)
    yield opened
    assert opened.complaints() == []  # neither errors nor anything that the page's policy refused


def test_table_list_and_first_episode_are_there_at_once(page):
    assert page.texts("#tables tbody td.words") == ["blind", "model", "random"]
    assert page.texts("#tables tbody tr")[0].split()[:4] == ["blind", "6", "0.333", "±"]
    assert len(page.all("#list tbody tr")) == 6 and page.one("#count").text == "6 of 6"
    assert page.texts(".walk h4") == ["blind", "model"]
    assert len(page.all("svg.map image")) == 2


def test_what_stands_in_an_instruction_is_text(page):
    assert page.driver.title != "broken" and page.all("#instruction img, #list img") == []
    page.set("#words", "onerror")
    page.one("#list tbody tr:first-child").click()
    assert page.one("#instruction").text == EVIL


def test_filters(page):
    page.set("#words", "sofa red")
    assert page.one("#count").text == "2 of 6" and all("sofa" in row for row in page.texts("#list tbody tr"))
    page.set("#words", "")
    page.choose("#scene", "hall")
    assert page.one("#count").text == "3 of 6"
    page.choose("#scene", "all 2 scenes")
    page.choose("#outcome", "success")
    assert {row.splitlines()[0] for row in page.texts("#list tbody tr")} == {WORDS[0]}
    page.choose("#focus", "random")
    assert page.one("#count").text == "0 of 6"
    page.choose("#outcome", "was there, did not stop")
    assert page.one("#count").text == "6 of 6"


def test_sorting_also_by_where_policies_differ(page):
    def errors():
        return [float(row.find_elements("css selector", "td")[3].text) for row in page.all("#list tbody tr")]

    page.one("th[data-key=NE]").click()
    assert errors() == sorted(errors()) and len(set(errors())) == 3
    page.one("th[data-key=NE]").click()
    assert errors() == sorted(errors(), reverse=True)
    page.one("th[data-key=differ]").click()
    differ = "#list tbody tr:first-child .dot"
    page.all("#chips button")[1].click()  # blind beside random, without model
    page.all("#chips button")[2].click()
    assert page.texts(".walk h4") == ["blind", "random"]
    assert page.all(differ)[0].get_attribute("title") == "blind: success"
    page.choose("#outcome", "outcomes differ")
    assert page.one("#count").text == "2 of 6"


def test_slider_shows_frame_answer_and_place_of_each_step(page):
    page.set("#words", "sofa")
    page.one("#list tbody tr:first-child").click()

    def seen():
        view = page.all(".walk")[0]
        found = {name: view.find_element("css selector", name) for name in (".view", ".did", ".answer", ".map path")}
        return [found[".view"].get_attribute("src"), *(found[name].text for name in (".did", ".answer"))], found[
            ".map path"
        ].get_attribute("transform")

    first, start = seen()
    assert first[0].startswith("data:image/jpeg") and first[1] == "Move forward 50 cm"
    assert "A. Move forward 50 cm" in first[2] and page.one("#at").text == "step 1 of 9"
    page.set("#step", 3)
    later, moved = seen()
    assert later[0] != first[0] and moved != start and page.one("#at").text == "step 4 of 9"
    assert "asked" not in page.all(".walk .answer")[0].get_attribute("class")  # the answer of step 3 is in force
    page.one("#on").click()
    assert page.one("#at").text == "step 5 of 9"
    page.set("#step", 8)
    assert page.all(".did")[0].text == "ended"


def test_arrow_keys_and_play(page):
    page.one("body").send_keys("\ue014")  # right
    assert page.one("#at").text.startswith("step 2 of")
    page.one("#play").click()
    page.wait(lambda: int(page.one("#at").text.split()[1]) >= 4)  # it goes on between two looks
    page.one("#play").click()
    assert page.one("#play").text == "Play"


def test_the_address_remembers_the_episode(page, report):
    page.set("#words", "lamp")
    page.one("#list tbody tr:first-child").click()
    name, address = page.one("#name").text, page.driver.current_url
    page.driver.get("about:blank")
    page.driver.get(address)
    page.wait(lambda: page.all("#list tbody tr"))
    assert page.one("#name").text == name


def test_a_narrow_window_has_no_sideways_scrolling(page, report):
    page.open(report, width=380)
    assert page.wide() <= 380
    page.one("#list tbody tr:nth-child(2)").click()
    assert page.one("#detail").is_displayed()


def test_curves_and_a_data_set(browser, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run/tb")) as writer:
        for step in range(20):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
        writer.add_scalar("train/loss", float("nan"), 20)
    page = Page(browser).open(write_results_report(tmp_path / "curves.html", [tmp_path / "run"], logs=[tmp_path]))
    assert page.texts(".chart h4") == ["train/loss"] and page.one(".read").text == "1 → 0.05 at step 19"
    assert not page.one("#episodes").is_displayed() and page.complaints() == []

    ego = VLNEgo(write_tiny_run(tmp_path) / "ego/embedded/train")
    records = ego.records(make_memory("long_short", budget=2, short_window=1), 6)
    page.open(write_data_report(tmp_path / "data.html", "tiny", records, ActionSpace(0.5, 30)))
    assert len(page.all("#list tbody tr")) == 2 and len(page.all(".strip img")) == 8
    page.set("#step", 3)
    shown = [image.get_attribute("class").split() for image in page.all(".strip img")]
    assert [i for i, names in enumerate(shown) if "shown" in names] == [0, 2] and "now" in shown[3]
    assert page.one(".answer").text.startswith("taught: ") and page.complaints() == []
