"""Writes a network as a file that runs without this project: ONNX, or PyTorch's exported program.

    noise2noise export photo -o photo.onnx
    noise2noise export mine.pth -o mine.pt2

Input `images` and output `denoised` are float32 (N, C, H, W) in [0, 255], for any N and any H and W of at least 4: a
single pass over the whole picture, in float32. The exported network pads by mirroring: to at least 16 pixels a side,
and to a size that it takes. There are no tiles: the memory grows with the picture.

The file is run on pictures of several sizes and compared with this project's prediction before it gets its name.
ONNX needs the extra: pip install 'noise2noise-miniproject[export]'. It runs in onnxruntime; a .pt2 in
torch.export.load(FILE).module().
"""

import copy
import io
import json
import logging
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from Miniproject_1.commands.support.arguments import check_outputs
from Miniproject_1.commands.support.images import whole_file
from Miniproject_1.commands.support.weights import PURPOSES, load_model, weights_file
from Miniproject_1.model import NARROW, SMALLEST, Noise2NoiseNet, ResidualBlock, Symmetric
from Miniproject_1.others.command_line import some_path
from Miniproject_1.others.files import check_new, check_writable

CHECKED = ((1, 4, 5), (2, 37, 50), (3, 96, 129))  # N, H, W of the pictures that both predict
TOLERANCE = 0.01  # grey values by which they may differ: rounding makes less than a thousandth
EXAMPLE = (2, 40, 56)  # N, H, W that the network is traced with


def add_arguments(parser):
    parser.add_argument("weights", metavar="photo|course|FILE", help=PURPOSES)
    parser.add_argument(
        "-o", "--out", type=some_path, required=True, metavar="FILE", help="name.onnx or name.pt2 to write"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


# ---------------------------------------------------------------------------------------------- the network


class Exported(nn.Module):
    """What `Model.predict(images, ensemble=False)` does without tiles, for sizes that are known only at run time."""

    def __init__(self, network):
        super().__init__()
        self.network, self.multiple, self.border = plain(network), network.multiple, network.border

    def forward(self, images):  # (N, C, H, W) in [0, 255]
        (rows, own_rows), (columns, own_columns) = (
            mirrored(size, self.multiple, self.border) for size in images.shape[2:]
        )
        result = self.network((images / 255).clamp(-1, 2).index_select(2, rows).index_select(3, columns))
        return (result.index_select(2, own_rows).index_select(3, own_columns) * 255).clamp(0, 255)


def mirrored(size, multiple, border):
    """`model.mirrored` for a symbolic size: source indices of the padded axis, and places of the original pixels."""
    bordered = size + 2 * border
    padded = (torch.sym_max(bordered, SMALLEST) + multiple - 1) // multiple * multiple
    small = torch.sym_min(torch.sym_max(SMALLEST - bordered, 0), 1)  # 1 for a size below SMALLEST, else 0
    before = border + small * ((padded - bordered) // 2)
    index = sources(torch.arange(padded) - (before - border), bordered)
    return sources(index - border, size), torch.arange(size) + before


def sources(places, size):
    """`model.sources` of places, for a symbolic size."""
    period = 2 * torch.ones(size, dtype=torch.int64).sum()  # as a tensor: ONNX has no remainder by a symbol
    index = places % period
    return torch.minimum(index, period - 1 - index)


class GatedBlock(nn.Module):
    """A `ResidualBlock` with gates, for sizes that are known only when it runs."""

    def __init__(self, block):
        super().__init__()
        self.first, self.gate, self.second, self.cell = block.first, block.gate, block.second, block.cell
        self.register_buffer("ceiling", block.ceiling)

    def forward(self, x):
        hidden = self.first(x).relu()
        logits = self.gate(cell_means(cell_means(hidden, 2, self.cell), 3, self.cell))
        gates = 2 * logits.minimum(self.ceiling).sigmoid()
        for axis in (2, 3):
            gates = blended(gates, axis, hidden.shape[axis], self.cell)
        return x + self.second(hidden * gates)


def cell_means(x, axis, cell):
    """`model.cell_means` along one axis, with one or two zeros after them.

    `blended` does not look these up: without them an axis might have one cell, which would be traced as a constant.
    """
    size = x.shape[axis]
    sums = cell * F.avg_pool2d(F.pad(x.movedim(axis, -1), (0, 2 * cell)), (1, cell))  # as reshaping wants known sizes
    cells, last = sums.shape[-1], last_cell(size, cell)
    joined = torch.arange(cells).clamp(max=last)[:, None] == torch.arange(cells)
    lengths = torch.where(torch.arange(cells) == last, size - last * cell, cell)
    return (sums @ joined.float() / lengths).movedim(-1, axis)


def blended(cells, axis, size, cell):
    """`model.blended` along one axis: each pixel's place between the centres of two cells."""
    place = ((torch.arange(size) + 0.5) / cell - 0.5).clamp(min=0)
    low, high = (index.long().clamp(max=last_cell(size, cell)) for index in (place.floor(), place.floor() + 1))
    share = (place - place.floor()).view(-1, *[1] * (3 - axis))
    return torch.lerp(cells.index_select(axis, low), cells.index_select(axis, high), share)


def last_cell(size, cell):
    """Its index; a remainder of less than half a cell belongs to it."""
    return torch.sym_max((size + cell // 2) // cell, 1) - 1


@torch.no_grad()
def plain(network):
    """A copy on the CPU whose weights are stored symmetrised and whose blocks take symbolic sizes."""
    network = copy.deepcopy(network).cpu().eval()
    for layer in network.modules():
        if isinstance(layer, Symmetric) and layer.equivariant:
            for parameter, used in zip((layer.weight, layer.bias), layer.weight_and_bias(), strict=True):
                parameter.copy_(used)
            layer.equivariant = False
            del layer.entries, layer.orbit
    for name, block in list(network.named_modules()):
        if isinstance(block, ResidualBlock) and block.gate is not None:
            network.set_submodule(name, GatedBlock(block))
    return network.requires_grad_(False)


# ---------------------------------------------------------------------------------------------- the files


def exported(model):
    """`Exported` as a program of PyTorch, dynamic in N, H and W."""
    if isinstance(model.network, Noise2NoiseNet):
        raise ValueError('the network "noise2noise" cannot be exported: torch.export refuses its multiples of 32')
    sizes = {0: torch.export.Dim("N"), 2: torch.export.Dim("H", min=NARROW), 3: torch.export.Dim("W", min=NARROW)}
    count, height, width = EXAMPLE
    images = torch.zeros(count, model.in_channels, height, width)
    return torch.export.export(Exported(model.network), (images,), dynamic_shapes={"images": sizes})


def as_onnx(program):
    """The bytes of a program as ONNX, and a function that runs them on (N, C, H, W)."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: pip install 'noise2noise-miniproject[export]'") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says what it skips
    file, names = io.BytesIO(), {"input_names": ["images"], "output_names": ["denoised"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, dynamo=True, verbose=False, **names).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def run(images):
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return file.getvalue(), run


def as_pt2(program):
    """The bytes of a program as PyTorch saves it, and a function that runs them on (N, C, H, W)."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


KINDS = {".onnx": as_onnx, ".pt2": as_pt2}


def largest_difference(run_exported, model):
    """Between an exported network and `predict` on random pictures, in grey values. ValueError if too large."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for count, height, width in CHECKED:
        images = 900 * torch.rand(count, model.in_channels, height, width, generator=generator) - 300  # some clipped
        difference = (run_exported(images) - model.predict(images, ensemble=False)).abs().max().item()
        largest = max(largest, difference)
    if not largest <= TOLERANCE:
        raise ValueError(f"nothing is written: the exported network differs by {largest:.3g} grey values")
    return largest


def run(options):
    kind = options.out.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"--out must end in {' or '.join(KINDS)}; got {options.out}")
    check_outputs([("the network", options.out)], [weights_file(options.weights)])
    check_new(options.out, options.force)
    check_writable(options.out)
    model = load_model(options.weights, "cpu", "float32")
    content, run_exported = KINDS[kind](exported(model))
    difference = largest_difference(run_exported, model)
    with whole_file(options.out, options.force) as file:
        file.write(content)
    facts = {"file": str(options.out), "bytes": len(content), "largest_difference": difference}
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"{options.out}: {len(content):,} bytes; at most {difference:.2g} grey values from our prediction")
    return 0
