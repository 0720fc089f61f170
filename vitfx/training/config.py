"""A training's recipe: TOML files, the package's or the user's, read into checked dataclasses."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.reading import read_text

PACKAGED = ("tiny-imagenet", "digits")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class ModelConfig:
    """vitfx/training/configs/tiny-imagenet.toml explains each value, here and below."""

    arch: str
    image_size: int | tuple[int, ...]
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    dropout: float
    attention_dropout: float
    drop_path: float

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size[0], self.image_size[1]


@dataclass(frozen=True)
class ImagesConfig:
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    stored_size: int


@dataclass(frozen=True)
class AugmentationConfig:
    flip: float
    crop_scale: tuple[float, ...]
    crop_ratio: tuple[float, ...]
    pad: int
    rotation: float
    noise: float
    erasing: float
    cutmix: float
    mixup: float
    mix: float


@dataclass(frozen=True)
class TrainingConfig:
    epochs: int
    batch: int
    lr: float
    final_lr: float
    warm_up: float
    weight_decay: float
    label_smoothing: float
    clip: float
    average: float
    precision: str
    flow_every: int
    seed: int


@dataclass(frozen=True)
class TrainConfig:
    """Raises UserError, with the key and its value, for what is out of range."""

    model: ModelConfig
    images: ImagesConfig
    augmentation: AugmentationConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        _check_ranges(self)
        scale, ratio = self.augmentation.crop_scale, self.augmentation.crop_ratio
        if scale and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise UserError(f"augmentation.crop_scale is {list(scale)}: give two rising shares up to 1, or [] for none")
        if not (len(ratio) == 2 and 0 < ratio[0] <= ratio[1]):
            raise UserError(f"augmentation.crop_ratio is {list(ratio)}: give two rising numbers above 0")
        if self.training.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"training.precision is {self.training.precision!r}: choose one of {known}")
        if self.training.final_lr > self.training.lr:
            raise UserError(
                f"training.final_lr {self.training.final_lr:g} is above training.lr {self.training.lr:g}: lower it"
            )
        if not self.training.warm_up < self.training.epochs:
            raise UserError(
                f"training.warm_up is {self.training.warm_up:g} of {self.training.epochs} epochs: give fewer"
            )

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.model.size, self.images.interpolation, mean=self.images.mean, std=self.images.std)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Section, key, and the least and greatest value, both inclusive.
_RANGES: tuple[tuple[str, str, float, float], ...] = (
    ("model", "image_size", 1, math.inf),
    ("images", "stored_size", 0, math.inf),
    *(("augmentation", name, 0, 1) for name in ("flip", "erasing", "mix")),
    *(("augmentation", name, 0, math.inf) for name in ("pad", "noise", "cutmix", "mixup")),
    ("augmentation", "rotation", 0, 180),
    *(("training", name, 1, math.inf) for name in ("epochs", "batch", "flow_every")),
    *(("training", name, 0, math.inf) for name in ("final_lr", "warm_up", "weight_decay", "clip", "seed")),
    ("training", "lr", math.ulp(0.0), math.inf),
    *(("training", name, 0, math.nextafter(1, 0)) for name in ("label_smoothing", "average")),
)


def _check_ranges(config: TrainConfig) -> None:
    for section, name, least, most in _RANGES:
        value = getattr(getattr(config, section), name)
        value = min(value) if isinstance(value, tuple) else value
        if not (least <= value <= most and math.isfinite(value)):
            if most == math.inf:
                wanted = "a number above 0" if 0 < least < 1 else f"{least:g} or more"
            else:
                wanted = f"a number from {least:g} to {'' if most == int(most) else 'less than '}{most:g}"
            raise UserError(f"{section}.{name} is {value:g}: give {wanted}")


def read_config(name: str, settings: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration `name` of the package, or of the TOML file `name`, with changes. Raises UserError.

    settings: "section.key=value", the value as in TOML, but strings may lack quotes.
    changes: values by "section.key"; they override settings.
    """
    record = _read_record(name)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"`set` {setting} has no value: give section.key=value, such as training.epochs=10")
        _put(record, key.strip(), _value(text.strip()), f"`set` {setting}")
    for key, value in (changes or {}).items():
        _put(record, key, value, key)
    return _typed_config(record, name)


def sets_image_size(name: str, settings: Sequence[str]) -> bool:
    """Whether the user's file or settings, as for `read_config`, contain model.image_size."""
    own = {} if name in PACKAGED else _read_file(name)
    keys = [setting.partition("=")[0].strip() for setting in settings]
    return "image_size" in own.get("model", {}) or "model.image_size" in keys


def _read_record(name: str) -> dict[str, Any]:
    """The sections of a file, over those of its base."""
    if name in PACKAGED:
        return tomllib.loads(
            (resources.files("vitfx.training") / "configs" / f"{name}.toml").read_text(encoding="utf-8")
        )
    own = _read_file(name)
    base = own.pop("base", None)
    if base is None:
        return own
    if base not in PACKAGED:
        raise UserError(f"{name} has the base {base!r}: give {' or '.join(PACKAGED)}")
    record = _read_record(base)
    for section, values in own.items():
        known = record.setdefault(section, {})
        record[section] = known | values if isinstance(values, dict) else values
    return record


def _read_file(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"`config` {name} is neither {' nor '.join(PACKAGED)} nor a file: give one of these")
    text = read_text(path, "correct it")
    try:
        return tomllib.loads(text)
    # ValueError: what Python says of an integer of too many digits, and tomllib of all else.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} can't be read as TOML ({in_a_line(error)}): correct it") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(record: dict[str, Any], key: str, value: Any, where: str) -> None:
    section, _, name = key.partition(".")
    if not isinstance(record.get(section), dict) or not name:
        raise UserError(f"{where} has no section: give section.key, the section one of {', '.join(_sections())}")
    record[section][name] = value


def _sections() -> dict[str, type]:
    return get_type_hints(TrainConfig)


def _typed_config(record: Mapping[str, Any], name: str) -> TrainConfig:
    sections = _sections()
    _check_keys(record, sections, name, "section")
    parts = {}
    for section, section_type in sections.items():
        values = record[section]
        if not isinstance(values, dict):
            raise UserError(f"{name} has the value {values!r} for {section}, which is a section: write [{section}]")
        hints = get_type_hints(section_type)
        _check_keys(values, hints, name, "key", f"{section}.")
        parts[section] = section_type(**{key: _typed(f"{section}.{key}", hints[key], values[key]) for key in hints})
    return TrainConfig(**parts)


def _check_keys(given: Mapping[str, Any], known: Mapping[str, Any], name: str, noun: str, prefix: str = "") -> None:
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"{name} has the unknown {noun} {prefix}{unknown[0]}: give one of {', '.join(known)}")
    if missing := [key for key in known if key not in given]:
        raise UserError(
            f'{name} lacks the {noun} {prefix}{missing[0]}: add it, or begin the file with base = "tiny-imagenet"'
        )


def _typed(key: str, kind: Any, value: Any) -> Any:
    """The value as its field has it: TOML has whole numbers for floats and lists for tuples."""
    if kind == int | tuple[int, ...]:
        return _side_or_size(key, value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(key, get_args(kind)[0], item) for item in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) or get_origin(kind) is tuple or not isinstance(value, kind):
        words = {int: "a whole number", float: "a number", str: "a string in quotes"}
        raise UserError(f"{key} is {value!r}: give {words.get(kind, 'a list of numbers')}")
    return value


def _side_or_size(key: str, value: Any) -> int | tuple[int, int]:
    """A side in pixels, or [height, width], which is a side where the two are one."""
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise UserError(f"{key} is {value!r}: give a whole number, or [height, width]")
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])
