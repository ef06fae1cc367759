"""Muon for matrices (convolution kernels flattened to matrices), AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from tilecodec.errors import TrainingError

ENDS = ("vae.front.", "vae.back.", "vae.lap.")
"""Names of the block transforms' tensors."""
END_SHARE = 0.02
"""Learning rate of the block transforms, as a share of AdamW's: every pixel is a sum of 192 of their weights, so steps
that suit other tensors shake the picture by several grey levels."""


class MuonAdamW:
    """torch's Muon on every hidden matrix and torch's AdamW on the rest, stepped as one.

    torch.optim.Muon takes 2-D parameters only: convolution kernels (out, in, kh, kw) are given to it as views
    (out, kh kw in) that share their memory. The matrices are dealt out to ``workers`` optimizers that step at once.

    Args:
        named: parameters by name; frozen ones are left out.
        lr: AdamW's.
        muon_lr: Muon's; None gives AdamW all parameters.
        workers: threads that step Muon.
        betas: AdamW's.
        weight_decay: of both.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        muon_lr: float | None,
        workers: int = 1,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ) -> None:
        self._views: list[tuple[str, nn.Parameter, nn.Parameter]] = []
        rest: list[nn.Parameter] = []
        ends: list[nn.Parameter] = []
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            if name.startswith(ENDS):
                ends.append(parameter)
            elif muon_lr is not None and is_hidden_matrix(name, parameter):
                view = nn.Parameter(_as_matrix(parameter.data))
                if view.data_ptr() != parameter.data_ptr():
                    raise ValueError(f"{name}: a kernel must lie in channels_last order to be seen as a matrix")
                self._views.append((name, parameter, view))
            else:
                rest.append(parameter)
        groups = [{"params": rest, "share": 1.0}, {"params": ends, "share": END_SHARE}]
        self.adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay)
        self._dealt = self._deal(workers)
        self.muons = [
            torch.optim.Muon([view for _, view in share], lr=muon_lr or 0.0, weight_decay=weight_decay, ns_steps=4)
            for share in self._dealt
        ]
        self._pool = ThreadPoolExecutor(workers)
        self._base_lr = {"adamw": lr, "muon": muon_lr or 0.0}

    def _deal(self, workers: int) -> list[list[tuple[str, nn.Parameter]]]:
        """Names and views of each worker's matrices, the costly ones spread."""
        ordered = sorted(
            ((name, view) for name, _, view in self._views),
            key=lambda named: named[1].numel() * min(named[1].shape),
            reverse=True,
        )
        return [ordered[n::workers] for n in range(workers) if ordered[n::workers]]

    def step(self, factor: float) -> None:
        """One update with the learning rates multiplied by ``factor``; gradients are cleared after."""
        for optimizer in (self.adamw, *self.muons):
            base = self._base_lr["adamw" if optimizer is self.adamw else "muon"]
            for group in optimizer.param_groups:
                group["lr"] = base * factor * group.get("share", 1.0)
        for _, parameter, view in self._views:
            if parameter.grad is not None:
                view.grad = _as_matrix(parameter.grad)
        self.adamw.step()
        list(self._pool.map(lambda muon: muon.step(), self.muons))
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drops all gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for _, parameter, view in self._views:
            parameter.grad = None
            view.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states; Muon's by the parameters' names, whatever the number of workers."""
        momenta = {
            name: muon.state[view]
            for muon, share in zip(self.muons, self._dealt, strict=True)
            for name, view in share
            if view in muon.state
        }
        return {"adamw": self.adamw.state_dict(), "muon": momenta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            TrainingError: the state is of other parameters.
        """
        momenta = state["muon"]
        if isinstance(momenta, list):  # as written before states had names: one for each worker
            momenta = self._named(momenta)
        own = {name for name, _, _ in self._views}
        if set(momenta) - own:
            raise TrainingError(
                "the optimizer's state is of other parameters",
                got=sorted(set(momenta) - own)[:4],
                expected=f"some of {len(own)} matrices",
                hint="Resume with the recipe the run began with",
            )
        try:
            self.adamw.load_state_dict(state["adamw"])
        except ValueError as error:
            hint = "Resume with the recipe the run began with"
            raise TrainingError("the optimizer's state is of other parameters", got=str(error), hint=hint) from error
        for muon, share in zip(self.muons, self._dealt, strict=True):
            for name, view in share:
                if name in momenta:
                    kept = momenta[name]
                    muon.state[view] = {
                        k: v.to(view.device) if isinstance(v, Tensor) and v.ndim else v for k, v in kept.items()
                    }

    def _named(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for share, state in zip(self._deal(len(states)), states, strict=True):
            found |= {name: state["state"][n] for n, (name, _) in enumerate(share) if n in state["state"]}
        return found


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
