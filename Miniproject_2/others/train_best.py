"""Train bestmodel.pth on fresh noise draws from a folder of photos.

    python Miniproject_2/others/train_best.py --photos PHOTOS --val val_data.pkl --pairs 3000000 --minutes 300

The rate is constant after a warm-up and falls to zero over the last part of the budget, which is the number
of pairs or the time, whichever is used up first. Every chunk of pairs writes a checkpoint beside the output;
the same command started again goes on from it. The output file holds the averaged weights of the last chunk
at any time.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from Miniproject_1.others.data import draw_pairs, load_photos
from Miniproject_2.model import Batches, Model, Trainer

CHUNK = 20_000  # pairs drawn at once, and between two checkpoints
AVERAGE_OVER = 1_000  # steps


def rate(progress, warm_up, decay):
    """Share of the peak rate at the share `progress` of the budget: up, constant, linearly down to zero."""
    return max(0.0, min(progress / warm_up, 1.0, (1 - progress) / decay))


def mean_psnr(model, noisy, clean, ensemble):
    """The mean over images of the PSNR of each, in dB, values in [0, 1]."""
    error = ((model.predict(noisy, ensemble) - clean) / 255).square().mean((1, 2, 3))
    return (-10 * error.log10()).mean().item()


def save_state(path, model, trainer, seconds):
    """Write what the training needs to go on, in one go. Momenta last a few steps and start afresh."""
    state = {
        "weights": [parameter for parameter, _ in model.network.param()],
        "averages": trainer.averages,
        "steps": trainer.steps,
        "pairs": model.pairs_seen,
        "seconds": seconds,
    }
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path, model, trainer):
    """Go on from `save_state`; returns the seconds used so far."""
    state = torch.load(path, weights_only=True)
    for (parameter, _), weight in zip(model.network.param(), state["weights"], strict=True):
        parameter.copy_(weight)
    trainer.averages, trainer.steps, model.pairs_seen = state["averages"], state["steps"], state["pairs"]
    return state["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos to draw the pairs from")
    parser.add_argument("--val", type=Path, help="val_data.pkl: its PSNR is printed after each chunk")
    parser.add_argument("--pairs", type=int, default=2_000_000, help="budget of pairs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="budget of time, over all restarts")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "bestmodel.pth")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, help="peak rate of Muon instead of that of the recipe")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the budget in which the rate falls")
    parser.add_argument("--warm-up", type=float, default=0.01, help="share of the budget in which it climbs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    model = Model(options.seed)
    trainer = Trainer(model.network, model.recipe, AVERAGE_OVER)
    checkpoint = options.out.with_name(options.out.name + ".state")
    before = load_state(checkpoint, model, trainer) if checkpoint.exists() else 0.0
    start = time.monotonic() - before
    noisy, clean = torch.load(options.val, weights_only=True) if options.val else (None, None)
    photos, peak, progress = load_photos(options.photos), options.peak or model.recipe.learning_rate, 0.0
    while progress < 1:
        seed = options.seed * 1_000_003 + model.pairs_seen
        noisy_a, noisy_b = draw_pairs(photos, CHUNK, seed)[:2]
        model.generator.seed(seed)
        batches, losses = Batches(noisy_a, noisy_b, model.recipe.crop, model.generator), []
        for _ in range(CHUNK // options.batch):
            used = (time.monotonic() - start) / 60
            progress = max(model.pairs_seen / options.pairs, used / options.minutes)
            share = rate(progress, options.warm_up, options.decay)
            source, target = batches.draw(options.batch)
            loss = trainer.step(model.network_input(source), model.network_target(target), peak * share)
            losses.append(loss)
            model.pairs_seen += options.batch
            if progress >= 1:
                break
        save_state(checkpoint, model, trainer, time.monotonic() - start)
        trainer.swap()
        model.save(options.out)
        score = f"  {mean_psnr(model, noisy, clean, False):.3f} dB" if options.val else ""
        trainer.swap()
        mean = sum(losses).item() / len(losses)
        print(
            f"{model.pairs_seen:9} pairs  {used:6.1f} min  rate {peak * share:.1e}  loss {mean:.5f}{score}",
            flush=True,
        )
    if options.val:
        trainer.swap()
        print(f"with the ensemble {mean_psnr(model, noisy, clean, True):.3f} dB")


if __name__ == "__main__":
    main()
