"""Several nets of one architecture at once (torch.func, vmap) against one after another.

Prints CPU seconds of both for the same nets, the same batches and the same number of updates:
`python benchmarks/train_many.py digits mnist gtsrb --nets 8 --steps 60`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from backsweep.models.training import Recipe
from backsweep.zoo.tasks import TASKS


def batches(x: Tensor, y: Tensor, nets: int, steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """For every step the batches of all nets, (K, B, C, H, W) and (K, B)."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(len(x), (nets, size), generator=generator) for _ in range(steps)]
    return [(x[r], y[r]) for r in rows]


def one_after_another(nets: list[nn.Module], work: list[tuple[Tensor, Tensor]], recipe: Recipe) -> None:
    """The loop of `backsweep.models.training.fit`, without its bookkeeping."""
    for k, net in enumerate(nets):
        net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(net.parameters(), recipe.lr)
        for x, y in work:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                image = x[k].contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(net(image).float(), y[k])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def all_at_once(nets: list[nn.Module], work: list[tuple[Tensor, Tensor]], recipe: Recipe) -> None:
    """One stacked set of weights (K, ...), one optimizer, gradients by vmap over the nets."""
    for net in nets:
        net.train()
    weights, buffers = stack_module_state(nets)
    skeleton = nets[0]
    optimizer = torch.optim.AdamW(weights.values(), recipe.lr)

    def loss_of(w: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            return F.cross_entropy(functional_call(skeleton, (w, b), (x,)).float(), y)

    gradients = vmap(grad(loss_of), randomness="different")
    for x, y in work:
        for name, g in gradients(weights, buffers, x, y).items():
            weights[name].grad = g
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--nets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3, help="the fastest run counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.tasks:
        task = TASKS[name]
        train, _ = task.load()
        work = batches(train.x, train.y, given.nets, given.steps, task.recipe.batch_size)
        for bf16 in (True, False):
            recipe = replace(task.recipe, bf16=bf16)
            cost = {}
            for method in (one_after_another, all_at_once):
                runs = []
                for _ in range(given.repeat):
                    nets = [task.net(s) for s in range(given.nets)]
                    begin = time.process_time()
                    method(nets, work, recipe)
                    runs.append(time.process_time() - begin)
                cost[method.__name__] = min(runs)
            alone, together = cost.values()
            print(
                f"{name:<8} {'bf16' if bf16 else 'fp32'} {given.nets} nets x {given.steps} updates: "
                f"one after another {alone:.2f} s, at once {together:.2f} s, ratio {alone / together:.2f}"
            )


if __name__ == "__main__":
    main()
