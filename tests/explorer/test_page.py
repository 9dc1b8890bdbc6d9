"""The page in a real browser: every control is used, and nothing is written to the console (see ``open_page``)."""

import re
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.browser
CONTROLS = "button[id], input[id], select[id], canvas[tabindex]"


class Page:
    """A page of a server, and the controls that were used."""

    def __init__(self, page):
        self.page, self.used = page, set()
        page.set_default_timeout(180_000)  # a busy machine inverts a volume in a minute
        page.wait_for_selector("body[data-ready]")

    def __call__(self, name):
        self.used.add(name)
        return self.page.locator(f"#{name}")

    @property
    def status(self):
        return self.page.locator("#status")

    def settle(self):
        """Wait for the full image of the last move."""
        self.page.wait_for_selector("#status[data-quality=full]")

    def move(self, act):
        """Do something that changes the image, and wait for it."""
        self.page.evaluate("delete document.getElementById('status').dataset.quality")
        act()
        self.settle()

    def pixels(self, view="image"):
        """A picture as text, after the next frame."""
        script = f"""() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {{
            const canvas = document.querySelector('canvas[data-view={view}]');
            done(canvas.toDataURL());
        }})))"""
        return self.page.evaluate(script)

    def controls(self):
        """The ids of all controls that can be seen now."""
        return set(self.page.eval_on_selector_all(CONTROLS, "all => all.filter(e => e.offsetParent).map(e => e.id)"))


@pytest.fixture
def visit(serve, open_page):
    """Opens the page of an exploration: a context manager that closes it before its server ends."""

    @contextmanager
    def visit_page(exploration, **settings):
        with serve(exploration) as url:
            page = Page(open_page(url, **settings))
            yield page
            page.page.close()

    return visit_page


@pytest.fixture
def page(explored, visit):
    with visit(explored) as page:
        yield page


def open_first(page):
    page.move(lambda: page.page.locator("#unusual button").first.click())


def test_every_control_works(page, explored):
    open_first(page)
    plain = page.pixels()
    controls = page.controls()
    # sliders
    names = sorted(name for name in controls if name.startswith("move-"))
    extreme = [name for name in names if name.startswith("move-extreme")]
    assert len(extreme) == min(4, len(explored.atlas.components.directions) - 4) > 0
    assert len(names) == 5 + len(extreme)
    for name in names:
        page.move(lambda name=name: page(name).fill("3"))
        assert page.pixels() != plain
        page.move(lambda name=name: page(name).dblclick())
    assert page.pixels() == plain
    used = page("typical")
    if used.is_enabled():
        page.move(used.click)
        assert page.pixels() != plain
    page.move(lambda: page("reset").click())
    assert page.pixels() == plain
    # another case, another x_T
    assert page("weight").is_disabled()
    page.move(lambda: page.page.locator("#neighbors button").first.click(modifiers=["Shift"]))
    assert page("weight").input_value() == "0.5"
    page.move(lambda: page("weight").fill("1"))
    page.move(lambda: page("weight").fill("0"))
    assert page.pixels() == plain
    page.move(lambda: page("noise").select_option("second"))
    assert page.pixels() != plain
    page.move(lambda: page("redraw").click())
    first = page.pixels()
    page.move(lambda: page("redraw").click())
    assert page.pixels() != first
    page.move(lambda: page.page.locator("#second button", has_text="Remove").click())
    page.move(lambda: page("reset").click())
    # looking
    page("window").fill("0.3")
    assert page.pixels() != plain
    page("level").fill("0.2")
    page("reset-window").click()
    assert page.pixels() == plain
    page.move(lambda: page("own").uncheck())
    page.move(lambda: page("own").check())
    page("flip").click()
    assert page.page.locator("figcaption").nth(1).text_content() == "Scan"
    assert page.pixels() == page.pixels("scan")
    page("flip").click()
    # taking away
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page("copy-command").click()
    page.page.locator("#status", has_text="Copied.").wait_for()
    assert page.page.evaluate("navigator.clipboard.readText()").startswith("monai-diffae decode ")
    page("copy-python").click()
    page.page.locator("#call", has_text="from monai_diffae import").wait_for()
    case = page.page.locator("#case-id").text_content()
    for name, ending in {"save-model": "_synthetic.nii.gz", "save-own": "_own_detail_synthetic.nii.gz"}.items():
        with page.page.expect_download() as download:
            page(name).click()
        assert download.value.suggested_filename == case.removesuffix(".nii.gz") + ending
    # the map
    page("colour").select_option("outlier score")
    assert page.page.locator("#legend .ramp").count() == 1
    page("colour").select_option("split")
    assert "train" in page.page.locator("#legend").text_content()
    page("search").fill("yes")
    assert re.fullmatch(r"\d+ found", page.page.locator("#match-count").text_content())
    page.page.locator("#matches button").last.click()
    page("search").fill("")
    page("overlay").focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowUp")
    for key in ("+", "-", "0"):
        page.page.keyboard.press(key)
    page("fit").click()
    page.page.locator("#unusual button").nth(1).click()  # the second in the order: there is a previous and a next one
    page.move(lambda: page("previous").click())
    page.move(lambda: page("next").click())
    page("help-button").click()
    assert page.page.locator("#help").is_visible()
    page.page.keyboard.press("Escape")
    assert controls - page.used == set()


def test_another_case_does_not_show_the_scores_of_the_last_one(page):
    open_first(page)
    page.page.route("**/api/image?*", lambda route: None)  # it never comes
    page.page.locator("#unusual button").nth(1).click()
    page.page.wait_for_function("document.querySelectorAll('#scores *').length === 0")
    assert page.page.locator(".difference-scale output").text_content() == ""


def test_the_token_leaves_the_address_and_a_case_comes_into_it(page):
    assert "token" not in page.page.url
    open_first(page)
    name = page.page.locator("#case-id").text_content()
    assert page.page.url.endswith(f"#{name}")
    page.page.reload()  # the cookie suffices
    page.page.wait_for_selector("#case-panel:not([hidden])")
    assert page.page.locator("#case-id").text_content() == name
    page.settle()


def test_a_click_on_the_map_opens_the_case_under_it(page, explored):
    box = page.page.locator("#overlay").bounding_box()
    x, y = explored.atlas.coordinates.T
    margin = 34
    scale = min((box["width"] - 2 * margin) / (x.max() - x.min()), (box["height"] - 2 * margin) / (y.max() - y.min()))
    place = {
        "x": box["width"] / 2 + scale * (x[3] - (x.min() + x.max()) / 2),
        "y": box["height"] / 2 - scale * (y[3] - (y.min() + y.max()) / 2),
    }
    page.page.locator("#overlay").hover(position=place)
    assert page.page.locator("#tip b").text_content() == explored.atlas.cases[3].id
    page.move(lambda: page.page.locator("#overlay").click(position=place))
    assert page.page.locator("#case-id").text_content() == explored.atlas.cases[3].id


def test_a_drag_shows_the_image_of_its_last_place(page):
    """Many moves in a row: previews follow, and the full image is that of the last one."""
    open_first(page)
    slider = page.page.locator("#move-components-1")
    page.move(lambda: slider.fill("2"))
    expected = page.pixels()
    page.move(lambda: slider.fill("-2"))
    page.move(lambda: [slider.fill(str(value / 10)) for value in range(-20, 21)])
    page.page.wait_for_timeout(500)
    page.settle()
    assert page.pixels() == expected


@pytest.mark.slow
def test_volumes_have_three_planes_with_sliders(tiny_bundle_3d, open_explored, visit, tmp_path):
    opened = open_explored(tiny_bundle_3d.directory, tiny_bundle_3d.cohort, tmp_path)
    with visit(opened) as page:
        open_first(page)
        assert page.page.locator(".views canvas").count() == 9
        for name in ("axial", "coronal", "sagittal"):
            before = page.pixels("scan") if name == "axial" else None
            page.page.get_by_label(f"{name} plane").fill("3")
            assert before is None or page.pixels("scan") != before
        page.move(lambda: page.page.locator("#move-components-0").fill("3"))
    opened.close()


def test_samples_can_be_drawn(labelled, latent_bundle, open_explored, visit, tmp_path):
    opened = open_explored(latent_bundle, labelled.cohort, tmp_path, embeddings=labelled.embeddings)
    with visit(opened) as page:
        page("sample-seed").fill("5")
        page("draw").click()
        page.page.wait_for_selector("#samples canvas >> nth=7")
        page("copy-samples").click()
        page.page.locator("#sample-call", has_text="--seed 5").wait_for()
    opened.close()
