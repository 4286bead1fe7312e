"""The report in a real browser: sorted, filtered, opened; small, dark, and with 200 runs."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offdiff.cli import main
from offdiff.records import write_record

for package in ("jinja2", "plotly", "pandas"):
    pytest.importorskip(package, exc_type=ImportError)
webdriver = pytest.importorskip("selenium.webdriver", exc_type=ImportError)
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
ui = pytest.importorskip("selenium.webdriver.support.ui")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "r.html"
    assert main(["report", str(runs), "--out", str(out), "--draws", "50"]) == 0
    return out.as_uri()


def show(browser: Any, page: str, width: int = 1440, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page)
    wait = ui.WebDriverWait(browser, 20)
    wait.until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))


def draw_everything(browser: Any) -> int:
    """Scrolls through the page; gives the number of figures drawn."""
    for plot in browser.find_elements(By.CSS_SELECTOR, "figure .plot"):
        browser.execute_script("arguments[0].scrollIntoView()", plot)
        wait = ui.WebDriverWait(plot, 10)
        wait.until(lambda element: element.find_elements(By.CSS_SELECTOR, ".main-svg"))
    return len(browser.find_elements(By.CSS_SELECTOR, "figure .plot .main-svg:first-child"))


def rows(browser: Any) -> list[Any]:
    found = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    return [row for row in found if row.is_displayed()]


def test_sorting_by_number_and_by_text(browser: Any, page: str) -> None:
    show(browser, page)
    score = browser.find_element(By.XPATH, "//th/button[text()='score']")

    def scores() -> list[float]:
        cells = browser.find_elements(By.CSS_SELECTOR, "#table tbody td:nth-child(3)")
        return [float(cell.get_attribute("data-sort") or "nan") for cell in cells]

    score.click()
    assert scores() == sorted(scores())
    assert score.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    score.send_keys(Keys.ENTER)
    assert scores() == sorted(scores(), reverse=True)
    browser.find_element(By.XPATH, "//th/button[text()='dataset']").click()
    assert rows(browser)[-1].text.startswith("pointmaze-u")


def test_filters(browser: Any, page: str) -> None:
    show(browser, page)
    assert len(rows(browser)) == 6
    ui.Select(browser.find_element(By.ID, "filter-method")).select_by_visible_text("bc")
    assert len(rows(browser)) == 3
    browser.find_element(By.ID, "filter-text").send_keys("maze")
    (row,) = rows(browser)
    assert "pointmaze-u" in row.text
    assert browser.find_element(By.ID, "shown").text == "1 of 6 lines"


def test_provenance_opens_by_mouse_and_keyboard(browser: Any, page: str) -> None:
    show(browser, page)
    dialog = browser.find_element(By.ID, "provenance")
    rows(browser)[0].click()
    assert dialog.is_displayed()
    dataset = rows(browser)[0].get_attribute("data-dataset")
    assert dialog.find_element(By.TAG_NAME, "h2").text.endswith(f"on {dataset}")
    assert len(dialog.find_elements(By.TAG_NAME, "h3")) == 3
    browser.find_element(By.ID, "close").click()
    assert not dialog.is_displayed()
    chosen = next(row for row in rows(browser) if "iql+pgd" in row.text)
    browser.execute_script("arguments[0].focus()", chosen)
    chosen.send_keys(Keys.ENTER)
    assert dialog.is_displayed()
    assert "offdiff run iql+pgd" in dialog.text
    assert "ffffffff" in dialog.text
    dialog.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_overflows_and_nothing_fails(
    browser: Any, page: str, width: int, scheme: str
) -> None:
    browser.get_log("browser")
    show(browser, page, width, scheme)
    figures = len(browser.find_elements(By.CSS_SELECTOR, "figure .plot"))
    assert draw_everything(browser) == figures > 0
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (bright > 600) == (scheme == "light")
    assert browser.get_log("browser") == []
    assert browser.title == "offdiff report"  # what a dataset's name tried to change


def test_two_hundred_runs_are_shown_in_three_seconds(
    make_record: Callable[..., Any], tmp_path: Path
) -> None:
    for number in range(200):
        method = f"{('bc', 'iql', 'td3bc', 'cql', 'rebrac')[number // 5 % 5]}"
        record = make_record(f"hopper-{number // 25}", method, number % 5, float(number % 97))
        write_record(tmp_path / "runs" / record.run_id, record)
    out = tmp_path / "r.html"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out), "--draws", "50"]) == 0
    tables, figures = [], []
    for attempt in range(3):  # the machine is shared: the best of three browsers without a cache
        with chromium(tmp_path / f"profile-{attempt}") as browser:
            show(browser, out.as_uri())
            ready = browser.execute_script("return document.documentElement.dataset.ready")
            assert len(rows(browser)) == 40
            plot = browser.find_element(By.CSS_SELECTOR, "figure .plot")
            browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", plot)
            wait = ui.WebDriverWait(plot, 20, poll_frequency=0.02)
            wait.until(lambda element: element.find_elements(By.CSS_SELECTOR, ".main-svg"))
            tables.append(float(ready))
            figures.append(browser.execute_script("return performance.now()"))
    assert min(tables) < 3000
    # Since the page was asked for, Plotly's 5 MB included: 2.2 to 2.8 s on two quiet cores.
    assert min(figures) < 6000
