"""The page in a real browser: every control does what it says, and nothing is written to the console."""

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def volumes(tiny_bundle_3d, small_pages, tmp_path_factory):
    """The report of a 3D bundle."""
    from monai_diffae.apps.pages.report import report

    out = tmp_path_factory.mktemp("volumes") / "report"
    return report(tiny_bundle_3d.directory, out, cohort=tiny_bundle_3d.cohort, device="cpu", embed=True)


def place(element):
    return str(element.evaluate("element => getComputedStyle(element).objectPosition"))


def pixels(page):
    return str(page.locator(".map canvas").first.evaluate("canvas => canvas.toDataURL()"))


def test_the_map_is_coloured_zoomed_and_searched(reported, open_page):
    page = open_page(reported.page.as_uri())
    drawn = pixels(page)
    page.get_by_label("Colour by").select_option("split")
    page.wait_for_function("count => document.querySelectorAll('.map-legend li').length === count", arg=3)
    assert pixels(page) != drawn
    page.get_by_role("button", name="test (").click()
    assert page.get_by_role("button", name="test (").get_attribute("aria-pressed") == "false"
    drawn = pixels(page)
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_function("old => document.querySelector('.map canvas').toDataURL() !== old", arg=drawn)
    page.get_by_role("button", name="Whole map").click()
    page.wait_for_function("old => document.querySelector('.map canvas').toDataURL() === old", arg=drawn)
    page.get_by_label("Colour by").select_option("outlier score")
    page.locator(".map-legend .colour-bar").wait_for()
    case = page.evaluate("JSON.parse(document.querySelector('script[type=\"application/json\"]').textContent).ids[2]")
    page.get_by_label("Find case").fill(case)
    page.get_by_label("Find case").press("Enter")
    assert page.locator(".side h3").inner_text() == case


def test_a_case_shows_itself_its_labels_and_its_neighbors(reported, open_page):
    page = open_page(reported.page.as_uri())
    first = page.locator(".side h3").inner_text()
    assert "wide" in page.locator(".side dl").inner_text()
    page.locator(".side .strip-of-cases button").first.click()
    assert page.locator(".side h3").inner_text() != first
    canvas = page.locator(".map .overlay")
    canvas.focus()
    canvas.press("Escape")
    assert "No case is selected" in page.locator(".side").inner_text()
    canvas.press("ArrowRight")
    middle = page.locator(".side h3").inner_text()
    keys = ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown")
    seen = {middle}
    for key in keys:
        canvas.press(key)
        seen.add(page.locator(".side h3").inner_text())
    assert len(seen) > 1


def test_sliders_move_the_slices_of_their_plane_only(volumes, open_page):
    page = open_page(volumes.page.as_uri())
    axial, coronal = (page.locator(f'.panels[data-group$="_{plane}"]').first for plane in ("axial", "coronal"))
    before = [place(each) for each in axial.locator(".strip").all()]
    still = place(coronal.locator(".strip").first)
    slider = page.locator('input[data-frames$="_axial"]').first
    slider.focus()
    slider.press("Home")
    after = [place(each) for each in axial.locator(".strip").all()]
    assert all(new != old for new, old in zip(after, before, strict=True))
    assert place(coronal.locator(".strip").first) == still
    assert slider.locator("xpath=following-sibling::output").inner_text() == "1"


def test_sections_close_open_and_are_reached_by_keys(reported, open_page):
    page = open_page(reported.page.as_uri())
    page.get_by_role("button", name="Close all sections").click()
    assert page.locator("details.card[open]").count() == 0
    page.get_by_role("link", name="Map of z_sem").click()
    assert page.locator("details.card[open]").count() == 1
    page.get_by_role("button", name="Close all sections").click()
    page.get_by_role("button", name="Open all sections").click()
    assert page.locator("details.card:not([open])").count() == 0
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('details').id") == "edits"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.closest('details').id") == "reconstructions"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_window_and_text_can_be_read(reported, open_page, scheme, width):
    page = open_page(reported.page.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("nav ol").is_visible() == (width == 1400)
    colours = page.evaluate("['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])")
    light, dark = sorted((sum(map(int, each[4:-1].split(","))) for each in colours), reverse=True)
    assert light - dark > 500


def test_every_section_and_the_map_are_printed_in_light_colours(reported, open_page):
    """The points of the map are circles, which a PDF has as curves: without them there are few."""
    page = open_page(reported.page.as_uri(), color_scheme="dark")
    page.get_by_role("button", name="Close all sections").click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(section.bounding_box()["height"] > 60 for section in page.locator("details.card").all())
    assert not page.get_by_role("button", name="Open all sections").is_visible()
    with_map = len(page.pdf(print_background=True))
    page.evaluate("document.querySelector('.map .points').remove()")
    assert with_map > len(page.pdf(print_background=True)) + 2000
