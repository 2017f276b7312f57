"""GENTLE's gradient step in eager PyTorch, on TD3+BC.

Source: docs/methods/gentle.md, "Task auto-encoder"; docs/methods/backbones.md, "TD3+BC". The
mathematics and order of updates are those of `gentle_jax`. Results that nobody reads are
not computed: the policy runs only on actor steps, and the actor's gradient skips the critics. The
release runs its policy at every step and uses it at every second one, so this step is the faster of
the two and the comparison the stricter one.
"""

import functools

import numpy as np

from benchmarks import torch_parts as parts
from benchmarks.torch_parts import F, torch


class Gentle:
    """GENTLE with TD3+BC; starts from the parameters of a `gentle_jax` state of one run."""

    def __init__(self, job, device):
        """Args: job, of `torch_step.job_of`."""
        rep, rl, self.device = job["rep"], job["rl"], device
        self.algo, self.hp = job["hp"]["algo"], job["hp"]["backbone"]
        self.train, self.policy_delay = job["train"], job["backbone"]["policy_delay"]
        net = functools.partial(parts.network, device=device)
        self.encoder, self.decoder = net(rep["encoder"]), net(rep["context"])
        self.policy = net(rl["policy"], heads=2)
        self.target_policy = net(rl["target_policy"], trained=False, heads=2)
        self.critics = [net(parts.member(rl["critics"], i)) for i in (0, 1)]
        old = [parts.member(rl["target_critics"], i) for i in (0, 1)]
        self.target_critics = [net(tree, trained=False) for tree in old]
        self.rep_adam = parts.adam(parts.flat(self.encoder, self.decoder), self.algo["lr"])
        self.critic_adam = parts.adam(parts.flat(*self.critics), self.hp["lr"])
        self.policy_adam = parts.adam(parts.flat(self.policy), self.hp["lr"])
        self._fill(job["algo"], job["tables"])

    def _fill(self, algo, tables):
        """Makes the tables: data, and rows in place of relabelled ones, as many as those."""
        blocks = 1 + algo["num_cross_tasks"]
        index = np.arange(algo["relabel_rows"] * blocks) % tables["reward"].shape[1]
        relabelled = {"context": tables["context"][:, index]}
        self.tables = parts.Tables(tables, self.device)
        self.relabelled = parts.Tables(relabelled, self.device)
        self.made = int(self.train["context_size"] * algo["relabel_ratio"])

    def draw(self, index):
        """Returns the batch, context and noise of one step."""
        del index
        task_id = self.tables.tasks(self.train["meta_batch"])
        batch = self.tables.draw(task_id, self.train["batch_size"], *parts.RL_COLUMNS)
        real = self.train["context_size"] - self.made
        context = (self.relabelled.context(task_id, self.made), self.tables.context(task_id, real))
        by_task = [rows.view(len(task_id), -1, rows.shape[-1]) for rows in context]
        noise = [torch.randn_like(batch["action"]) for _ in range(2)]
        return {"batch": batch, "context": torch.cat(by_task, 1).flatten(0, 1), "noise": noise}

    def step(self, draws, index):
        """One gradient step. Returns the losses, as tensors: reconstruction, critic, BC.

        Args: draws, {"batch": {obs, action, reward, next_obs, terminal [T * B, ...]}, "context"
        [T * C, F], "noise": target's and actor's [T * B, A]}; index, an int.
        """
        batch, context = draws["batch"], draws["context"]
        z = parts.encoded(self.encoder, context, self.train["context_size"])
        z_rows = parts.for_rows(z.detach(), len(batch["reward"]))
        losses = {"context_loss": self._rep_step(context, z)}
        losses["q_loss"] = self._critic_step(batch, z_rows, draws["noise"][0])
        if index % self.policy_delay == 0:
            losses["bc_loss"] = self._actor_step(batch, z_rows, draws["noise"][1])
        return losses

    def _rep_step(self, context, z):
        seen = torch.cat((context[:, :-1], parts.for_rows(z, len(context))), -1)  # s, a, z
        error = F.mse_loss(parts.mlp(self.decoder, seen)[:, 0], context[:, -1])
        loss = self.algo["recon_weight"] * error
        parts.descend(self.rep_adam, loss)
        return loss.detach()

    def _lowest(self, critics, obs, action, z):
        seen = torch.cat((obs, action, z), -1)
        return torch.minimum(*(parts.mlp(critic, seen)[:, 0] for critic in critics))

    def _critic_target(self, batch, z, noise):
        hp = self.hp
        with torch.no_grad():
            shift = (noise * hp["policy_noise"]).clamp_(-hp["noise_clip"], hp["noise_clip"])
            mean, _ = parts.mlp(self.target_policy, batch["next_obs"], z).chunk(2, -1)
            action = (mean.tanh() + shift).clamp_(-1.0, 1.0)
            value = self._lowest(self.target_critics, batch["next_obs"], action, z)
            keep = (1.0 - batch["terminal"]) * hp["discount"]
            return hp["reward_scale"] * batch["reward"] + keep * value

    def _critic_step(self, batch, z, noise):
        target = self._critic_target(batch, z, noise)
        seen = torch.cat((batch["obs"], batch["action"], z), -1)
        loss = sum(F.mse_loss(parts.mlp(critic, seen)[:, 0], target) for critic in self.critics)
        parts.descend(self.critic_adam, loss)
        return loss.detach()

    def _actor_step(self, batch, z, noise):
        mean, log_std = parts.mlp(self.policy, batch["obs"], z).chunk(2, -1)
        action = torch.tanh(mean + log_std.clamp(-20.0, 0.0).exp() * noise)
        value = self._lowest(self.critics, batch["obs"], action, z)
        scale = self.hp["bc_weight"] / value.abs().mean().detach()
        cloning = F.mse_loss(action, batch["action"])
        parts.descend(self.policy_adam, -scale * value.mean() + cloning)
        targets = parts.flat(self.target_policy, *self.target_critics)
        parts.polyak(targets, parts.flat(self.policy, *self.critics), self.hp["tau"])
        return cloning.detach()
