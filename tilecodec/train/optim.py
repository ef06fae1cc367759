"""Muon for matrices (convolution kernels flattened to matrices), AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

ENDS = ("vae.front.", "vae.back.", "vae.lap.")
"""Names of the block transforms' tensors."""
END_SHARE = 0.02
"""Learning rate of the block transforms, as a share of AdamW's: every pixel is a sum of 192 of their weights, so steps
that suit other tensors shake the picture by several grey levels."""


class MuonAdamW:
    """torch's Muon on every hidden matrix and torch's AdamW on the rest, stepped as one.

    torch.optim.Muon takes 2-D parameters only: convolution kernels (out, in, kh, kw) are given to it as views
    (out, kh kw in) that share their memory. The matrices are dealt out to ``workers`` optimizers that step at once.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float, muon_lr: float, workers: int = 1
    ) -> None:
        self._views: list[tuple[nn.Parameter, nn.Parameter]] = []
        rest: list[nn.Parameter] = []
        ends: list[nn.Parameter] = []
        for name, parameter in named:
            if name.startswith(ENDS):
                ends.append(parameter)
            elif is_hidden_matrix(name, parameter):
                view = nn.Parameter(_as_matrix(parameter.data))
                if view.data_ptr() != parameter.data_ptr():
                    raise ValueError(f"{name}: a kernel must lie in channels_last order to be seen as a matrix")
                self._views.append((parameter, view))
            else:
                rest.append(parameter)
        groups = [{"params": rest, "share": 1.0}, {"params": ends, "share": END_SHARE}]
        self.adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        views = sorted((view for _, view in self._views), key=lambda v: v.numel() * min(v.shape), reverse=True)
        shares = [views[n::workers] for n in range(workers) if views[n::workers]]
        self.muons = [torch.optim.Muon(share, lr=muon_lr, weight_decay=0.0, ns_steps=4) for share in shares]
        self._pool = ThreadPoolExecutor(workers)
        self._base_lr = {"adamw": lr, "muon": muon_lr}

    def step(self, factor: float) -> None:
        """One update with the learning rates multiplied by ``factor``; gradients are cleared after."""
        for optimizer in (self.adamw, *self.muons):
            base = self._base_lr["adamw" if optimizer is self.adamw else "muon"]
            for group in optimizer.param_groups:
                group["lr"] = base * factor * group.get("share", 1.0)
        for parameter, view in self._views:
            if parameter.grad is not None:
                view.grad = _as_matrix(parameter.grad)
        self.adamw.step()
        list(self._pool.map(lambda muon: muon.step(), self.muons))
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drops all gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for parameter, view in self._views:
            parameter.grad = None
            view.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states."""
        return {"adamw": self.adamw.state_dict(), "muon": [muon.state_dict() for muon in self.muons]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.adamw.load_state_dict(state["adamw"])
        for muon, own in zip(self.muons, state["muon"], strict=True):
            muon.load_state_dict(own)


def _as_matrix(kernel: Tensor) -> Tensor:
    """(out, in, kh, kw) in channels_last order, or (out, in), as (out, kh kw in)."""
    rows = kernel if kernel.ndim == 2 else kernel.permute(0, 2, 3, 1)
    return rows.reshape(kernel.shape[0], -1)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should train it: a dense kernel or matrix within the network: not its ends, not depthwise."""
    if parameter.ndim not in (2, 4) or "entropy_bottleneck" in name or "log_" in name or "pattern" in name:
        return False
    rows, cols = parameter.shape[0], parameter[0].numel()
    ends = name.startswith(ENDS) or "scale_shift" in name
    return not ends and rows >= 32 and cols >= 32
