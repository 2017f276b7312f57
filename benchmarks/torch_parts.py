"""What the PyTorch steps share: networks, Adam, rows of tasks, the loop over steps.

Nothing here imports JAX: seeds may run in processes of their own (`torch_process`). What makes
eager PyTorch fast and is usual is done: ReLU in place, fused Adam, rows taken from flat tables by
`index_select`. PyTorch is never required.
"""

import time

import numpy as np

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = F = None

FUSED = True  # Adam in one pass over the parameters, the fastest of PyTorch's three
RL_COLUMNS = ("obs", "action", "reward", "next_obs", "terminal")


def network(tree, device, trained=True, heads=1):
    """Returns a network's layers, [(weight [out, in], bias)]; several heads become one layer.

    Args: tree, parameters of `gentle_jax.networks.mlp`, as numpy arrays; trained, by gradients.
    """
    pairs = [(np.array(tree[n]["kernel"]).T, np.array(tree[n]["bias"])) for n in sorted(tree)]
    depth = len(pairs) - heads
    joined = tuple(np.concatenate(parts) for parts in zip(*pairs[depth:], strict=True))
    make = lambda x: torch.tensor(x, device=device, requires_grad=trained)
    return [(make(weight), make(bias)) for weight, bias in (*pairs[:depth], joined)]


def member(tree, i):
    """Returns the parameters of network `i` of an ensemble."""
    return {name: {k: v[i] for k, v in layer.items()} for name, layer in tree.items()}


def mlp(layers, *inputs):
    """Returns [rows, out] of inputs [rows, F_i]."""
    x = torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0]
    for weight, bias in layers[:-1]:
        x = F.linear(x, weight, bias).relu_()
    return F.linear(x, *layers[-1])


def flat(*networks):
    """Returns the parameters of networks in one list."""
    return [p for layers in networks for layer in layers for p in layer]


def encoded(encoder, context, size):
    """Returns z [T, Z] of contexts [T * size, F]: the mean of tanh(f(row))."""
    return mlp(encoder, context).tanh_().view(-1, size, encoder[-1][1].numel()).mean(1)


def for_rows(z, rows):
    """Returns z [T, Z] as [rows, Z]: each for its group of consecutive rows."""
    return z[:, None].expand(-1, rows // len(z), -1).reshape(rows, -1)


def adam(params, lr):
    """Returns the optimiser of all these parameters."""
    return torch.optim.Adam(params, lr=lr, fused=FUSED)


def descend(optimiser, loss):
    """Takes one step: gradients of the optimiser's parameters only."""
    params = optimiser.param_groups[0]["params"]
    for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        param.grad = grad
    optimiser.step()


def polyak(targets, sources, tau):
    """Moves lists of parameters: (1 - tau) * target + tau * source."""
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)  # one call, as optimisers do it


class Tables:
    """Rows of tasks on the device; draws are with replacement."""

    def __init__(self, columns, device):
        """Args: columns, {name: numpy array [task, row, ...]}."""
        self.device = device
        self.num_tasks, self.num_rows = next(iter(columns.values())).shape[:2]
        move = lambda x: torch.tensor(x.reshape(-1, *x.shape[2:]), device=device)
        self.columns = {name: move(x) for name, x in columns.items()}

    def tasks(self, count):
        """Returns `count` distinct tasks; all of them in order where there are no more."""
        if count == self.num_tasks:
            return torch.arange(count, device=self.device)
        return torch.randperm(self.num_tasks, device=self.device)[:count]

    def draw(self, task_id, size, *names):
        """Returns {name: [T * size, ...]}, uniform over all rows of each task."""
        index = torch.randint(self.num_rows, (len(task_id), size), device=self.device)
        index = (index + task_id[:, None] * self.num_rows).view(-1)
        return {name: self.columns[name].index_select(0, index) for name in names}

    def context(self, task_id, size):
        """Returns contexts [T * size, F]: s, a, r of each row."""
        return self.draw(task_id, size, "context")["context"]


class Loop:
    """Draws batches and takes steps, as a training loop would."""

    def __init__(self, learner):
        """Args: learner, with draw(index) -> draws and step(draws, index) -> losses."""
        self.learner, self.index = learner, 0

    def run(self, num_steps):
        """Takes `num_steps` steps; returns their wall clock in seconds."""
        begin = time.perf_counter()
        for _ in range(num_steps):
            losses = self.learner.step(self.learner.draw(self.index), self.index)
            self.index += 1
        float(losses["q_loss"])  # waits for a device that runs ahead
        return time.perf_counter() - begin
