"""The weights of a command, and predictions with them."""

from pathlib import Path

import torch

from Miniproject_1.model import Model

FOLDER = Path(__file__).resolve().parents[2]
SHIPPED = {"photo": FOLDER / "photomodel.pth", "course": FOLDER / "bestmodel.pth"}
PURPOSES = (
    "photo (photomodel.pth): photographs at their own resolution; course (bestmodel.pth): small images with "
    "point-sampling noise, as the course's; or a weights FILE of your own"
)


def add_weights(parser, default="photo"):
    parser.add_argument(
        "--weights", metavar="photo|course|FILE", default=default, help=f"{PURPOSES} (default: {default})"
    )
    add_device(parser)


def add_device(parser):
    parser.add_argument("--device", help="where to compute, such as cpu or cuda (default: CUDA if one works, else cpu)")


def weights_file(name):
    """The path of the weights that a user calls `name`. FileNotFoundError says what there is instead."""
    path = SHIPPED.get(name, Path(name))
    if path.is_file():
        return path
    if name in SHIPPED:
        there = [other for other, file in SHIPPED.items() if file.is_file()]
        hint = f"choose {' or '.join([*there, 'FILE'])}"
        raise FileNotFoundError(f"the weights {name!r} ({path.name}) are not part of this copy; {hint}. {PURPOSES}")
    raise FileNotFoundError(f"no weights file {name!r}. Choose {PURPOSES}")


def load_model(name, device=None, precision=None):
    """The model of the weights that a user calls `name`: photo, course or a file."""
    path = weights_file(name)
    model = Model(device=device, precision=precision)
    model.load(path)
    return model


def predict_colours(model, noisy, space, ensemble=None):
    """Predicts a picture of any colour space: (1, C, H, W) in [0, 255] -> the same.

    A model of three channels takes grey as three equal channels and returns their mean; it takes the inks of CMYK as
    negatives of red, green, blue and grey. A model of one channel takes each by itself.
    """
    channels, taken = noisy.shape[1], model.in_channels
    if channels == taken:
        return model.predict(noisy, ensemble)
    if taken == 1:
        return model.predict(noisy.transpose(0, 1), ensemble).transpose(0, 1)
    if taken == 3 and channels == 1:
        return model.predict(noisy.expand(-1, 3, -1, -1), ensemble).mean(1, keepdim=True)
    if taken == 3 and space == "CMYK":
        light = 255 - noisy
        colours = predict_colours(model, light[:, :3], "RGB", ensemble)
        return 255 - torch.cat([colours, predict_colours(model, light[:, 3:], "grey", ensemble)], 1)
    raise ValueError(
        f"these weights are for {taken} channels, the picture has {channels}; choose others with --weights"
    )


def predicted(model, noisy, space, ensemble=None):
    """`predict_colours`, moved to the CPU. ValueError if not finite, as with weights of NaN."""
    clean = predict_colours(model, noisy, space, ensemble).cpu()
    if not clean.isfinite().all():
        raise ValueError("the prediction holds values that are not finite; are the weights damaged?")
    return clean
