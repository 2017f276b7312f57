"""GENTLE's gradient step in eager PyTorch: the yardstick.

Source: docs/methods/gentle.md, "Task auto-encoder"; docs/methods/backbones.md, "TD3+BC". The
mathematics, shapes and order of operations are those of `gentle_jax`. Results that nobody reads are
not computed: the policy runs only on actor steps, and the actor's gradient skips the critics. The
release runs its policy at every step and uses it at every second one, so this step is the faster of
the two and the comparison the stricter one. PyTorch is never required.
"""

import time

import jax
import numpy as np

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None


def _layers(tree, depth):
    """Flax MLP parameters as [(weight [out, in], bias)]; several heads become one layer."""
    pairs = [(np.array(tree[n]["kernel"]).T, np.array(tree[n]["bias"])) for n in sorted(tree)]
    heads = pairs[depth:]
    joined = (np.concatenate([w for w, _ in heads]), np.concatenate([b for _, b in heads]))
    return [*pairs[:depth], joined]


def _member(tree, i):
    return {name: {k: v[i] for k, v in layer.items()} for name, layer in tree.items()}


def _mlp(layers, *inputs):
    x = torch.cat(inputs, -1)
    for weight, bias in layers[:-1]:
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, *layers[-1])


def _flat(layers):
    return [p for layer in layers for p in layer]


class TorchGentle:
    """GENTLE with TD3+BC; starts from the parameters of a `gentle_jax` state of one run."""

    def __init__(self, rep, rl, hp, depth, policy_delay, device="cpu"):
        """Args: rep, a RepState; rl, a TD3BCState; hp, {section: {name: float}}."""
        self.device, self.depth, self.policy_delay = device, depth, policy_delay
        self.hp, self.algo = hp["backbone"], hp["algo"]
        trained = lambda tree: self._tensors(tree, True)
        fixed = lambda tree: self._tensors(tree, False)
        self.encoder, self.decoder = trained(rep.params["encoder"]), trained(rep.params["context"])
        self.policy, self.target_policy = trained(rl.policy.params), fixed(rl.target_policy)
        self.critics = [trained(_member(rl.critics.params, i)) for i in (0, 1)]
        self.target_critics = [fixed(_member(rl.target_critics, i)) for i in (0, 1)]
        adam = lambda params, lr: torch.optim.Adam(params, lr=float(lr))
        self.rep_adam = adam(_flat(self.encoder) + _flat(self.decoder), self.algo["lr"])
        self.critic_adams = [adam(_flat(c), self.hp["lr"]) for c in self.critics]
        self.policy_adam = adam(_flat(self.policy), self.hp["lr"])

    def _tensors(self, tree, trained):
        make = lambda x: torch.tensor(x, device=self.device, requires_grad=trained)
        return [(make(w), make(b)) for w, b in _layers(tree, self.depth)]

    def _heads(self, layers, obs, z):
        mean, log_std = _mlp(layers, obs, z).chunk(2, -1)
        return mean, log_std.clamp(-20.0, 0.0)

    def _lowest(self, critics, obs, action, z):
        values = [_mlp(c, obs, action, z)[..., 0] for c in critics]
        return torch.minimum(*values)

    def step(self, batch, context, noise, index):
        """One gradient step. Returns the losses, as tensors: reconstruction, critic, BC.

        Args: batch, dict with obs, action, reward, next_obs, terminal [T, B, ...]; context, dict
        with obs, action, reward [T, C, ...]; noise, (target's, actor's) [T * B, A]; index, an int.
        """
        rows = torch.cat((context["obs"], context["action"], context["reward"][..., None]), -1)
        z = torch.tanh(_mlp(self.encoder, rows)).mean(1)  # [T, Z]
        size = batch["reward"].shape[1]
        z_rows = z.detach()[:, None].expand(-1, size, -1).reshape(-1, z.shape[-1])
        flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}
        target = self._critic_target(flat, z_rows, noise[0])
        recon = self._rep_step(context, z)
        losses = {"context_loss": recon, "q_loss": self._critic_step(flat, z_rows, target)}
        if index % self.policy_delay == 0:
            losses["bc_loss"] = self._actor_step(flat, z_rows, noise[1])
        return losses

    @staticmethod
    def _descend(adam, loss):
        params = adam.param_groups[0]["params"]
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        adam.step()

    def _rep_step(self, context, z):
        tiled = z[:, None].expand(-1, context["reward"].shape[1], -1)
        guess = _mlp(self.decoder, context["obs"], context["action"], tiled)[..., 0]
        loss = float(self.algo["recon_weight"]) * F.mse_loss(guess, context["reward"])
        self._descend(self.rep_adam, loss)
        return loss.detach()

    def _critic_target(self, batch, z, noise):
        hp = self.hp
        with torch.no_grad():
            clip = float(hp["noise_clip"])
            shift = (noise * float(hp["policy_noise"])).clamp(-clip, clip)
            mean, _ = self._heads(self.target_policy, batch["next_obs"], z)
            action = (torch.tanh(mean) + shift).clamp(-1.0, 1.0)
            value = self._lowest(self.target_critics, batch["next_obs"], action, z)
            keep = (1.0 - batch["terminal"]) * float(hp["discount"])
            return float(hp["reward_scale"]) * batch["reward"] + keep * value

    def _critic_step(self, batch, z, target):
        total = 0.0
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            loss = F.mse_loss(_mlp(critic, batch["obs"], batch["action"], z)[..., 0], target)
            self._descend(adam, loss)
            total = total + loss.detach()
        return total

    def _actor_step(self, batch, z, noise):
        mean, log_std = self._heads(self.policy, batch["obs"], z)
        action = torch.tanh(mean + log_std.exp() * noise)
        value = self._lowest(self.critics, batch["obs"], action, z)
        scale = float(self.hp["bc_weight"]) / value.abs().mean().detach()
        cloning = F.mse_loss(action, batch["action"])
        self._descend(self.policy_adam, -scale * value.mean() + cloning)
        tau = float(self.hp["tau"])
        targets = [self.target_policy, *self.target_critics]
        with torch.no_grad():
            for target, source in zip(targets, [self.policy, *self.critics], strict=True):
                for old, new in zip(_flat(target), _flat(source), strict=True):
                    old.lerp_(new, tau)
        return cloning.detach()


def _gather(table, index):
    """Rows `index` [T, B] of a table [T, rows, ...]."""
    task = torch.arange(index.shape[0], device=index.device)[:, None]
    return table[task, index]


class Loop:
    """Draws batches and takes steps, as a training loop would: [T, rows] tables on the device."""

    def __init__(self, learner, tables, relabelled, batch_size, context_size, relabel_ratio):
        """Args: tables and relabelled, dicts of numpy arrays [task, rows, ...]: data, buffer."""
        move = lambda d: {k: torch.tensor(np.array(v), device=learner.device) for k, v in d.items()}
        self.learner, self.tables, self.relabelled = learner, move(tables), move(relabelled)
        self.batch_size, self.made = batch_size, int(context_size * relabel_ratio)
        self.real, self.index = context_size - self.made, 0

    def _draw(self, table, size):
        tasks, rows = table["reward"].shape[:2]
        index = torch.randint(rows, (tasks, size), device=self.learner.device)
        return {name: _gather(column, index) for name, column in table.items()}

    def run(self, num_steps):
        """Takes `num_steps` steps; returns their wall clock in seconds."""
        begin = time.perf_counter()
        inputs = {name: self.tables[name] for name in self.relabelled}
        for _ in range(num_steps):
            made = self._draw(self.relabelled, self.made)
            real = self._draw(inputs, self.real)
            context = {name: torch.cat((made[name], real[name]), 1) for name in made}
            batch = self._draw(self.tables, self.batch_size)
            shape = (batch["reward"].numel(), batch["action"].shape[-1])
            noise = [torch.randn(shape, device=self.learner.device) for _ in range(2)]
            losses = self.learner.step(batch, context, noise, self.index)
            self.index += 1
        float(losses["q_loss"])  # waits for a device that runs ahead
        return time.perf_counter() - begin


def make_loop(problem, state, threads):
    """Returns the Loop of a `train_step.Problem`, or None without torch or for another algorithm.

    Args: state, an AgentState of one run, whose parameters it starts from; threads, on a CPU.
    """
    config = problem.config
    if torch is None or config.run.algorithm != "gentle":
        return None
    torch.set_num_threads(threads)
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    state = jax.device_get(state)
    learner = TorchGentle(
        state.rep, state.rl, state.hp, config.algo.depth, config.backbone.policy_delay,
        "cuda" if on_gpu else "cpu",
    )  # fmt: skip
    rows = problem.data.rows._asdict()
    del rows["context_reward"]
    inputs = {name: rows[name] for name in ("obs", "action", "reward")}
    blocks = 1 + config.algo.num_cross_tasks
    index = np.arange(config.algo.relabel_rows * blocks) % rows["reward"].shape[1]
    relabelled = {name: column[:, index] for name, column in inputs.items()}
    return Loop(
        learner, rows, relabelled, config.train.batch_size, config.train.context_size,
        config.algo.relabel_ratio,
    )  # fmt: skip
