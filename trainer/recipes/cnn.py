"""bignas, attentivenas: the paper's two CNN supernets on ImageNet.

From the paper (Table 3, section 4.1, appendix D): 500 epochs, batch 1024, SGD at 0.5, weight decay
1e-5, crop, flip and AutoAugment; 50,000 training images held out for the distribution B, which
stays uniform for 50 epochs and then moves every 100 steps (Adam, 1e-3); every step masked.

*Groups*: the paper says 0.1 GFLOPs, and tells the groups of its tiny ViT only, where that is 5 to 8
per cent of a budget. The CNNs that it reports have 0.24 to 0.45 GFLOPs, of which 0.1 would be a
quarter and more. So they are 0.05 here. ``--set sampler_options.groups=16`` (bignas) or 17
(attentivenas) gives the 0.1.

*Resolution*: images are read at the largest resolution of the space and made smaller for an arch
that wants less, because that is what the server does with a photo. AttentiveNAS's code cuts 224
pixels and enlarges them.

What the paper leaves open is from AttentiveNAS: Nesterov momentum 0.9, 5 epochs of warm-up, a
cosine to zero, label smoothing 0.1, no decay of norms and biases; and from the public
reimplementation of BigNAS: gradients clipped to norm 5. Its dropout and drop connect are left out:
it has them on the largest subnet of a sandwich alone, and here most steps train smaller ones.
"""

from __future__ import annotations

from trainer.recipes.recipe import Recipe
from trainer.recipes.settings import Augment, GeneratorOptions, Optimizer, SamplerOptions


def bignas() -> Recipe:
    """0.207 to 1.843 GFLOPs, 3.7 to 10.9 million parameters; 33 groups of 0.0496 GFLOPs.

    Command: ``torchrun --nproc-per-node 8 -m trainer.run --recipe bignas --data PATH``
    Hardware, time, result: not run here. ``--dry-run`` tells what it needs.
    The paper: 8 A100, 32 GPU days; 77.2 % at 0.24 GFLOPs, 79.6 % at 0.42.
    """
    return _cnn("bignas", resolution=320, groups=33)


def attentivenas() -> Recipe:
    """0.203 to 1.939 GFLOPs, 9.0 to 23.4 million parameters; 35 groups of 0.0496 GFLOPs.

    Command: ``torchrun --nproc-per-node 8 -m trainer.run --recipe attentivenas --data PATH``
    Hardware, time, result: not run here. ``--dry-run`` tells what it needs.
    The paper (Table 5): 78.7 % at 0.259 GFLOPs, 80.4 % at 0.453.
    """
    return _cnn("attentivenas", resolution=288, groups=35)


def _cnn(name: str, *, resolution: int, groups: int) -> Recipe:
    return Recipe(
        name=name,
        space=name,
        data="imagenet",
        resolution=resolution,
        epochs=500,
        batch_size=1024,
        sampler="shift",
        sampler_options=SamplerOptions(groups=groups, learning_rate=1e-3),
        optimizer=Optimizer(
            name="sgd",
            learning_rate=0.5,
            weight_decay=1e-5,
            warm_up_share=5 / 500,
            clip_norm=5.0,
            label_smoothing=0.1,
        ),
        generator=GeneratorOptions(masked_every=1, pretrain_steps=1000),
        augment=Augment(padding=0, crop_area=0.08, policy="autoaugment-imagenet"),
        warm_up_share=50 / 500,
        shift_every=100,
        held_out_images=50_000,
        evaluate_every=25,
        calibration_batches=4,  # 4,096 images, which stay in memory: 5 GB at 320 pixels
        device="cuda",
        precision="bf16",
        checkpoint_every_s=600.0,
    )
