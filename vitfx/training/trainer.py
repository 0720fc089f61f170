"""One step of training: forward, loss, backward, clipping, optimizer, schedule, average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from vitfx.images.preprocess import Preprocess
from vitfx.support.devices import is_gpu
from vitfx.support.processes import Share
from vitfx.support.seeds import derive_seed, seed_generators
from vitfx.training.augment import batch_transform, mixing
from vitfx.training.config import TrainConfig, TrainingConfig
from vitfx.training.gradient_flow import GradientFlow
from vitfx.training.optimizer import make_average, make_optimizer, make_schedule
from vitfx.training.precision import autocast, make_scaler
from vitfx.training.state import to_cpu


@dataclass(eq=False)
class Trainer:
    """Everything that a step uses and changes."""

    model: nn.Module
    network: nn.Module  #: the model, or the wrapper that shares its gradients among processes
    average: AveragedModel | None
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    flow: GradientFlow
    to_batch: v2.Transform  #: uint8 images to floats
    mix: v2.Transform | None  #: CutMix and MixUp
    config: TrainingConfig
    precision: str
    rank: int
    device: torch.device

    @property
    def evaluated(self) -> nn.Module:
        """The model whose weights are evaluated and saved."""
        return self.model if self.average is None else self.average.module

    def step(self, number: int, images: Tensor, labels: Tensor) -> Tensor:
        """Learns from uint8 images (B, C, H, W) and labels (B,), and returns the loss, on the device.

        Random draws (noise, mixing, dropout) depend only on the seed, `number` and the process.
        """
        seed_generators(derive_seed(self.config.seed, "step", number, self.rank), self.device)
        batch = self.to_batch(images.to(self.device, non_blocking=True))
        targets = labels.to(self.device, non_blocking=True)
        if self.mix is not None:
            batch, targets = self.mix(batch, targets)
        with autocast(self.device, self.precision):
            logits = self.network(batch)
        loss = cross_entropy(logits.float(), targets, label_smoothing=self.config.label_smoothing)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        if number % self.config.flow_every == 0:
            self.flow.measure()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        state = {
            "model": dict(self.model.state_dict()),
            "average": None if self.average is None else dict(self.average.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "flow": self.flow.state_dict(),
            "precision": self.precision,
        }
        return {name: to_cpu(value) for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` returned for a trainer of the same precision."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.flow.load_state_dict(state["flow"])


def make_trainer(
    model: nn.Module,
    config: TrainConfig,
    preprocess: Preprocess,
    classes: int,
    epoch_steps: int,
    *,
    precision: str,
    share: Share,
    device: torch.device,
) -> Trainer:
    """A trainer at step 0 for `model`, which must be on the device and is put in training mode."""
    model.train()
    network = model
    if share.world > 1:
        network = DistributedDataParallel(model, device_ids=[device] if is_gpu(device) else None)
    optimizer = make_optimizer(model, config.training)
    return Trainer(
        model=model,
        network=network,
        average=make_average(model, config.training.average),
        optimizer=optimizer,
        schedule=make_schedule(optimizer, config.training, epoch_steps),
        scaler=make_scaler(device, precision),
        flow=GradientFlow(model),
        to_batch=batch_transform(config.augmentation, preprocess),
        mix=mixing(config.augmentation, classes),
        config=config.training,
        precision=precision,
        rank=share.rank,
        device=device,
    )
