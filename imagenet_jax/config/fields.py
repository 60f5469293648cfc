"""Every config field: its default, its meaning, its allowed values and what it depends on.

A file in `configs/` starts from `defaults(model)` and sets what its paper specifies. The defaults
are the torchvision V1 recipe for ImageNet. As in published recipes, durations are in epochs, and
the learning rate is given for one batch size.

Fields of a single model family are in the `FIELDS` of its file in `imagenet_jax/models/`.
`python -m imagenet_jax.main --help_config` prints all of them.
"""

import dataclasses

from ml_collections import ConfigDict

Value = bool | int | float | str | tuple
ON = ("on",)  # in `read_by`: any value that turns the other field on, such as a number above 0


@dataclasses.dataclass(frozen=True)
class Field:
    """One config field. Its type is the type of its default.

    Attributes:
      default: a str, bool, int or float, or a tuple of numbers.
      doc: what the field means, and what each of its values does.
      choices: the allowed words; (): any word.
      above, at_least, below, at_most: the range of the number, or of every number of a tuple.
      length: length of a tuple; 0: any length.
      read_by: {other field: its values} with which this field has an effect. With other values, it
        must keep its default.
      example: a typical value that turns the field on, for error messages.
      operational: whether the field does not change what a run computes; if so, it may change when
        a run is resumed.
      was: the field's former name in the same group.
      aliases: names that people type when they mean this field, with or without a group.
    """

    default: Value
    doc: str
    _: dataclasses.KW_ONLY
    choices: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    length: int = 0
    read_by: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    example: Value = ""
    operational: bool = False
    was: str = ""
    aliases: tuple[str, ...] = ()

    def range(self) -> str:
        """Return the range in words, or "" if there is none."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        words = ("above", "at least", "below", "at most")
        bounds = zip(words, (self.above, self.at_least, self.below, self.at_most), strict=True)
        return " and ".join(f"{word} {n}" for word, n in bounds if n is not None)

    def kind(self) -> str:
        """Return the type in words."""
        if isinstance(self.default, tuple):
            return f"a list of {self.length} numbers" if self.length else "a list of numbers"
        names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        return names[type(self.default)]


IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1]; torchvision's published constants
IMAGENET_STD = (0.229, 0.224, 0.225)

SCHEDULE_FREE = ("schedule_free_sgd", "schedule_free_adamw")
# Optimizers with the moments of Adam.
ADAM = ("adam", "adamw", "lamb", "schedule_free_adamw")
_RAND = ("randaugment", "randaugment_timm", "randaugment_plain")

# fmt: off
FIELDS = {
    "seed": Field(0, "Seed of initial weights, data order, crops and all other random numbers",
        at_least=0, at_most=2**32 - 1),  # jax.random.key ignores higher bits
    "epochs": Field(90.0, "Length of training; may be fractional", above=0,
        aliases=("num_epochs", "n_epochs", "train_epochs", "max_epochs")),
    "batch_size": Field(256, "Images per optimizer step, over all devices and hosts", above=0,
        aliases=("bs", "batch", "global_batch_size", "train_batch_size", "batchsize")),
    "resume_with_changes": Field(False, "Resume a run even if its config has changed",
        operational=True, aliases=("resume",)),

    "model.name": Field("resnet50", "Name of the model, which determines the other model fields; "
        "python -m imagenet_jax --models lists the names",
        aliases=("model.arch", "arch", "architecture", "model.type", "backbone")),
    "model.num_classes": Field(1000, "Number of classes; must agree with the data", at_least=1,
        aliases=("classes", "model.classes", "n_classes")),
    "model.width": Field(1.0, "Multiplier of all channel counts; 1.0: as in the paper",
        above=1 / 128, at_most=1000, aliases=("width_multiplier", "model.width_factor")),
    "model.dtype": Field("float32", "Dtype of the computation; parameters are float32",
        choices=("float32", "bfloat16"),
        aliases=("precision", "amp", "bf16", "half_precision", "mixed_precision")),
    "model.head_bias": Field(0.0, "Added to the initial bias of the head. For binary cross-"
        "entropy, -log(num_classes - 1) makes the initial probabilities 1 / num_classes",
        example=-6.9),
    "model.remat": Field("none", "What the backward pass recomputes to save memory. blocks: "
        "everything in a block; dots: everything but convolutions and matrix products",
        choices=("none", "blocks", "dots"), operational=True,
        aliases=("grad_checkpointing", "gradient_checkpointing", "checkpointing")),

    "init.weights": Field("", "Weights file (.safetensors, or of torch.save) to start from, or a "
        "name that python -m imagenet_jax.weights lists. If the number of classes differs, the "
        "head is initialized randomly. Empty: random weights. A resumed run does not read the file",
        example="weights.safetensors",
        aliases=("pretrained", "init_from", "pretrained_weights", "finetune")),
    "init.weights_key": Field("", "Entry of the weights file that holds the state dict. Empty: the "
        "EMA weights if the file has any", read_by={"init.weights": ON}),
    "init.new_head": Field(False, "Initialize the head randomly even if the number of classes fits",
        read_by={"init.weights": ON}),

    "data.source": Field("auto", "Format of the data; auto detects it from data.path",
        choices=("auto", "tfds", "folder", "digits", "synthetic"), aliases=("dataset",)),
    "data.path": Field("~/tensorflow_datasets/imagenet2012/5.1.0", "Folder of the data",
        operational=True, aliases=("data_dir", "data.dir", "data_path", "data.root")),
    "data.train_split": Field("train", "Name of the split to train on"),
    "data.eval_split": Field("validation", "Name of the split to evaluate on",
        aliases=("val_split", "test_split", "eval.split")),
    "data.class_order": Field("name", "Order of the labels. name: sorted by class name; number: "
        "class names are numbers, sorted as numbers; or a file with one class name per line"),
    "data.holdout": Field(0.0, "Fraction of each class to hold out for validation, if the source "
        "is a folder without splits", at_least=0, below=1),
    "data.interpolation": Field("bilinear", "Interpolation when images are resized",
        choices=("bilinear", "bicubic")),
    "data.resampling": Field("antialias", "antialias: resize as Pillow does; fast: no low-pass "
        "filter, and JPEGs at least twice as large as needed are decoded at a reduced size",
        choices=("antialias", "fast")),
    "data.mean": Field(IMAGENET_MEAN, "Mean of RGB in [0, 1], which is subtracted", length=3),
    "data.std": Field(IMAGENET_STD, "Standard deviation of RGB in [0, 1], the divisor", length=3,
        above=0),
    "data.undecodable": Field("stop", "What to do with a damaged image: stop, or report and skip "
        "it", choices=("stop", "skip"), operational=True),
    "data.repeated_aug": Field(1, "Crops of each image in a batch (Hoffer 2020, Berman 2019)",
        above=0, was="repeats", aliases=("repeated_augmentation", "ra_reps", "aug_repeats")),
    "data.balance": Field("none", "over: repeat images of small classes; under: drop images of "
        "large ones", choices=("none", "over", "under"), aliases=("class_balance", "oversample")),
    "data.remainder": Field("carry", "Incomplete last batch of an epoch. carry: fill it up from "
        "the next epoch; drop: drop it", choices=("carry", "drop"), aliases=("drop_last",)),
    "data.threads": Field(0, "Decoding threads per process; 0: one per core", at_least=0,
        operational=True, aliases=("num_threads",)),
    "data.workers": Field(0, "Processes that decode instead of threads; 0: use threads",
        at_least=0, operational=True, aliases=("num_workers", "nworkers")),
    "data.prefetch_mb": Field(1024, "Maximum size of prefetched batches in host memory, MiB per "
        "process", above=0, operational=True, aliases=("prefetch",)),
    "data.synthetic.images": Field(1_281_167, "synthetic: number of images", above=0),
    "data.synthetic.classes": Field(1000, "synthetic: number of classes", above=0),
    "data.synthetic.height": Field(375, "synthetic: height of the images, pixels", above=0),
    "data.synthetic.width": Field(500, "synthetic: width of the images, pixels", above=0),

    "augment.image_size": Field(224, "Side of the training crop, pixels", above=0,
        aliases=("img_size", "input_size", "resolution", "crop_size", "train_crop_size")),
    "augment.start_size": Field(0, "Progressive resizing (Howard 2018): side of the first crops, "
        "which grow to augment.image_size; 0: off", at_least=0, example=160),
    "augment.size_ramp": Field((0.0, 0.0), "Epochs at which the crops start and stop growing",
        length=2, at_least=0, read_by={"augment.start_size": ON}),
    "augment.size_multiple": Field(32, "The side of growing crops is a multiple of this, so that "
        "few shapes are compiled", above=0),
    "augment.crop_scale": Field((0.08, 1.0), "Range of the crop's area, relative to the image "
        "(Szegedy 2015, section 6)", length=2, above=0, at_most=1,
        aliases=("augment.scale", "rrc_scale")),
    "augment.crop_ratio": Field((3 / 4, 4 / 3), "Range of the crop's aspect ratio, width / height",
        length=2, above=0, aliases=("augment.ratio", "aspect_ratio")),
    "augment.flip": Field(True, "Flip each image horizontally with probability 0.5",
        aliases=("hflip", "horizontal_flip")),
    "augment.auto_augment": Field("none", "randaugment (Cubuk 2020, as in torchvision), "
        "randaugment_timm (as in timm), randaugment_plain (as in big_vision), trivialaugment "
        "(Mueller 2021), autoaugment (Cubuk 2018, the ImageNet policy) or three_augment (Touvron "
        "2022; DeiT III adds color_jitter)",
        choices=("none", *_RAND, "trivialaugment", "autoaugment", "three_augment"), was="auto",
        aliases=("randaugment", "autoaugment", "rand_augment", "trivialaugment", "aa")),
    "augment.auto_interpolation": Field("bilinear", "Interpolation for shears and rotations",
        choices=("nearest", "bilinear"), read_by={"augment.auto_augment":
            ("randaugment", "randaugment_timm", "trivialaugment", "autoaugment")}),
    "augment.auto_num_ops": Field(2, "Operations per image; randaugment_timm applies each with "
        "probability 0.5", above=0, was="rand_num_ops", read_by={"augment.auto_augment": _RAND}),
    "augment.auto_magnitude": Field(9, "Magnitude of the operations. randaugment: 0 to 30, "
        "torchvision's bins; randaugment_timm and randaugment_plain: 0 to 10", at_least=0,
        at_most=30, was="rand_magnitude", read_by={"augment.auto_augment": _RAND}),
    "augment.auto_magnitude_std": Field(0.0, "Standard deviation of the magnitude of an operation",
        at_least=0, was="rand_deviation", read_by={"augment.auto_augment": ("randaugment_timm",)}),
    "augment.auto_increasing": Field(True, "All operations become stronger with the magnitude, as "
        "in timm's inc1", read_by={"augment.auto_augment": ("randaugment_timm",)}),
    "augment.color_jitter": Field((0.0, 0.0, 0.0, 0.0), "Strength of random brightness, contrast, "
        "saturation and hue; 0: off", length=4, at_least=0, was="jitter", aliases=("colorjitter",)),
    "augment.lighting": Field(0.0, "Standard deviation of AlexNet's color noise along the "
        "principal components of RGB; 0: off", at_least=0, aliases=("pca_noise",)),
    "augment.random_erase": Field(0.0, "Probability of erasing a box of the image (Zhong 2020)",
        at_least=0, at_most=1, example=0.1, was="erase",
        aliases=("random_erasing", "reprob", "cutout")),
    "augment.random_erase_fill": Field("zero", "Normalized pixels of the box. zero: 0, the mean "
        "color; noise: N(0, 1)", choices=("zero", "noise"), was="erase_fill",
        read_by={"augment.random_erase": ON}),
    "augment.mixup": Field(0.0, "Alpha of mixup's Beta distribution (Zhang 2018); 0: off",
        at_least=0, example=0.2, aliases=("mixup_alpha",)),
    "augment.cutmix": Field(0.0, "Alpha of CutMix's Beta distribution (Yun 2019); 0: off",
        at_least=0, example=1.0, aliases=("cutmix_alpha",)),
    "augment.mix_prob": Field(1.0, "Probability of mixing a batch with mixup or CutMix",
        at_least=0, at_most=1, was="mix_probability", aliases=("mixup_prob",)),
    "augment.mix_switch_prob": Field(0.5, "Probability of CutMix instead of mixup for a mixed "
        "batch, if both are on", at_least=0, at_most=1, was="mix_switch",
        read_by={"augment.mixup": ON, "augment.cutmix": ON}, aliases=("mixup_switch_prob",)),

    "loss.name": Field("softmax", "softmax: cross-entropy; bce: binary cross-entropy for each "
        "class (Wightman 2021)", choices=("softmax", "bce"), aliases=("criterion", "loss.type")),
    "loss.label_smoothing": Field(0.0, "Probability spread over all classes (Szegedy 2016, section "
        "7)", at_least=0, below=1, aliases=("smoothing", "label_smooth")),
    "loss.class_weights": Field((), "Weight of each class, as in torch's CrossEntropyLoss; (): 1",
        above=0),
    "loss.bce_reduction": Field("mean", "Mean or sum over the classes", choices=("mean", "sum"),
        read_by={"loss.name": ("bce",)}),
    "loss.bce_threshold": Field(0.0, "Targets above this become 1 and others 0; 0: no threshold",
        at_least=0, below=1, read_by={"loss.name": ("bce",)}),

    "optim.name": Field("sgd", "Optimizer; lars: You 2017, lamb: You 2019, lion: Chen 2023, muon: "
        "Jordan 2024; schedule_free_*: Defazio 2024, with schedule=constant and a warm-up",
        choices=("sgd", "adam", "adamw", "lars", "lamb", "rmsprop", "lion", "muon", *SCHEDULE_FREE),
        aliases=("optimizer", "opt")),
    "optim.rmsprop_form": Field("tensorflow", "tensorflow: epsilon inside the square root, second "
        "moment starts at 1, momentum of updates that include the learning rate; torch: epsilon "
        "outside, starts at 0, momentum of updates without the learning rate",
        choices=("tensorflow", "torch"), read_by={"optim.name": ("rmsprop",)}),
    "optim.base_lr": Field(0.1, "Peak learning rate at optim.base_batch_size", at_least=0,
        was="peak_lr", aliases=("lr", "learning_rate", "rate", "max_lr")),
    "optim.base_batch_size": Field(256, "Batch size for which learning rates are given", above=0,
        was="reference_batch_size"),
    "optim.lr_scaling": Field("auto", "How learning rates scale with batch_size. linear: Goyal "
        "2017; auto: none for lion, muon and forms of Adam, linear for the others",
        choices=("auto", "linear", "sqrt", "none"), aliases=("scale_lr",)),
    "optim.schedule": Field("step", "Schedule of the learning rate after the warm-up",
        choices=("step", "exponential", "cosine", "polynomial", "constant"),
        aliases=("scheduler", "lr_schedule", "lr_scheduler", "sched")),
    "optim.schedule_by": Field("step", "Change the learning rate every step, or every epoch as in "
        "timm", choices=("step", "epoch")),
    "optim.warmup_epochs": Field(0.0, "Epochs of linear warm-up from warmup_start_lr to the peak",
        at_least=0, aliases=("warmup", "lr_warmup_epochs", "warmup_steps")),
    "optim.warmup_start_lr": Field(0.0, "Learning rate of the first step, at base_batch_size",
        at_least=0, aliases=("warmup_lr", "init_lr")),
    "optim.decay_from": Field(-1.0, "Epoch at which the decay starts; -1: the end of the warm-up; "
        "0: the start of the run, with the warm-up in place of the first part (timm)",
        read_by={"optim.schedule": ("cosine", "polynomial")}),
    "optim.milestones": Field((30.0, 60.0), "step: epochs at which the learning rate is multiplied "
        "by decay_factor", at_least=0, aliases=("decay_epochs", "lr_steps")),
    "optim.decay_factor": Field(0.1, "step, exponential: the learning rate is multiplied by this "
        "at each milestone", at_least=0, was="factor",
        aliases=("lr_gamma", "optim.gamma", "decay_rate")),
    "optim.decay_every_epochs": Field(1.0, "exponential: epochs between milestones, counted from "
        "the start of the run; the learning rate is constant between milestones",
        above=0, read_by={"optim.schedule": ("exponential",)}),
    "optim.power": Field(1.0, "polynomial: exponent", at_least=0),
    "optim.end_lr": Field(0.0, "cosine, polynomial: final learning rate, at base_batch_size",
        at_least=0, aliases=("min_lr", "final_lr", "lr_min")),
    "optim.momentum": Field(0.9, "sgd, lars, rmsprop: v <- momentum * v + gradient, as in "
        "torch; muon: decay of the first moment",
        at_least=0, below=1),
    "optim.nesterov": Field(False, "Nesterov momentum", read_by={"optim.name": ("sgd", "lars")}),
    "optim.trust_coefficient": Field(0.001, "Multiplier of the trust ratio, which scales the "
        "learning rate of each layer", at_least=0, read_by={"optim.name": ("lars",)}),
    "optim.b1": Field(0.9, "Decay of the first moment; schedule_free_*: gradients are taken "
        "between the last weights (0) and their average (1)", at_least=0, below=1, read_by={
            "optim.name": (*ADAM, "lion", "muon", "schedule_free_sgd")},
        aliases=("beta1", "betas", "adam_beta1")),
    "optim.b2": Field(0.999, "Decay of the second moment; lion: decay of the stored momentum",
        at_least=0, below=1, read_by={"optim.name": (*ADAM, "rmsprop", "lion", "muon")},
        aliases=("beta2", "adam_beta2")),
    "optim.eps": Field(1e-8, "Added to the root of the second moment", at_least=0,
        read_by={"optim.name": (*ADAM, "rmsprop", "muon")}, aliases=("epsilon", "adam_eps")),
    "optim.weight_decay": Field(1e-4, "Coefficient of weight decay", at_least=0,
        aliases=("wd", "l2", "optim.decay", "weightdecay")),
    "optim.l1": Field(0.0, "Adds l1 * sign(weight) to the gradient of weights that decay",
        at_least=0),
    "optim.weight_decay_form": Field("l2", "l2: add the decay to the gradient; decoupled: add it "
        "to the update, as adamw, lion and muon always do", choices=("l2", "decoupled"),
        read_by={"optim.name": ("sgd", "adam", "adamw", "lion", "muon")}),
    "optim.decay_bias_and_norm": Field(True, "Also decay biases and norm scales, as torch does by "
        "default; lars and lamb: also scale their learning rates", aliases=("norm_weight_decay",)),
    "optim.freeze_epochs": Field(0.0, "Epochs at the start that train only the head; all epochs: "
        "a linear probe, whose steps have no other backward pass", at_least=0,
        read_by={"optim.name": ("sgd", "adam", "adamw", "rmsprop", "lion", "muon")},
        aliases=("freeze", "freeze_backbone")),
    "optim.layer_decay": Field(1.0, "Learning rate of a layer group, relative to the group after "
        "it (Clark 2020); 1: off", above=0, aliases=("layerwise_decay", "llrd")),
    "optim.grad_clip_norm": Field(0.0, "Maximum global norm of the gradient; 0: no clipping",
        at_least=0, was="clip_norm",
        aliases=("clip_grad", "clip", "grad_clip", "gradient_clipping", "max_grad_norm")),
    "optim.grad_clip_value": Field(0.0, "Maximum absolute value of gradients; 0: no clipping",
        at_least=0, aliases=("clip_value", "gradient_clip_value")),
    "optim.agc": Field(0.0, "Adaptive gradient clipping (Brock 2021): maximum ratio of gradient "
        "norm to weight norm per output channel, except in the head; 0: no clipping",
        at_least=0, example=0.01, aliases=("adaptive_grad_clip",)),
    "optim.grad_accum_steps": Field(1, "Micro-batches per step; batch norm sees one at a time",
        above=0, was="accumulate", aliases=("accum_steps", "gradient_accumulation_steps",
        "grad_accum", "accum_freq", "iter_size")),

    "ema.decay": Field(0.0, "Decay of the EMA of the weights per update; 0: no EMA",
        at_least=0, below=1, example=0.9999,
        aliases=("ema_decay", "model_ema", "model_ema_decay", "polyak")),
    "ema.form": Field("constant", "constant: the same decay at each update; torchvision: scaled "
        "by the images per update; timm: with a warm-up",
        choices=("constant", "torchvision", "timm"), read_by={"ema.decay": ON}),
    "ema.every_steps": Field(1, "Steps between updates of the EMA", above=0,
        read_by={"ema.decay": ON}, aliases=("model_ema_steps", "ema_steps")),
    "ema.gamma": Field(1.0, "The decay is 1 - (1 + step / gamma) ** -power, at most ema.decay",
        above=0, read_by={"ema.form": ("timm",)}),
    "ema.power": Field(2 / 3, "Exponent in the formula of ema.gamma", above=0,
        read_by={"ema.form": ("timm",)}),

    "mesh.fsdp": Field(1, "Number of devices over which parameters and optimizer state are sharded",
        above=0, operational=True, aliases=("fsdp_devices", "shards")),

    "eval.every_epochs": Field(1.0, "Epochs between evaluations; 0: only at the end", at_least=0,
        aliases=("eval_every", "eval_freq", "val_every", "eval_interval")),
    "eval.batch_size": Field(256, "Images per evaluation step, over all devices", above=0,
        operational=True, aliases=("eval_batch_size", "val_batch_size", "eval.bs")),
    "eval.resize": Field(256, "Shorter side of the image before the crop, pixels", above=0,
        aliases=("resize_size", "val_resize_size", "eval.resize_size")),
    "eval.image_size": Field(224, "Side of the center crop, pixels", above=0,
        aliases=("val_crop_size", "eval.crop_size", "eval.crop", "test_size")),
    "eval.flip": Field(False, "Average the logits of each image and its mirror image",
        aliases=("tta",)),

    "checkpoint.every_epochs": Field(1.0, "Epochs between checkpoints; 0: only at the end",
        at_least=0, aliases=("save_every", "save_freq", "checkpoint_every", "save_interval")),
    "checkpoint.keep": Field(3, "Number of recent checkpoints to keep, besides the best one",
        above=0, operational=True, aliases=("keep_checkpoints", "max_to_keep")),
    "checkpoint.best_metric": Field("top1", "Metric on data.eval_split that determines the best "
        "checkpoint", choices=("top1", "top5", "loss"), aliases=("monitor",)),

    "nonfinite.policy": Field("stop", "If the loss, a gradient or a parameter is NaN or infinite: "
        "stop, or rewind to the last checkpoint and skip the batches that led to the failure",
        choices=("stop", "rewind"), operational=True, aliases=("nan_policy",)),
    "nonfinite.max_rewinds": Field(3, "Maximum number of rewinds in a run", above=0,
        operational=True, read_by={"nonfinite.policy": ("rewind",)}),
    "nonfinite.skip_steps": Field(100, "Number of batches to skip after a rewind, up to and "
        "including the one that failed, but none before the checkpoint", above=0, operational=True,
        read_by={"nonfinite.policy": ("rewind",)}),

    "log.every_steps": Field(100, "Steps between log lines and between points of the curves",
        above=0, operational=True, aliases=("log_every", "print_freq", "log_interval", "log_freq")),
    "log.tensorboard": Field(True, "Write TensorBoard event files", operational=True),
    "log.group_norms": Field(False, "Log the norms of gradients, weights and updates of each layer "
        "group", operational=True),
    "log.histograms_every_epochs": Field(0.0, "Epochs between histograms of weights and gradients "
        "by layer group; 0: never. Each takes as long as 1.3 steps (benchmarks/histograms.py)",
        at_least=0, operational=True, aliases=("histograms",)),
    "log.images": Field(16, "Number of images to log from the first augmented batch, and of the "
        "most confident mistakes at the end; 0: none. They cost a compilation at the start and an "
        "evaluation at the end", at_least=0, operational=True),
    "log.wandb": Field("", "Weights & Biases project to log to; empty: none", operational=True,
        aliases=("wandb_project",)),
    "log.mlflow": Field("", "MLflow experiment to log to; empty: none", operational=True),
    "log.watchdog_seconds": Field(1800.0, "Print all stacks and exit after this many seconds "
        "without a step or batch; 0: never", at_least=0, at_most=1e9, operational=True,
        aliases=("timeout", "watchdog")),

    "profile.steps": Field("", '"A:B": write a trace of steps A to B into workdir/profile; empty: '
        "none", operational=True, aliases=("profile", "profiler")),

    "debug.nans": Field(False, "Stop at the first NaN and name the operation; slow",
        operational=True, aliases=("debug_nans", "detect_anomaly")),
    "debug.determinism": Field(0, "Run the first N steps twice, including the data, and compare "
        "them bit for bit; 0: off", at_least=0, operational=True, aliases=("deterministic",)),
}
# fmt: on

OPERATIONAL = tuple(name for name, field in FIELDS.items() if field.operational)
# Former fields without a replacement, and what to do instead.
REMOVED = {
    "model.norm": "ResNets have batch norm; the bit models have group norm",
    "model.weight_standardization": "only the bit models have standardized kernels",
}


def fields_of_model(model: str) -> dict[str, Field]:
    """Return every field by its dotted name, including those of the model's family.

    Raises UserError if there is no such model.
    """
    from imagenet_jax import models  # imports jax and flax, which take seconds

    own = models.family(model).fields
    name = dataclasses.replace(FIELDS["model.name"], default=model)
    return FIELDS | {"model.name": name} | {f"model.{leaf}": field for leaf, field in own.items()}


def defaults(model: str = "resnet50") -> ConfigDict:
    """Return a config with the default of every field, for one of `imagenet_jax.models.names()`."""
    tree: dict = {}
    for name, field in fields_of_model(model).items():
        *groups, leaf = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = field.default
    return ConfigDict(tree)
