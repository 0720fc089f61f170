"""Which folders of a data set are its training and evaluation parts, and which are classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitfx.images.sources import ENDINGS, is_system
from vitfx.support.errors import UserError

# Of several the first: val goes before test, which often comes without labels.
EVALUATION_PARTS = ("val", "valid", "validation", "test")
_ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
}
_NEUTRAL = {"set", "image", "images", "img", "imgs", "data", "dataset", "split", "folder"}


def find_parts(root: Path) -> tuple[Path, list[str]]:
    """The folder that is divided and the paths below it of its training and evaluation folders (or tar files).

    That folder is `root`, or the only one in it, as in an archive that was unpacked into a folder of its own; [""]
    where it has no parts. Names are read in any case, with what all of them share ("seg_train" and "seg_test") and in
    a folder of their own ("train/train"). Raises UserError where folders look like parts, and it is unclear of what.
    """
    names = class_folders(root)
    if len(names) == 1 and not _has_images(root):
        inside = root / names[0]
        if len(parts := _exact_parts(inside, class_folders(inside))) > 1:
            return inside, [_innermost(inside, part) for part in parts]
    parts = _exact_parts(root, names)
    nested = [name for name in names if _role(name) and class_folders(root / name)]
    if not parts and len(nested) == 1:
        parts = nested
    elif not parts and (nested or (len(names) > 1 and all(_role(name) for name in names))):
        raise UserError(
            f"the folders {', '.join((nested or names)[:4])} of {root} look like parts of a data set and not like "
            "classes: name them train and val, or pass the one that holds the class folders"
        )
    return root, [_innermost(root, part) for part in parts] or [""]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without the system's."""
    return sorted(path.name for path in _entries(folder) if path.is_dir() and not is_system(path.name))


def tars_of(root: Path, part: str) -> list[Path]:
    """The tar files whose names begin with that of the part."""
    folder = root / part
    return [path for path in sorted(folder.parent.glob(f"{folder.name}*.tar")) if path.is_file()]


def _exact_parts(root: Path, names: Sequence[str]) -> list[str]:
    """The parts directly in `root`: first by their usual names, then by names that are like them."""
    exact = {part for part in ("train", *EVALUATION_PARTS) if (root / part).is_dir() or tars_of(root, part)}
    if not exact:
        return _pick(root, names)
    train = ["train"] if "train" in exact else []
    evaluation = [part for part in EVALUATION_PARTS if part in exact][:1]
    if not train or not evaluation:
        alike = [name for name in names if name not in exact]
        more = [name for role in (("val", "test") if train else ("train",)) for name in _only(root, alike, "", role)]
        train, evaluation = (train, more[:1]) if train else (more[:1], evaluation)
    if len(train + evaluation) == 1 and _is_class(root, (train + evaluation)[0], names):
        return []
    return train + evaluation


def _pick(root: Path, names: Sequence[str]) -> list[str]:
    """A training and an evaluation folder whose names differ in nothing else; the unadorned ones go first."""
    for rest in sorted({known[0] for name in names if (known := _role(name)) is not None}):
        train, *evaluation = (_only(root, names, rest, role) for role in ("train", "val", "test"))
        if train and (others := [name for alike in evaluation for name in alike]):
            return [train[0], others[0]]
    return []


def _only(root: Path, names: Sequence[str], rest: str, role: str) -> list[str]:
    """The name with this role, if any; raises UserError where there are two."""
    alike = [name for name in names if _role(name) == (rest, role)]
    if len(alike) > 1:
        raise UserError(f"{root} has two folders for one part, {alike[0]} and {alike[1]}: name the right one {role}")
    return alike


def _is_class(root: Path, part: str, names: Sequence[str]) -> bool:
    """Whether a lone "train" or "test" is a class: flat, among other flat folders of images."""
    others = [name for name in names if name != part and _role(name) is None and _has_images(root / name)]
    return bool(others) and (root / part).is_dir() and not class_folders(root / part)


def _innermost(root: Path, part: str) -> str:
    """Follows folders like "seg_train/seg_train": a part that holds nothing but another of the same kind."""
    folder = root / part
    if not folder.is_dir() or not (role := _role(folder.name)) or _has_images(folder):
        return part
    below = class_folders(folder)
    inner = _role(below[0]) if len(below) == 1 else None
    return _innermost(root, f"{part}/{below[0]}") if inner is not None and inner[1] == role[1] else part


def _has_images(folder: Path) -> bool:
    return any(path.name.lower().endswith(ENDINGS) and not path.name.startswith(".") for path in _entries(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as reason:
        raise UserError(f"{folder} can't be read ({reason.strerror}): check its permissions") from reason


def _role(name: str) -> tuple[str, str] | None:
    """What a folder's name says beside its role, and the role; None where it names no role, or two."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()
    words = re.findall(r"\d+|[^\W\d_]+", spaced)
    roles = [_ROLES[word] for word in words if word in _ROLES]
    if len(roles) != 1:
        return None
    return " ".join(word for word in words if word not in _ROLES and word not in _NEUTRAL), roles[0]
