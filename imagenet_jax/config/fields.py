"""Every config field, its default, and what it means: the one place they are documented.

A file in `configs/` starts from `defaults(model)` and changes what its paper changes. The defaults
are the torchvision V1 recipe for ImageNet, written as its table writes it: durations in epochs,
the learning rate at the batch size it was published for.
"""

from ml_collections import ConfigDict

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]; torchvision's published constants
IMAGENET_STD = (0.229, 0.224, 0.225)


def defaults(model: str = "resnet50") -> ConfigDict:
    """The full set of fields for one of `imagenet_jax.models.names()`.

    Every value is plain (str, bool, int, float or a tuple of them), and its type is fixed: an
    override of another type, or of a field that is not here, is an error.
    """
    c = ConfigDict()
    c.seed = 0  # of initial weights, sample order, crops and everything else drawn at random
    c.epochs = 90.0  # length of training; may be fractional
    c.batch_size = 256  # images per optimizer step over all devices and hosts
    c.resume_with_changes = False  # continue a workdir although its config differs from this one

    c.model = ConfigDict()
    c.model.name = model  # one of imagenet_jax.models.names()
    c.model.num_classes = 1000  # must agree with the data
    c.model.width = 1.0  # multiplies every channel count
    c.model.dtype = "float32"  # compute: "float32" | "bfloat16"; parameters stay float32
    if model.startswith("resnet"):
        c.model.stem = "imagenet"  # "imagenet": 7x7/2 and max-pool | "small": 3x3/1, no pool
        c.model.zero_init_residual = False  # last norm scale of each block starts at 0 (Goyal 2017)
        c.model.drop_path = 0.0  # chance to leave out the last block; rises from 0 at the first
        c.model.blur_pool = "none"  # low-pass filter: "zhang" after | "ffcv" before strided 3x3
        c.model.norm = "batch"  # "batch" | "group": 32 groups of channels
        c.model.weight_standardization = False  # kernels of mean 0 and variance 1 (Qiao 2019)
        c.model.bn_group = 0  # images that batch norm sees together in training; 0: the batch
    elif model.startswith("vgg"):
        c.model.dropout = 0.5  # after each of the two hidden linear layers
        c.model.bn_group = 0  # images that batch norm sees together in training; 0: the batch

    c.init = ConfigDict()
    c.init.weights = ""  # .safetensors or torch.save file to start from, with a new head for other
    # classes; "": random values. A run that is resumed does not read it again
    c.init.weights_key = ""  # the file's entry that holds the state dict; "": EMA weights if any
    c.init.new_head = False  # leave out the file's head although it has as many classes

    c.data = ConfigDict()
    c.data.source = "auto"  # "auto" looks at path | "tfds" | "folder" | "digits" | "synthetic"
    c.data.path = "~/tensorflow_datasets/imagenet2012/5.1.0"
    c.data.train_split = "train"
    c.data.eval_split = "validation"
    # Label of a class: "name": its place in sorted order | "number": its name is a number, and they
    # are sorted as numbers | a file with one class name a line: its line
    c.data.class_order = "name"
    c.data.holdout = 0.0  # share of each class kept for "validation", of a folder without splits
    c.data.interpolation = "bilinear"  # "bilinear" | "bicubic"
    c.data.resampling = "antialias"  # "antialias": as Pillow resizes | "fast": no low-pass filter
    c.data.mean = IMAGENET_MEAN  # subtracted from RGB in [0, 1], on the device
    c.data.std = IMAGENET_STD  # then divided by
    c.data.undecodable = "stop"  # at a damaged image | "skip": leave its row out, and report it
    c.data.repeated_aug = 1  # crops of an image in one batch (Hoffer 2020, Berman 2019)
    c.data.balance = "none"  # classes: "over" repeats images of small ones | "under" drops of large
    c.data.remainder = "carry"  # epoch end: "carry" fills the batch from the next epoch | "drop"
    c.data.threads = 0  # decoding threads per process; 0: one per core
    c.data.workers = 0  # worker processes instead of threads; 0: threads
    c.data.prefetch_mb = 1024  # bound on decoded batches that wait in host memory, MiB per process
    c.data.synthetic = ConfigDict()  # what the source "synthetic" makes; other sources ignore it
    c.data.synthetic.images = 1_281_167
    c.data.synthetic.classes = 1000
    c.data.synthetic.height = 375  # pixels
    c.data.synthetic.width = 500

    c.augment = ConfigDict()
    c.augment.image_size = 224  # side of the training crop, pixels
    c.augment.start_size = 0  # side at first, to grow to image_size (Howard 2018); 0: no growth
    c.augment.size_ramp = (0.0, 0.0)  # epochs between which it grows
    c.augment.size_multiple = 32  # in steps of so many pixels: few shapes to compile
    c.augment.crop_scale = (0.08, 1.0)  # crop area over image area (Szegedy 2015, section 6)
    c.augment.crop_ratio = (3 / 4, 4 / 3)  # crop width over height
    c.augment.flip = True  # mirror half of the images
    # "none" | "randaugment" (Cubuk 2020; torchvision's) | "randaugment_timm" | "trivialaugment"
    c.augment.auto_augment = "none"
    c.augment.auto_interpolation = "bilinear"  # of its shears and rotations; or "nearest"
    c.augment.auto_num_ops = 2  # randaugment: operations on each image; timm does each at 1/2
    c.augment.auto_magnitude = 9  # randaugment: 0 to 30, in torchvision's 31 bins; timm: 0 to 10
    c.augment.auto_magnitude_std = 0.0  # randaugment_timm: of the magnitude, from image to image
    c.augment.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue; 0: off
    c.augment.lighting = 0.0  # deviation of AlexNet's noise along ImageNet's colours; 0: off
    c.augment.random_erase = 0.0  # chance to erase a box of an image (Zhong 2020)
    c.augment.random_erase_fill = "zero"  # the box: "zero": the mean color | "noise": N(0, 1)
    c.augment.mixup = 0.0  # alpha of the Beta distribution (Zhang 2018); 0: off
    c.augment.cutmix = 0.0  # alpha of the Beta distribution (Yun 2019); 0: off
    c.augment.mix_prob = 1.0  # share of batches that mixup or cutmix mixes
    c.augment.mix_switch_prob = 0.5  # share of them that cutmix gets, where both are on

    c.loss = ConfigDict()
    c.loss.name = "softmax"  # "softmax" | "bce": one yes-or-no question a class (Wightman 2021)
    c.loss.label_smoothing = 0.0  # mass spread over all classes (Szegedy 2016, section 7)
    c.loss.class_weights = ()  # a factor per class, as in torch's CrossEntropyLoss; (): all alike
    c.loss.bce_reduction = "mean"  # bce: "mean" | "sum" over the classes
    c.loss.bce_threshold = 0.0  # bce: targets above it become 1, the others 0; 0: they stay

    c.optim = ConfigDict()
    c.optim.name = "sgd"  # "sgd" | "adam" | "adamw" | "lars" (You 2017) | "lamb" (You 2019)
    c.optim.base_lr = 0.1  # at base_batch_size
    c.optim.base_batch_size = 256
    # with batch_size: "linear" (Goyal 2017) | "sqrt" | "none" | "auto": "linear" of sgd and lars,
    # "none" of adam, adamw and lamb
    c.optim.lr_scaling = "auto"
    c.optim.schedule = "step"  # "step" | "cosine" | "polynomial" | "constant"
    c.optim.schedule_by = "step"  # the rate changes every "step" | "epoch", as in timm
    c.optim.warmup_epochs = 0.0  # linear rise from warmup_start_lr to the peak
    c.optim.warmup_start_lr = 0.0  # at base_batch_size
    # cosine, polynomial: epoch from which they span the rest; -1: the end of the warm-up. 0: the
    # whole run, whose first part the warm-up replaces (timm)
    c.optim.decay_from = -1.0
    c.optim.milestones = (30.0, 60.0)  # step: epochs at which the rate is multiplied by factor
    c.optim.decay_factor = 0.1  # step
    c.optim.power = 1.0  # polynomial
    c.optim.end_lr = 0.0  # cosine and polynomial: rate at the end, at base_batch_size
    c.optim.momentum = 0.9  # sgd, lars; torch's form: v <- momentum * v + g
    c.optim.nesterov = False  # sgd, lars
    c.optim.trust_coefficient = 0.001  # lars: of the ratio of norms that scales each rate
    c.optim.b1 = 0.9  # adam, adamw, lamb
    c.optim.b2 = 0.999  # adam, adamw, lamb
    c.optim.eps = 1e-8  # adam, adamw, lamb
    c.optim.weight_decay = 1e-4
    c.optim.l1 = 0.0  # adds l1 * sign(weight) to the gradient, of the weights that decay
    c.optim.weight_decay_form = "l2"  # "l2": added to the gradient | "decoupled": to the update
    # Decay biases and norm scales too, as torch does unasked; lars and lamb: adapt their rates too.
    c.optim.decay_bias_and_norm = True
    c.optim.freeze_epochs = 0.0  # at first, in which the head alone learns; not lars, lamb
    c.optim.layer_decay = 1.0  # factor of the rate per stage from the head (Clark 2020); 1: none
    c.optim.grad_clip_norm = 0.0  # largest global gradient norm; 0: no clipping
    c.optim.grad_accum_steps = 1  # micro-batches per step; batch norm sees one at a time

    c.ema = ConfigDict()
    c.ema.decay = 0.0  # of the running average of weights, per update; 0: no average is kept
    c.ema.form = "constant"  # "constant" | "torchvision": per image | "timm": with a warm-up
    c.ema.every_steps = 1  # steps from one update of the average to the next
    c.ema.gamma = 1.0  # timm: the decay is 1 - (1 + step / gamma) ** -power until it reaches decay
    c.ema.power = 2 / 3  # timm

    c.mesh = ConfigDict()
    c.mesh.fsdp = 1  # devices that share one copy of parameters and optimizer state

    c.eval = ConfigDict()
    c.eval.every_epochs = 1.0  # 0: only at the end
    c.eval.batch_size = 256
    c.eval.resize = 256  # shorter side before the crop, pixels
    c.eval.image_size = 224  # side of the centre crop, pixels
    c.eval.flip = False  # average the logits of each image and its mirror image

    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 1.0  # 0: only at the end
    c.checkpoint.keep = 3  # the last so many, and the best
    c.checkpoint.best_metric = "top1"  # "top1" | "top5" (highest) | "loss" (lowest), on eval_split

    c.nonfinite = ConfigDict()  # a loss, gradient or parameter that is NaN or infinite
    # "stop" | "rewind": back to the last checkpoint, without the batches before it
    c.nonfinite.policy = "stop"
    c.nonfinite.max_rewinds = 3  # rewind: how often in a run
    c.nonfinite.skip_steps = 100  # rewind: batches left out, up to that of the step; none before
    # the checkpoint

    c.log = ConfigDict()
    c.log.every_steps = 100  # one line, and one point in each curve
    c.log.tensorboard = True  # write event files
    c.log.group_norms = False  # of gradients, weights and updates, by layer group, in every step
    c.log.histograms_every_epochs = 0.0  # of weights and gradients, by layer group; 0: never. Each
    # costs the time of 1.3 steps (benchmarks/histograms.py)
    # Of the first batch as augmented, and of the most confident mistakes at the end; 0: none. They
    # cost a compilation at the start and the time of an evaluation at the end
    c.log.images = 16
    c.log.wandb = ""  # project of Weights & Biases to write to as well; "": none
    c.log.mlflow = ""  # experiment of MLflow to write to as well; "": none
    c.log.watchdog_seconds = 1800.0  # without a step or batch: print all stacks, end; 0: never

    c.profile = ConfigDict()
    c.profile.steps = ""  # "A:B": write a trace of steps A to B into workdir/profile; "": none

    c.debug = ConfigDict()
    c.debug.nans = False  # stop at the first NaN and name the operation; every step is waited for
    c.debug.determinism = 0  # first run so many steps twice, data included, and compare their bits
    return c
