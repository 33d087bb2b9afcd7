"""The page to compare before and after, in a real browser: skipped where there is no Chromium."""

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess

import pytest

Image = pytest.importorskip("PIL.Image")
numpy = pytest.importorskip("numpy")

from Miniproject_1.commands.support import compare_page, images  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH, HEIGHT = 30, 20


class Browser:
    """A headless Chromium with one page, driven by its debugging protocol over a pair of pipes."""

    def __init__(self, folder):
        ours_out, theirs_in = os.pipe()[::-1]
        ours_in, theirs_out = os.pipe()
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--hide-scrollbars",
        ]
        command += [
            f"--user-data-dir={folder}",
            "--window-size=800,700",
            "--force-device-scale-factor=1",
            "about:blank",
        ]
        pipes = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", *command], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.output, self.input = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self.number, self.session, self.rest, self.events = 0, None, b"", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.output.write(json.dumps(message).encode() + b"\0")
        self.output.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self):
        """The next answer; events are kept on the way."""
        while b"\0" not in self.rest:
            part = os.read(self.input.fileno(), 2**20)
            assert part, "the browser has gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.read()
        self.value("Promise.all([...document.images].map((image) => image.decode())).then(() => 1)")

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def mouse(self, kind, x, y, buttons):
        button = "left" if kind != "mouseMoved" else "none"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def click(self, selector):
        x, y, width, height = self.box(selector)
        self.mouse("mousePressed", x + width / 2, y + height / 2, 1)
        self.mouse("mouseReleased", x + width / 2, y + height / 2, 0)

    def box(self, selector):
        get = f"(b => [b.x, b.y, b.width, b.height])(document.querySelector({selector!r}).getBoundingClientRect())"
        return self.value(get)

    def pixels(self):
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")).astype(int)

    def close(self):
        with contextlib.suppress(OSError):
            self.output.close()
        self.process.kill()
        self.process.wait()
        self.input.close()


@pytest.fixture
def browser(tmp_path):
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def pictures():
    """Two pictures of which every pixel has a colour of its own."""
    y, x = numpy.mgrid[:HEIGHT, :WIDTH]
    first = numpy.stack([8 * x, 12 * y, 0 * x], 2).astype("uint8")
    return first, (first + numpy.array([0, 0, 200], "uint8"))


def write_page(path, name="a.png", icc=None):
    first, second = (images.Picture(pixels, "RGB", False, (0, 255), icc=icc) for pixels in pictures())
    with compare_page.Page.to(path) as page:
        page.add(name, compare_page.png_to_show(first), compare_page.png_to_show(second), 12.34, 1.26)


def seen(browser, times):
    """(HEIGHT, WIDTH, 3): the colour in the middle of each pixel of the picture, enlarged by `times`."""
    x, y, width, height = browser.box(".pair")
    assert (width, height) == (WIDTH * times, HEIGHT * times)
    rows = (y + times * (numpy.arange(HEIGHT) + 0.5)).astype(int)
    columns = (x + times * (numpy.arange(WIDTH) + 0.5)).astype(int)
    return browser.pixels()[rows][:, columns]


def expected(split):
    """What is to be seen with the slider at `split` of the width."""
    first, second = pictures()
    return numpy.where((numpy.arange(WIDTH) < split * WIDTH)[None, :, None], first, second)


def away_from_the_line(split):
    return numpy.abs(numpy.arange(WIDTH) + 0.5 - split * WIDTH) > 1


def check(browser, split, times=8):
    columns = away_from_the_line(split)
    assert (seen(browser, times)[:, columns] == expected(split)[:, columns]).all()


def test_the_slider_moves_and_the_pixels_shown_are_right(browser, tmp_path):
    write_page(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.box(".pair")[2] == browser.box(".view")[2]  # it fits
    browser.click("button:nth-of-type(5)")
    check(browser, 0.5)
    x, y, width, height = browser.box(".pair")
    browser.mouse("mousePressed", x + 0.5 * width, y + 0.5 * height, 1)
    for split in (0.75, 0.25, 0.9):
        browser.mouse("mouseMoved", x + split * width, y + 0.3 * height, 1)
        check(browser, split)
    browser.mouse("mouseReleased", x + 0.9 * width, y + 0.3 * height, 0)
    browser.mouse("mouseMoved", x + 0.2 * width, y + 0.3 * height, 0)
    check(browser, 0.9)
    for value, split in ((0, 0), (1000, 1)):
        browser.value(f"s = document.querySelector('input'); s.value = {value}; s.dispatchEvent(new Event('input'))")
        check(browser, split)
    slider = browser.box("input")
    browser.mouse("mousePressed", slider[0] + slider[2] / 2, slider[1] + slider[3] / 2, 1)
    browser.mouse("mouseReleased", slider[0] + slider[2] / 2, slider[1] + slider[3] / 2, 0)
    assert abs(int(browser.value("document.querySelector('input').value")) - 500) < 30


@pytest.mark.parametrize(("button", "times"), [(2, 1), (3, 2), (4, 4)])
def test_zoom_shows_each_pixel_as_a_square(browser, tmp_path, button, times):
    write_page(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    browser.click(f"button:nth-of-type({button})")
    browser.value("s = document.querySelector('input'); s.value = 0; s.dispatchEvent(new Event('input'))")
    assert (seen(browser, times)[:, 2:] == expected(0)[:, 2:]).all()


def test_the_page_says_the_noise_and_asks_nothing_of_the_net(browser, tmp_path):
    name = "<img src=http://example.org/x.png onerror=alert(1)> & co \udcff.png"
    write_page(tmp_path / "page.html", name)
    browser.open(tmp_path / "page.html")
    caption = browser.value("document.querySelector('figcaption').textContent")
    assert caption.startswith("<img src=http://example.org") and "12.3 before, 1.3 after" in caption
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked[0] == (tmp_path / "page.html").as_uri()
    assert all(url.startswith("data:") for url in asked[1:])
    assert not [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    blocked = "new Promise(done => { i = new Image(); i.onerror = () => done(1); i.src = 'https://example.org/x.png' })"
    browser.value(blocked)
    assert any("Content Security Policy" in json.dumps(event) for event in browser.events)


def test_the_page_holds_every_kind_of_picture():
    """Needs no browser: what is shown is the picture, in 8 bits and colours that a browser knows."""
    ramp = numpy.arange(0, 65536, 257, dtype="uint16").reshape(16, 16, 1)
    for channels, space, alpha in ((1, "grey", False), (2, "grey", True), (3, "RGB", False), (4, "RGB", True)):
        deep = images.Picture(numpy.repeat(ramp, channels, 2), space, alpha, (0, 65535))
        shown = numpy.asarray(Image.open(io.BytesIO(compare_page.png_to_show(deep))))
        assert (shown.reshape(16, 16, -1) == numpy.arange(256).reshape(16, 16, 1)).all()
    inks = images.Picture(numpy.full((2, 2, 4), 255, "uint8"), "CMYK", False, (0, 255))
    assert (numpy.asarray(Image.open(io.BytesIO(compare_page.png_to_show(inks)))) == 0).all()
    values = images.Picture(numpy.array([[[-1.0], [0.0], [1.0]]], "float32"), "grey", False, (-1, 1))
    assert numpy.asarray(Image.open(io.BytesIO(compare_page.png_to_show(values)))).tolist() == [[0, 128, 255]]


def test_an_interrupted_page_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), compare_page.Page.to(tmp_path / "page.html"):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_a_page_without_a_picture_is_not_there(tmp_path):
    with compare_page.Page.to(tmp_path / "page.html"):
        pass
    assert not os.listdir(tmp_path)
