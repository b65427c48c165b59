"""What an optimizer works on where parameters are too coarse for small updates.

A bfloat16 number has 8 significant bits: an update below a 256th of it is lost. So the optimizer
keeps float32 copies, and gradients of micro-batches are added up in float32, too.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter


class Masters:
    """For each trained parameter the one that is stepped: itself, or its float32 copy.

    A copy's gradient is filled by the backward pass, parameter by parameter, so that no second set
    of gradients is held.
    """

    def __init__(self, trained: Iterable[Parameter]) -> None:
        self._trained = list(trained)
        self.stepped = [_stepped(parameter) for parameter in self._trained]

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies into the model."""
        for parameter, master in zip(self._trained, self.stepped, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state(self) -> list[Tensor]:
        return [master.detach() for master in self.stepped]

    @torch.no_grad()
    def load(self, state: Iterable[Tensor]) -> None:
        for master, saved in zip(self.stepped, state, strict=True):
            master.copy_(saved)
        self.write_back()


def _stepped(parameter: Parameter) -> Parameter:
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    master = Parameter(parameter.detach().float())

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(take)
    return master
