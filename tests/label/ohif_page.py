"""OHIF, as MONAI Label serves it, in a headless Chromium."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")
TIMEOUT_MS = 60_000
SOFTWARE_RENDERING = [
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
]  # fmt: skip


def open_browser(playwright):
    """Debian's Chromium without a window; the volumes are drawn by the CPU."""
    # the sandbox needs rights that a container's root does not have; only pages of this machine are opened
    arguments = ["--no-sandbox", *SOFTWARE_RENDERING]
    return playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)


class OhifPage:
    """One study in OHIF's mode for MONAI Label: three planes on the left, the panel on the right."""

    def __init__(self, browser, server_url, study_uid):
        self.page = browser.new_page(viewport={"width": 1280, "height": 720})
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.goto(f"{server_url}/ohif/monai-label?StudyInstanceUIDs={study_uid}")
        self.page.get_by_text("Confirm and Hide").click()  # "for investigational use only"
        self._wait_for_drawing()

    def connect(self):
        """Connect the panel to the server; return the panel's text."""
        self.page.locator(".settingsTable button").click()
        self.page.get_by_text("Auto-Segmentation").wait_for()
        self._wait_for_drawing()
        return self.page.locator(".monaiLabelPanel").inner_text()

    def segmentation_models(self):
        """The models that Auto-Segmentation lists."""
        options = self.page.locator(".modelSelector").first.locator("option")
        return [name.strip() for name in options.all_inner_texts()]

    def strategies(self):
        """The strategies that Active Learning lists."""
        return self.page.locator(".optionsTable option").evaluate_all("options => options.map(one => one.value)")

    def set_option(self, task, option, value):
        """Enter a value in the table under Options / Configurations."""
        self.page.get_by_text("Options / Configurations").click()
        self.page.locator("select[name=selectName]").select_option(task)
        self.page.locator(f"#infer{task}{option}").fill(value)
        self.page.get_by_text("Confirm", exact=True).click()

    def run_segmentation(self):
        """Run the model that Auto-Segmentation shows, until its result is drawn."""
        tab = self.page.locator(".tab", has=self.page.locator("label.tab-label", has_text="Auto-Segmentation"))
        if not tab.locator(".modelSelector button").is_visible():
            self.page.locator("label.tab-label", has_text="Auto-Segmentation").click()
        tab.locator(".modelSelector button").click()
        done = self.page.get_by_text("Running Segmentation - Successful")
        done.wait_for()
        done.wait_for(state="hidden")
        self._wait_for_drawing()

    def planes(self):
        """The three views, [height, width, RGB], without the panel."""
        box = self.page.locator("[data-cy='viewport-grid']").bounding_box()
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("RGB"))

    def _wait_for_drawing(self):
        """Return when two views of the planes, half a second apart, are equal and not black."""
        self.page.wait_for_function("document.querySelectorAll('canvas').length >= 3")
        last = None
        for _ in range(TIMEOUT_MS // 500):
            self.page.wait_for_timeout(500)
            now = self.page.screenshot()
            if now == last:
                return
            last = now
        raise TimeoutError("the views never came to rest")
