"""Mistakes in a study, and how they are worded: one line each."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from fmnist.utils.errors import UserError, printable

if TYPE_CHECKING:
    from fmnist.config.settings import Setting

NOTHING = object()
"""Stands for the value of an error that is not about a value."""


class ConfigError(UserError):
    """A mistake in a study. Its text is one line: source, setting, value and reason.

    Attributes:
        reason: the mistake, and the allowed values.
        key, value: the setting with the mistake; the value may be :data:`NOTHING`.
        keys: all settings involved.
        source: a file name or a command line option; empty for a study made in Python.
    """

    def __init__(
        self,
        reason: str,
        key: object = "",
        value: object = NOTHING,
        also: tuple[str, ...] = (),
        source: str = "",
    ) -> None:
        super().__init__(reason, key, value, also, source)
        self.reason, self.key, self.value, self.source = reason, str(key), value, source
        self.keys = (self.key, *also)

    def __str__(self) -> str:
        subject = clipped(self.key, 60)
        if self.value is not NOTHING:
            subject += f" = {shown(self.value)}"
        return ": ".join(filter(None, (clipped(self.source or "study", 200), subject, self.reason)))


def clipped(text: str, limit: int) -> str:
    """Cut a text to about ``limit`` characters and escape unprintable ones."""
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


class _Shown(reprlib.Repr):
    """A repr in the notation of TOML. It limits the length of the text."""

    def repr_str(self, x: str, level: int) -> str:
        text = x if len(x) <= 60 else x[:57] + "..."
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4300 digits; hexadecimal TOML can hold them.
        return str(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"

    def repr_bool(self, x: bool, level: int) -> str:
        return str(x).lower()

    def repr_tuple(self, x: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(x), level)


def shown(value: object) -> str:
    """Return a short text of a value, on one line, for a message."""
    return clipped(_Shown().repr(value), 80)


def nearest(name: object, names: Collection[str]) -> str:
    """Return ``"; did you mean NAME?"`` if a name resembles one of the names, else ``""``."""
    close = closest(name, names)
    return f"; did you mean {close}?" if close else ""


def closest(name: object, names: Collection[str]) -> str:
    """Return the name that is meant by another one; empty if none resembles it."""
    # Other tools write optimizer.lr or --batch-size.
    word = str(name)[:64].lower().rpartition(".")[2].strip(" -").replace("-", "_")
    usual = [other for other, words in USUAL.items() if other in names and word in words.split()]
    return next(iter(usual or difflib.get_close_matches(word, names, n=1)), "")


USUAL: Mapping[str, str] = {
    "learning_rate": "lr eta alpha rate step_size stepsize learningrate lr0 base_lr",
    "algorithm": "optimizer optimiser optim opt solver",
    "batch_size": "bs batch batches minibatch mini_batch_size train_batch_size bsz",
    "weight_decay": "wd l2 decay lambda regularization",
    "momentum": "mom mu",
    "nesterov": "nag",
    "beta1": "b1 betas beta",
    "beta2": "b2",
    "eps": "epsilon adam_epsilon",
    "epochs": "epoch n_epochs num_epochs max_epochs iterations steps",
    "seed": "seeds random_seed random_state rng manual_seed",
    "name": "study_name title",
    "holdout": "val val_size validation_size val_split validation_split",
    "metric": "objective monitor criterion",
    "metric_window": "window smoothing_window last_epochs",
    "keep": "checkpoint save_best keep_best",
    "channels": "filters conv widths width out_channels features",
    "hidden": "layers units hidden_size hidden_sizes hidden_units neurons dense fc mlp",
    "kernel_size": "kernel kernels ks filter_size",
    "padding": "pad pads",
    "dropout": "drop p dropout_rate drop_rate",
    "feature_dropout": "input_dropout conv_dropout dropout1",
    "linear_norm": "batch_norm batchnorm bn norm",
    "flip_average": "tta test_time_augmentation",
    "decay_biases": "bias_decay decay_bias",
    "flip": "hflip horizontal_flip mirror augment augmentation",
    "shift": "translate translation crop random_crop",
    "erasing": "random_erasing cutout erase",
    "label_smoothing": "smoothing smooth ls",
    "schedule": "scheduler lr_scheduler lr_schedule annealing",
    "warmup": "warm_up warmup_ratio pct_start warmup_share",
    "floor": "eta_min min_lr final_lr",
    "ema_decay": "ema average averaging polyak swa",
    "clip_norm": "clip max_norm grad_clip gradient_clipping max_grad_norm",
    "precision": "dtype amp fp16 bf16 half",
    "validation_accuracy": "accuracy acc val_acc val_accuracy",
    "validation_loss": "loss val_loss",
    "float32": "fp32 f32 float single full",
    "bfloat16": "bf16 half float16 fp16 f16",
}
"""Name of a setting or value -> what other tools and papers call it."""


def given_twice(setting: Setting, value: object) -> ConfigError:
    """Make the error for a setting that is also an axis of the grid."""
    reason = f"is set in [{setting.table}] and is an axis of [grid]; give it once"
    return ConfigError(reason, setting.key, value)


def unknown(
    settings: Mapping[str, Setting],
    kind: str,
    key: object,
    value: object,
    names: Collection[str],
    source: str = "",
) -> ConfigError:
    """Make the error for a name that is unknown or belongs to another table."""
    if key not in settings:
        # A setting outside of a table resembles no table.
        likely = names if kind != "table" or isinstance(value, Mapping) else ()
        reason = f"unknown {kind}{nearest(key, likely)}"
        elsewhere = closest(key, settings)
        if elsewhere and elsewhere not in names and not closest(key, likely):
            reason += f"; did you mean {elsewhere} in [{settings[elsewhere].table}]?"
    elif "[grid]" in kind:
        reason = "cannot be an axis of the grid"
    else:
        reason = f"belongs in the table [{settings[str(key)].table}]"
    return ConfigError(f"{reason} (allowed: {', '.join(names)})", key, value, source=source)
