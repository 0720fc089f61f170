"""What a user changes of a model's preprocessing: the things that are given, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from vitfx.images.geometry import Resize, covering
from vitfx.images.preprocess import ASSUMED, Preprocess
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Overrides:
    """None stands for what the model's file or library says. Raises UserError for values that make no picture."""

    size: tuple[int, int] | None = None  #: (height, width) of the model's images; the resize before a crop follows it
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    resize: int | None = None  #: pixels of the edge that is resized before the crop, the shortest if none was
    crop_pct: float | None = None  #: the crop's share of that edge instead

    def __post_init__(self) -> None:
        if self.resize is not None and self.crop_pct is not None:
            raise UserError(f"resize {self.resize} and crop_pct {self.crop_pct:g} say the same: give one of them")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct is {self.crop_pct:g}: give a share above 0, up to 1")

    def applied(self, preprocess: Preprocess | None) -> Preprocess | None:
        """The preprocessing with these changes; None where neither it nor a size is known.

        Where only the size is known, the rest is ImageNet's and images are resized whatever their proportions.
        """
        if preprocess is None:
            if self.size is None:
                return None
            preprocess = Preprocess(self.size, origin=ASSUMED)
        given = [known.name for known in fields(self) if getattr(self, known.name) is not None]
        if not given:
            return preprocess
        changed = preprocess.at(self.size or preprocess.size)
        mean, std = self.mean or changed.mean, self.std or changed.std
        fill = changed.fill if len(changed.fill) in (0, len(mean)) else tuple(round(255 * value) for value in mean)
        return replace(
            changed,
            mean=mean,
            std=std,
            fill=fill,
            interpolation=self.interpolation or changed.interpolation,
            resize=self._resized(changed),
            origin=f"{preprocess.origin}; {' and '.join(given)} as given".removeprefix("; "),
        )

    def _resized(self, preprocess: Preprocess) -> Resize | None:
        edge = "shortest" if preprocess.resize is None else preprocess.resize.edge.replace("none", "shortest")
        if self.resize is not None:
            return Resize((self.resize, self.resize), edge)
        if self.crop_pct is not None:
            return Resize(covering(preprocess.size, self.crop_pct), edge, self.crop_pct)
        return preprocess.resize
