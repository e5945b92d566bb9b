"""Make the bundled model from a trained one: mix in a share of the weights that its training started from.

    make_model.py START TRAINED OUTPUT

The mean of a fine-tuned network's weights and its initial weights works better than either on other kinds of data
(Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). Here, SHARE of the start makes flat
tissue smoother, at the price of a little texture. The uncertainty is fitted again, and the card gets figures
from anatomies that neither network was trained on.
"""

import sys
from dataclasses import replace

import numpy as np
import torch

from Speckle2SelfLib import checkpoint
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.dataset import simulate_cines
from Speckle2SelfLib.grey import BRIGHTEST
from Speckle2SelfLib.network import build
from Speckle2SelfLib.validation import fit_uncertainty

SHARE = 0.12  # weight of the start
ANATOMIES, SEED = 240, (0, 2)  # for fitting the uncertainty and for the figures


def mix(start: Model, trained: Model, share: float) -> Model:
    """Return the weighted mean of two networks; parts that the start lacks count as new ones, which change nothing.

    The head of the uncertainty is the trained one's.
    """
    torch.manual_seed(0)
    begun = build(trained.config)
    begun.load_state_dict(start.network.state_dict(), strict=False)
    old, new = begun.state_dict(), trained.network.state_dict()
    mixed = [name for name in new if not name.startswith("uncertainty")]
    begun.load_state_dict(new | {name: new[name].lerp(old[name], share) for name in mixed})
    return Model(trained.config, begun.eval(), trained.card)


@torch.inference_mode()
def rms(model: Model, cine) -> float:
    """Return the mean over the frames of the error's rms."""
    errors = [
        (model.network(frame).clamp(0, BRIGHTEST) - truth).square().mean().sqrt().item()
        for frame, truth in zip(cine.frames.split(1), cine.truth.split(1), strict=True)
    ]
    return float(np.mean(errors))


def main(start: str, trained: str, output: str) -> None:
    start, trained = (Model(*checkpoint.load(path)) for path in (start, trained))
    model, cine = mix(start, trained, SHARE), simulate_cines(ANATOMIES, 128, np.random.default_rng(SEED))
    config = replace(model.config, uncertainty_scale=fit_uncertainty(model.network, [cine]))
    figures, before = {"rms": rms(model, cine)}, {"rms": rms(start, cine)}
    print(f"rms on {ANATOMIES} simulated anatomies: start {before}, trained {rms(trained, cine):.5f}, mixed {figures}")
    card = model.card | {"share_of_start": SHARE, "figures": figures, "figures_at_start": before}
    card["description"] = "Trained on simulated frames of natural and of textbook anatomies."
    checkpoint.save(output, config, model.network, card)


if __name__ == "__main__":
    main(*sys.argv[1:])
