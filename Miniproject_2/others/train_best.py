"""Trains the weights that ship as `bestmodel.pth`, on photographs, with fresh squares and fresh noise all the time.

    python Miniproject_2/others/train_best.py PHOTOS --pairs 3000000 --validate val_data.pkl --out new.pth

Only noisy pairs are ever drawn; `--draws` is explained in project 1's `train_best.py`. The run stops at any time and
goes on, exactly, from its checkpoint `new.pth.checkpoint` when the same command is given again. The rate climbs, stays
and falls to zero over the last part of the pairs. `new.pth` always holds the averaged weights so far.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from Miniproject_1.model import save_whole
from Miniproject_1.others.data import load_photos, psnr
from Miniproject_1.others.train_best import draw_round, exchangeable, shared_parser
from Miniproject_2.model import Batches, Model, Trainer

AVERAGE_OVER = 1_000  # steps


def parse_arguments(arguments=None):
    parser = shared_parser(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, help="peak rate of Muon instead of that of the recipe")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the pairs in which the rate falls")
    parser.add_argument("--warm-up", type=float, default=0.01, help="share of the pairs in which it climbs")
    return parser.parse_args(arguments)


def rate(progress, warm_up, decay):
    """Share of the peak rate at the share `progress` of the pairs: up, constant, linearly down to zero."""
    return max(0.0, min(progress / warm_up, 1.0, (1 - progress) / decay))


def train_round(model, trainer, photos, number, options):
    """Learns from one round of fresh pairs; returns the mean loss."""
    model.generator.seed(1000 * options.seed + number)
    pairs = draw_round(photos, number, options)
    batches, losses = Batches(*pairs, model.recipe.crop, model.generator, exchangeable=exchangeable(options)), []
    peak = options.peak or model.recipe.learning_rate
    for _ in range(options.round // options.batch):
        share = rate(trainer.steps * options.batch / options.pairs, options.warm_up, options.decay)
        noisy_a, noisy_b = batches.draw(options.batch)
        losses.append(trainer.step(model.network_input(noisy_a), model.network_target(noisy_b), peak * share))
    return sum(losses).item() / len(losses)


def main(arguments=None):
    options = parse_arguments(arguments)
    model = Model(options.seed)
    trainer = Trainer(model.network, model.recipe, AVERAGE_OVER, model.architecture.equivariant)
    checkpoint, first = options.out.with_name(options.out.name + ".checkpoint"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        trainer.load_state(state["training"])
        first = state["round"]
    validation = torch.load(options.validate, weights_only=True) if options.validate else None
    photos = load_photos(options.photos)
    for number in range(first, -(-options.pairs // options.round)):
        began = time.monotonic()
        loss = train_round(model, trainer, photos, number, options)
        model.pairs_seen = (number + 1) * options.round
        save_whole({"training": trainer.state(), "round": number + 1}, checkpoint)
        trainer.swap()
        model.save(options.out)
        decibels = psnr(model.predict(validation[0], False), validation[1]) if validation else float("nan")
        trainer.swap()
        seconds = time.monotonic() - began
        print(f"{model.pairs_seen} pairs, loss {loss:.5f}, {decibels:.3f} dB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
