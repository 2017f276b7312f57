"""BRAC-SAC's update in eager PyTorch, and FOCAL's gradient step on it.

Source: docs/methods/backbones.md, "BRAC-SAC"; docs/methods/focal.md, "Distance loss". The
mathematics and order of updates are those of `gentle_jax`. Results that nobody reads are
not computed: no gradient of the critics' loss in z, of the further batches of the dual critic only
states and actions, and one pass of the policy for its own step and the dual critic's first.
"""

import functools
import math

from benchmarks import torch_parts as parts
from benchmarks.torch_parts import F, torch

LOG_2PI = math.log(2.0 * math.pi)


def value_penalty(value):
    """Returns mean max(|c| - 1, 0)^2."""
    return ((1e-8 + value**2).sqrt() - 1.0).clamp_min(0.0).square().mean()


def dual_kl(c_policy, c_data):
    """Returns the mean of BRAC's dual estimate of KL(policy | data)."""
    return (1.0 + torch.log(F.softplus(c_policy) + 1e-8) - F.softplus(c_data)).mean()


class BracSac:
    """BRAC-SAC; starts from the parameters of a `gentle_jax` state of one run."""

    def __init__(self, job, device):
        """Args: job, of `torch_step.job_of`."""
        rl, hp, self.device = job["rl"], job["hp"]["backbone"], device
        self.hp, self.config, self.train = hp, job["backbone"], job["train"]
        self.dual_steps = self.config["dual_steps"] if self.config["use_brac"] else 0
        net = functools.partial(parts.network, device=device)
        self.policy = net(rl["policy"], heads=2)
        self.critics = [net(parts.member(rl["critics"], i)) for i in (0, 1)]
        self.value = net(rl["value"])
        self.target_value = net(rl["target_value"], trained=False)
        self.dual, self.alpha = net(rl["dual"]), torch.tensor(float(rl["alpha"]), device=device)
        self.policy_adam = parts.adam(parts.flat(self.policy), hp["policy_lr"])
        self.critic_adam = parts.adam(parts.flat(*self.critics), hp["lr"])
        self.value_adam = parts.adam(parts.flat(self.value), hp["lr"])
        self.dual_adam = parts.adam(parts.flat(self.dual), hp["dual_lr"])

    def draw(self, tables, task_id):
        """Returns the draws of one update: those of `update`."""
        draw = lambda *names: tables.draw(task_id, self.train["batch_size"], *names)
        more = [draw("obs", "action") for _ in range(1, self.dual_steps)]
        batches = [draw(*parts.RL_COLUMNS), *more]
        rows = len(batches[0]["reward"])
        mix = [torch.rand(rows, 1, device=self.device) for _ in range(self.dual_steps)]
        noise = [torch.randn_like(batch["action"]) for batch in batches]
        return {"batches": batches, "noise": noise, "mix": mix}

    def update(self, draws, z):
        """One update. Returns the losses, as tensors.

        Args: draws, {"batches": dicts of rows [T * B, ...], the first with obs, action, reward,
        next_obs, terminal, others with obs, action for the dual critic's other steps; "noise"
        [T * B, A] of each one's actions; "mix" [T * B, 1] for each of the dual critic's steps};
        z [T, Z], without gradient.
        """
        batch = draws["batches"][0]
        z = parts.for_rows(z, len(batch["reward"]))
        seen = torch.cat((batch["obs"], z), -1)
        stored = torch.cat((batch["obs"], batch["action"], z), -1)
        heads = self._heads(seen)
        action, log_p = self._sample(*heads, draws["noise"][0])
        for step in range(self.dual_steps):
            self._dual_step(draws, z, step, action.detach(), stored)
        q_loss = self._critic_step(batch, z, stored)
        soft_value, metrics = self._policy_step(batch, z, stored, heads, action, log_p)
        return {"q_loss": q_loss, "v_loss": self._value_step(seen, soft_value)} | metrics

    def _heads(self, seen):
        """Mean and log std of the policy before tanh. Args: seen, (obs, z)."""
        mean, log_std = parts.mlp(self.policy, seen).chunk(2, -1)
        return mean, log_std.clamp(-20.0, 0.0)

    @staticmethod
    def _sample(mean, log_std, noise):
        """Returns (action, its log-probability)."""
        action = torch.tanh(mean + log_std.exp() * noise)
        log_normal = -0.5 * (noise**2 + LOG_2PI) - log_std
        return action, (log_normal - torch.log(1.0 - action**2 + 1e-6)).sum(-1)

    def _dual_step(self, draws, z, step, action, stored):
        """A step of the dual critic. Args: action and stored (obs, action, z) of the first one."""
        batch = draws["batches"][step]
        obs, data = batch["obs"], batch["action"]
        with torch.no_grad():
            if step:
                mean, log_std = self._heads(torch.cat((obs, z), -1))
                action = torch.tanh(mean + log_std.exp() * draws["noise"][step])
                stored = torch.cat((obs, data, z), -1)
            mixed = action + draws["mix"][step] * (data - action)
        at = lambda *inputs: parts.mlp(self.dual, *inputs)[:, 0]
        if self.config["true_gradient_penalty"]:
            mixed.requires_grad_()
            value = at(obs, mixed, z).sum()
            (slope,) = torch.autograd.grad(value, mixed, create_graph=True)
            penalty = value_penalty((1e-8 + slope.square().sum(-1)).sqrt())
        else:
            penalty = value_penalty(at(obs, mixed, z))
        estimate = dual_kl(at(obs, action, z), at(stored))
        parts.descend(self.dual_adam, -estimate + self.hp["penalty_weight"] * penalty)

    def _critic_step(self, batch, z, stored):
        hp = self.hp
        with torch.no_grad():
            next_value = parts.mlp(self.target_value, batch["next_obs"], z)[:, 0]
            keep = (1.0 - batch["terminal"]) * hp["discount"]
            target = hp["reward_scale"] * batch["reward"] + keep * next_value
        loss = sum(F.mse_loss(parts.mlp(critic, stored)[:, 0], target) for critic in self.critics)
        parts.descend(self.critic_adam, loss)
        return loss.detach()

    def _policy_step(self, batch, z, stored, heads, action, log_p):
        """Returns (soft value that the value step aims at, metrics)."""
        hp, (mean, log_std) = self.hp, heads
        drawn = torch.cat((batch["obs"], action, z), -1)
        value = torch.minimum(*(parts.mlp(critic, drawn)[:, 0] for critic in self.critics))
        loss, metrics = (log_p - value).mean(), {"entropy": -log_p.detach().mean()}
        if self.dual_steps:
            with torch.no_grad():
                c_data = parts.mlp(self.dual, stored)[:, 0]
            gap = dual_kl(parts.mlp(self.dual, drawn)[:, 0], c_data)
            loss = loss + self.alpha.clamp(0.0, hp["alpha_max"]) * gap
            metrics["divergence"] = gap.detach()
        loss = loss + hp["mean_penalty"] * mean.square().mean()
        loss = loss + hp["std_penalty"] * log_std.square().mean()
        parts.descend(self.policy_adam, loss)
        if self.dual_steps:
            self._dual_weight_step(metrics["divergence"])
        return (value - log_p).detach(), metrics

    def _value_step(self, seen, soft_value):
        loss = F.mse_loss(parts.mlp(self.value, seen)[:, 0], soft_value)
        parts.descend(self.value_adam, loss)
        parts.polyak(parts.flat(self.target_value), parts.flat(self.value), self.hp["tau"])
        return loss.detach()

    def _dual_weight_step(self, gap):
        self.alpha = self.alpha + self.hp["alpha_lr"] * (gap - self.hp["target_divergence"])
        if self.config["clip_stored_alpha"]:
            self.alpha = self.alpha.clamp(0.0, self.hp["alpha_max"])


def focal_loss(z, task_id):
    """Returns FOCAL's inverse-distance metric loss of z [T, Z], without its weight."""
    distance = (z[:, None] - z).square().mean(-1)
    pair = torch.ones_like(distance).triu(1)
    same = pair * (task_id[:, None] == task_id)
    other = pair - same
    near = (same * (distance + 1e-3).sqrt()).sum() / (same.sum() + 1e-3)
    return near + (other / (distance + 0.1)).sum() / (other.sum() + 1e-3)


class Focal:
    """FOCAL with BRAC-SAC; starts from the parameters of a `gentle_jax` state of one run."""

    def __init__(self, job, device):
        """Args: job, of `torch_step.job_of`."""
        self.train, self.hp = job["train"], job["hp"]["algo"]
        self.tables, self.rl = parts.Tables(job["tables"], device), BracSac(job, device)
        self.encoder = parts.network(job["rep"]["encoder"], device)
        self.rep_adam = parts.adam(parts.flat(self.encoder), self.hp["lr"])

    def draw(self, index):
        """Returns the tasks, context and RL draws of one step."""
        del index
        task_id = self.tables.tasks(self.train["meta_batch"])
        context = self.tables.context(task_id, self.train["context_size"])
        return {"task_id": task_id, "context": context, "rl": self.rl.draw(self.tables, task_id)}

    def step(self, draws, index):
        """One gradient step. Returns the losses, as tensors.

        Args: draws, {"task_id" [T], "context" [T * C, F], "rl": of `BracSac.update`}; index,
        an int.
        """
        del index
        z = parts.encoded(self.encoder, draws["context"], self.train["context_size"])
        losses = self.rl.update(draws["rl"], z.detach())
        loss = self.hp["focal_weight"] * focal_loss(z, draws["task_id"])
        parts.descend(self.rep_adam, loss)
        return losses | {"focal_loss": loss.detach()}
