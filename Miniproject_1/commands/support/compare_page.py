"""One HTML page to compare pictures before and after: self-contained, it loads nothing from elsewhere."""

import base64
import contextlib
import html
import io

import torch

from Miniproject_1.commands.support.images import Picture, as_pillow, whole_file

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Before and after</title>
<style>
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }
body { max-width: 72rem; margin: 1rem auto; padding: 0 1rem; }
figure { margin: 0 0 3rem; }
.view { overflow: auto; max-height: 85vh; background: #8884; }
.pair { position: relative; width: 100%; cursor: ew-resize; touch-action: none; }
.pair img { display: block; width: 100%; height: auto; user-select: none; }
.pair .after { position: absolute; inset: 0; height: 100%; }
.line { position: absolute; inset: 0 auto; width: 2px; margin-left: -1px; background: #fff;
  mix-blend-mode: difference; }
.zoomed img { image-rendering: pixelated; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .5rem 0; }
input { flex: 1 1 12rem; }
button[aria-pressed=true] { font-weight: bold; }
</style>
<h1>Before and after</h1>
<p>Move the slider, or drag in a picture. The numbers are zoom levels: screen pixels per pixel of the picture.</p>
"""

FIGURE = """<figure>
<figcaption><b>{name}</b>, {width} x {height}:
estimated noise {before:.1f} before, {after:.1f} after, of 255</figcaption>
<div class="controls"><span>before</span>
<input type="range" min="0" max="1000" value="500" aria-label="how much of the picture shows before">
<span>after</span> <button>fit</button> <button>1</button> <button>2</button> <button>4</button> <button>8</button>
</div>
<div class="view"><div class="pair">
<img class="before" alt="before" src="{first}"><img class="after" alt="after" src="{second}"><div class="line"></div>
</div></div>
</figure>
"""

TAIL = """<script>
for (const figure of document.querySelectorAll("figure")) {
  const find = (what) => figure.querySelector(what);
  const view = find(".view"), pair = find(".pair"), slider = find("input"), before = find(".before");
  const show = () => {
    const split = slider.value / 10 + "%";
    find(".after").style.clipPath = `inset(-1px -1px -1px ${split})`;  // beyond the picture edges blend nothing
    find(".line").style.left = split;
  };
  const drag = (event) => {
    if (!event.buttons) return;
    const box = pair.getBoundingClientRect();
    slider.value = 1000 * (event.clientX - box.left) / box.width;
    show();
  };
  const zoom = (button) => {
    const times = Number(button.textContent);  // NaN: fit
    const x = (view.scrollLeft + view.clientWidth / 2) / pair.offsetWidth;
    const y = (view.scrollTop + view.clientHeight / 2) / pair.offsetHeight;
    pair.style.width = times ? times * before.naturalWidth / devicePixelRatio + "px" : "100%";
    pair.classList.toggle("zoomed", times >= 1);
    view.scrollLeft = x * pair.offsetWidth - view.clientWidth / 2;
    view.scrollTop = y * pair.offsetHeight - view.clientHeight / 2;
    for (const other of figure.querySelectorAll("button")) other.ariaPressed = other === button;
  };
  slider.oninput = show;
  pair.onpointerdown = drag;
  pair.onpointermove = drag;
  pair.ondragstart = () => false;
  for (const button of figure.querySelectorAll("button")) button.onclick = () => zoom(button);
  show();
  zoom(find("button"));
}
</script>
</html>
"""


class NoFigureError(Exception):
    """Raised, and caught, within `Page.to`: there is nothing to compare."""


class Page:
    """Writes figures to an open file one after the other: memory holds one at a time."""

    def __init__(self, file):
        self.file, self.figures = file, 0

    @classmethod
    @contextlib.contextmanager
    def to(cls, path, overwrite=False):
        """A page that appears at `path` when it is complete, unless it has no figure; None for a path of None."""
        if path is None:
            yield None
            return
        with contextlib.suppress(NoFigureError), whole_file(path, overwrite) as file:
            file.write(HEAD.encode())
            page = cls(file)
            yield page
            if not page.figures:
                raise NoFigureError
            file.write(TAIL.encode())

    def add(self, name, first, second, before, after):
        """A figure: the PNGs of a picture, as `png_to_show` makes them, and its noise, before and after."""
        width, height = png_size(first)
        text = FIGURE.format(
            name=html.escape(name.encode(errors="replace").decode()),
            width=width,
            height=height,
            before=before,
            after=after,
            first=data_url(first),
            second=data_url(second),
        )
        self.file.write(text.encode())
        self.figures += 1


def png_to_show(picture):
    """A `Picture` as an 8-bit PNG that browsers show, with its ICC profile unless that is one of CMYK."""
    pixels = picture.pixels
    if pixels.dtype != "uint8":
        alpha = torch.from_numpy(pixels[:, :, picture.colours :].astype("float32"))
        alpha *= 255 if pixels.dtype == "float32" else 255 / 65535
        shown = torch.cat([picture.values()[0].permute(1, 2, 0), alpha], 2)
        pixels = shown.round().clamp(0, 255).to(torch.uint8).numpy()
    image = as_pillow(Picture(pixels, picture.space, picture.alpha, (0, 255)))
    if image.mode == "CMYK":
        image = image.convert("RGB")
    content = io.BytesIO()
    image.save(content, "PNG", icc_profile=None if picture.space == "CMYK" else picture.icc)
    return content.getvalue()


def png_size(content):
    """(width, height) of a PNG, from its header."""
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def data_url(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()
