"""The recipe: every setting of a training run. Imports no PyTorch, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from striate.core.errors import StriateError, unknown
from striate.core.settings import check, setting
from striate.train.resizing import parse_steps

# Settings that change no bit of the result: a resumed run may be given others.
FREE = ("workers", "cache", "checkpoint_every", "keep_every", "preflight")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; `None` and `auto` are worked out from the data and written into the run.

    Raises:
        StriateError: a value of the wrong type or out of bounds, or two settings that exclude each other.
    """

    # What is trained
    net: str = setting(
        "auto", help="Architecture ('striate list nets'); auto: resnet20 up to 64 pixels, resnet18 above."
    )
    net_options: dict[str, Any] = setting(default_factory=dict, help="Options of the architecture, by name.")  # noqa: RUF009
    task: str = setting("auto", help="Task ('striate list tasks'); auto: by the kind of the data.")
    size: int | tuple[int, int] | None = setting(
        None, help="Input size in pixels, one number or height and width; none: by the data.", minimum=1
    )
    channels: int | None = setting(
        None, help="Colour channels, 1 (grey) or 3; none: as the data has.", choices=(1, 3)
    )
    resize: str = setting(
        "auto",
        help="How an image is brought to size; auto: none where all have it, else crop (masks: squash).",
        choices=("auto", "crop", "squash", "pad", "none"),
    )
    crop: float = setting(
        1.0, help="Part of the shorter side that the centre crop keeps, 0 to 1.", minimum=0.05, maximum=1.0
    )
    augment: str = setting(
        "auto",
        help="Augmentation such as 'pad-crop(4)+flip' ('striate list augmentations'), none or auto.",
        off="none",
    )
    input: str = setting(
        "channels", help="Input statistics, such as pixels, lcn or gcn+zca ('striate list inputs')."
    )
    bootstrap: bool = setting(
        False,
        help="Train on as many images drawn with replacement, by the seed: one net of a bagging.",
        off=False,
    )
    progressive: str = setting(
        "",
        help="Smaller images first: 'SIZE@PART', the shorter side until that part of the run (24@0.5).",
        off="",
    )
    val: float = setting(
        0.1, help="Part of the training images held out for validation, 0 to 0.9.", minimum=0.0, maximum=0.9
    )

    initialisation: str = setting(
        "own",
        help="How weights begin: own, he, lsuv, 'gaussian(0.01)', ... ('striate list initialisations').",
        off="own",
    )
    first_layer: str = setting(
        "drawn",
        help="First convolution: drawn and learned, or whitened from training patches and kept.",
        choices=("drawn", "whitened"),
        off="drawn",
    )

    test: float = setting(
        0.2, help="Part of the images kept for the test, 0 to 0.9, where the data have no test images.",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    contiguous: bool | None = setting(
        None, help="Hold out the last images instead of random ones; none: for numbered slices and frames."
    )
    label_column: str | None = setting(
        None, help="Column of a table that holds the class; none: found by itself."
    )

    # How long, and in what steps
    epochs: int = setting(30, help="Passes over the training images.", minimum=1)
    batch: int | None = setting(
        None, help="Images a batch, over all processes; none: up to 128 small or 32 large images.", minimum=1
    )
    accumulate: int = setting(1, help="Batches whose gradients are averaged into one step.", minimum=1)
    patience: int = setting(
        0, help="Stop after this many epochs without a better validation score; 0: never.", minimum=0, off=0
    )

    # Optimisation
    optimizer: str = setting("sgd", help="Optimiser ('striate list optimizers').")
    lr: float | None = setting(
        None, help="Highest learning rate; none: by optimiser, net and batch.", minimum=0.0
    )
    rates: dict[str, float] = setting(  # noqa: RUF009
        default_factory=dict,
        help="Multiples of lr for parts of the net, by name: '{fc: 10, \"*.bias\": 64}'; 0 keeps them.",
    )
    momentum: float = setting(0.9, help="Momentum of SGD, 0 to 1.", minimum=0.0, maximum=0.9999, off=0.0)
    nesterov: bool = setting(True, help="Nesterov's form of momentum for SGD.", off=False)
    betas: tuple[float, float] = setting((0.9, 0.999), help="Decay rates of Adam's two moments, 0 to 1.")
    epsilon: float | None = setting(
        None, help="Added to the root in adaptive optimisers' steps; none: as each is usual.", minimum=0.0
    )
    rms_decay: float = setting(
        0.9, help="Decay rate of RMSProp's mean of squares, 0 to 1.", minimum=0.0, maximum=0.9999
    )
    lbfgs_iterations: int = setting(10, help="Most iterations of L-BFGS in one step.", minimum=1)
    lbfgs_history: int = setting(10, help="Steps that L-BFGS remembers.", minimum=1)
    clip: float = setting(
        0.0, help="Largest norm of the whole gradient; 0: no clipping.", minimum=0.0, off=0.0
    )

    # Regularisation
    weight_decay: float = setting(5e-4, help="L2 decay of weights.", minimum=0.0, off=0.0)
    l1: float = setting(
        0.0, help="L1 decay of weights, which makes many of them zero or small.", minimum=0.0, off=0.0
    )
    decay: str = setting(
        "auto",
        help="L1 and L2 as part of the gradient (coupled), or beside it; auto: as the optimiser does.",
        choices=("auto", "coupled", "decoupled"),
    )
    decay_norms_and_biases: bool = setting(
        False, help="Decay normalisation weights and biases too.", off=False
    )
    dropout: float | None = setting(
        None,
        help="Rate of the net's dropout layers; none: the net's own.",
        minimum=0.0,
        maximum=0.99,
        off=0.0,
    )
    drop_path: float | None = setting(
        None, help="Stochastic depth: rate of the last residual block, rising from 0; none: the net's own.",
        minimum=0.0, maximum=0.99, off=0.0,
    )  # fmt: skip
    stochastic_pooling: bool = setting(
        False,
        help="Stages of max pooling draw a unit of each window, with a probability like its value.",
        off=False,
    )
    drop_connect: float | None = setting(
        None, help="DropConnect: rate of the single weights of hidden fully connected stages; none: 0.",
        minimum=0.0, maximum=0.99, off=None,
    )  # fmt: skip
    input_noise: float = setting(
        0.0, help="Deviation of noise on the normalised input, in training.", minimum=0.0, off=0.0
    )
    weight_noise: float = setting(
        0.0, help="Deviation of noise on the weights in each forward pass, in training.", minimum=0.0, off=0.0
    )
    gradient_noise: float = setting(
        0.0, help="Variance of noise on the first gradients, falling as steps^-0.55.", minimum=0.0, off=0.0
    )

    # Averages of weights, and what learns
    ema: float = setting(
        0.0,
        help="Decay a step of the weight average that is tested and kept; 0: none.",
        minimum=0.0,
        maximum=0.99999,
        off=0.0,
    )
    swa: float = setting(
        0.0, help="Part of the run after which weights are averaged alike (SWA), tested and kept; 0: never.",
        minimum=0.0, maximum=1.0, off=0.0,
    )  # fmt: skip
    swa_every: int = setting(1, help="Epochs between two weights that SWA takes in.", minimum=1)
    norm_batches: int | None = setting(
        None, help="Batches that an average's batch norms are estimated from; none: 100 for SWA, 0 for EMA.",
        minimum=0,
    )  # fmt: skip
    freeze: str = setting(
        "",
        help="Stages that learn later ('conv1..pool2@3,conv3@1': after so many epochs) or never ('fc6').",
        off="",
    )
    start_from: str = setting(
        "",
        help="Trained weights to start from: a published net, a run or a file; other classes get a new head.",
        off="",
    )
    grow_from: str = setting(
        "",
        help="A shallower net to start from: a run, a model file, or an architecture to be trained first.",
        off="",
    )
    grow_epochs: int | None = setting(
        None, help="Epochs of the shallower net trained first; none: as many as the net's.", minimum=1
    )

    # Learning-rate schedule
    schedule: str = setting("one-cycle", help="Learning-rate schedule ('striate list schedules').")
    warmup: float | None = setting(
        None,
        help="Epochs in which the rate rises; none: a quarter of the run for one-cycle, else 0.",
        minimum=0.0,
        off=0.0,
    )
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), help="Parts of the run, 0 to 1, after which the step schedule drops the rate."
    )
    gamma: float = setting(
        0.1, help="Factor of each drop of the step and plateau schedules, 0 to 1.", minimum=1e-6, maximum=1.0
    )
    plateau: int = setting(
        5, help="Epochs without a better score before the plateau schedule drops the rate.", minimum=1
    )
    restarts: int = setting(
        0, help="Warm restarts of the cosine and triangular schedules; cosine with them is SGDR.", minimum=0
    )
    snapshots: bool = setting(
        False, help="Keep the model at the end of each cycle, for an ensemble ('striate ensemble RUN')."
    )
    growth: float = setting(1.0, help="Length of each cycle as a multiple of the one before.", minimum=0.1)
    power: float = setting(1.0, help="Exponent of the polynomial schedule; 1 is a line.", minimum=0.01)
    floor: float | None = setting(
        None, help="Lowest rate as a part of the highest; none: 0 (exponential 0.001, swa 0.2).",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip

    # Loss
    label_smoothing: float = setting(
        0.0, help="Part of the target spread over all classes, 0 to 1.", minimum=0.0, maximum=0.999, off=0.0
    )
    class_weights: str = setting(
        "none",
        help="Weights of classes in the loss; balanced: by rarity.",
        choices=("none", "balanced"),
        off="none",
    )

    # The machine
    seed: int = setting(0, help="Seed of splits, initial weights, order and augmentation.", minimum=0)
    device: str = setting("auto", help="auto, cpu, cuda, cuda:N or mps.")
    amp: str = setting(
        "off",
        help="Mixed precision; auto: bfloat16 where the device computes it in hardware.",
        choices=("off", "auto", "bfloat16"),
    )
    channels_last: bool = setting(True, help="Keep tensors in NHWC memory order.")
    winograd: bool = setting(
        True, help="On the processor, 3 x 3 convolutions by Winograd's filtering where that is faster."
    )
    recompute: int = setting(
        0, help="Gradient checkpointing: segments whose activations are worked out twice; 0: none.", minimum=0
    )
    compiled: bool = setting(False, help="Compile the net before training (torch.compile).")
    sync_norm: bool = setting(False, help="Batch norm over the images of all processes.")
    threads: int | None = setting(
        None, help="Compute threads (they shape the last bits: resuming keeps them); none: all processors.",
        minimum=1,
    )  # fmt: skip
    workers: int | None = setting(
        None, help="Loader threads; none: by the machine. Changes no result.", minimum=0
    )
    mode: str = setting(
        "auto",
        help="Loader: whole set in memory, streamed by threads, or by processes; auto: by size.",
        choices=("auto", "memory", "stream", "processes"),
    )
    cache: float | None = setting(
        None,
        help="GiB of memory for decoded images; none: a quarter of what is free. Changes no result.",
        minimum=0.0,
        maximum=1e6,
    )
    checkpoint_every: float = setting(
        60.0, help="Seconds between checkpoints; one is also written after each epoch.", minimum=0.0
    )
    keep_every: int = setting(
        0, help="Keep a model before the first epoch and after every so many; 0: none.",
        minimum=0,
    )  # fmt: skip
    preflight: bool = setting(True, help="Check data, net, loss, disk and memory before the first epoch.")

    def __post_init__(self) -> None:
        check(self)
        parse_steps(self.progressive)
        for name in ("betas", "milestones"):
            values = getattr(self, name)
            if any(not 0.0 <= value < 1.0 for value in values):
                raise StriateError(f"{name} is {values!r}", allowed="numbers from 0 to below 1")
        if list(self.milestones) != sorted(self.milestones):
            raise StriateError(f"milestones is {self.milestones!r}", hint="give them in rising order")
        if isinstance(self.size, tuple) and min(self.size) < 1:
            raise StriateError(f"size is {self.size!r}", allowed="height and width of at least 1 pixel")
        if self.lr == 0.0:
            raise StriateError("lr is 0", hint="give a rate above 0, or leave it out to have it worked out")
        if self.ema and self.swa:
            raise StriateError("ema and swa exclude each other", hint="leave one of them out")
        if self.floor == 0.0 and self.schedule == "exponential":
            raise StriateError("floor is 0", allowed="above 0 to 1 for the exponential schedule")
        if self.crop < 1.0 and self.resize not in ("auto", "crop"):
            raise StriateError(
                f"crop is {self.crop} with resize {self.resize!r}", hint="crop needs resize crop"
            )

    def with_(self, **changes: Any) -> Recipe:
        """A copy with some settings changed; raises as the constructor does, and for an unknown setting."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise unknown("setting", name, names)
        return dataclasses.replace(self, **changes)


def auto_net(size: int) -> str:
    """The architecture for images of `size` pixels: resnet20 up to 64, resnet18 above."""
    return "resnet20" if size <= 64 else "resnet18"


def auto_size(size: tuple[int, int] | None, kind: str) -> tuple[int, int]:
    """The input size for images of median size (height, width) in pixels.

    Up to 64 pixels their own size (a square of the longer side); above, 224 for classes, 128 where the
    shorter side is below 160. Masks keep their shape: the longer side at most 512, both multiples of 32.
    """
    height, width = size or (224, 224)
    if kind == "segmentation":
        scale = min(1.0, 512 / max(height, width))
        return (max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32))
    if max(height, width) <= 64:
        side = max(height, width)
        return (side, side)
    side = 128 if min(height, width) < 160 else 224
    return (side, side)


def auto_batch(count: int, size: int) -> int:
    """Images a batch: 128 up to 64 pixels, 32 above; halved until an epoch has 20 steps, at least 8."""
    batch = 128 if size <= 64 else 32
    while batch > 8 and count < 20 * batch:
        batch //= 2
    return max(1, min(batch, count))


def auto_augment(size: tuple[int, int], channels: int, kind: str) -> str:
    """Augmentation by the data: flips only for natural (colour) images, whose mirror image is one too."""
    small = max(size) <= 64
    if kind == "segmentation":
        return "flip"
    if channels == 1:
        return f"pad-crop({max(1, size[0] // 14)})" if small else "affine(rotate=5,translate=0.05,scale=0.1)"
    return f"pad-crop({max(1, size[0] // 8)})+flip" if small else "random-resized-crop(scale=0.35)+flip"


def auto_rate(optimizer_rate: float, batch: int, *, normalised: bool, adaptive: bool) -> float:
    """The highest learning rate: the optimiser's own for batch 128, a quarter for SGD on nets without norms.

    Scaled with batch / 128: linearly for SGD (Goyal et al. 2017, arXiv:1706.02677, section 2.1),
    up to 4 times; by the square root for adaptive methods.
    """
    scale = batch / 128
    rate = optimizer_rate * (scale**0.5 if adaptive else min(4.0, scale))
    return float(f"{rate if normalised or adaptive else rate / 4:.4g}")
