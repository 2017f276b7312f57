"""CTMRL's gradient step in eager PyTorch, fidelity `paper`, once its codes are in use.

Source: docs/methods/ctmrl.md; the parts are those of `gentle_jax.algorithms.ctmrl.paper`, all on.
The mathematics and order of updates are those of `gentle_jax`. K-means is left out: it
is due every thousands of steps, and no timed step of either side has it.
"""

from benchmarks import torch_parts as parts
from benchmarks.torch_brac import BracSac
from benchmarks.torch_parts import F, torch

NORM_FLOOR, TINY = 1e-8, 1e-24  # below squared norms: of cosines, of matches


def unit(rows, floor):
    """Returns rows scaled to norm 1; zero rows stay 0."""
    return rows / (rows.square().sum(-1, keepdim=True) + floor).sqrt()


def cosine(a, b):
    """Returns the cosine of all pairs of rows."""
    return unit(a, NORM_FLOOR) @ unit(b, NORM_FLOOR).T


def match(codes, z):
    """Returns the code of each row of z: cosine argmax (Eq. 1)."""
    with torch.no_grad():
        return (unit(z, TINY) @ unit(codes, TINY).T).argmax(-1)


def group_contrast(anchor, positive, group, filler, temperature):
    """Eq. 10: InfoNCE between two views of each task, among the tasks of its code.

    Args: anchor and positive, z [task, Z]; group, codes; filler, negatives of those alone in one.
    """
    same = group[:, None] == group
    size = same.sum(1)
    allowed = same | ((size == 1)[:, None] & filler)
    logits = (cosine(anchor, positive) / temperature).masked_fill(~allowed, -torch.inf)
    row_loss = -torch.log_softmax(logits, -1).diagonal()
    return (row_loss / size).sum() / (1.0 / size).sum()  # of a code, then over those in use


class Ctmrl:
    """CTMRL with BRAC-SAC; starts from the parameters of a `gentle_jax` state of one run."""

    def __init__(self, job, device):
        """Args: job, of `torch_step.job_of`."""
        self.train, self.hp, self.config = job["train"], job["hp"]["algo"], job["algo"]
        self.tables, self.rl = parts.Tables(job["tables"], device), BracSac(job, device)
        rep, self.device = job["rep"], device
        self.encoder = parts.network(rep["encoder"], device)
        self.decoders = [
            parts.network(rep["prediction"][name], device) for name in ("reward", "transition")
        ]
        self.codes = torch.tensor(rep["codebook"], device=device, requires_grad=True)
        trained = [*parts.flat(self.encoder, *self.decoders), self.codes]
        self.rep_adam = parts.adam(trained, self.hp["lr"])

    def draw(self, index):
        """Returns the tasks, contexts and RL draws of one step."""
        tables, size = self.tables, self.train["context_size"]
        task_id = tables.tasks(self.train["meta_batch"])
        draws = {"task_id": task_id, "context": tables.context(task_id, size)}
        draws["rl"] = self.rl.draw(tables, task_id)
        if index % self.config["contrast_every"] == 0:
            every = tables.tasks(tables.num_tasks)
            draws["views"] = [tables.context(every, size) for _ in range(2)]
            draws["chance"] = torch.rand(len(every), len(every), device=self.device)
        return draws

    def step(self, draws, index):
        """One gradient step. Returns the losses, as tensors.

        Args: draws, {"context" [T * C, F]; "rl": of `BracSac.update`; where the contrast is due
        "views": anchor's and positive's contexts [task * C, F]; "chance", uniform [task, task]};
        index, an int.
        """
        z = parts.encoded(self.encoder, draws["context"], self.train["context_size"])
        losses = self.rl.update(draws["rl"], z.detach())
        matched = match(self.codes, z)
        own = self._rep_losses(draws, z, matched)
        if index % self.config["contrast_every"] == 0:
            own["contrast_loss"] = self.hp["contrast_weight"] * self._contrast(draws)
        parts.descend(self.rep_adam, sum(own.values()))
        self._move(z.detach(), matched)
        return losses | {name: loss.detach() for name, loss in own.items()}

    def _rep_losses(self, draws, z, matched):
        """Eq. 3 to 9: predictions from z and from its code on the first RL batch, z to its code."""
        rows, hp = draws["rl"]["batches"][0], self.hp
        similar = torch.log_softmax(cosine(z, self.codes.detach()) / hp["temperature"], -1)
        return {
            "prediction_loss": hp["prediction_weight"] * self._prediction_error(z, rows),
            "code_loss": hp["code_loss_weight"] * F.nll_loss(similar, matched),
            "cross_loss": hp["cross_weight"] * self._prediction_error(self.codes[matched], rows),
        }

    def _prediction_error(self, z, rows):
        z = parts.for_rows(z, len(rows["reward"]))
        seen = torch.cat((z, rows["obs"], rows["action"]), -1)
        reward, next_obs = (parts.mlp(decoder, seen) for decoder in self.decoders)
        return F.mse_loss(reward[:, 0], rows["reward"]) + F.mse_loss(next_obs, rows["next_obs"])

    def _contrast(self, draws):
        size, chance = self.train["context_size"], draws["chance"]
        anchor, positive = (parts.encoded(self.encoder, rows, size) for rows in draws["views"])
        group = match(self.codes, positive)
        with torch.no_grad():
            # a task's own place comes last, so `num_fillers` others come first
            order = (chance + torch.eye(len(chance), device=self.device)).argsort(1)
            first = order[:, : self.config["num_fillers"]]
            filler = torch.zeros_like(chance, dtype=torch.bool).scatter_(1, first, True)
        return group_contrast(anchor, positive, group, filler, self.hp["temperature"])

    def _move(self, z, matched):
        """Eq. 2: codes move towards the mean of the z that matched them before the step."""
        with torch.no_grad():
            chosen = F.one_hot(matched, len(self.codes)).to(z.dtype)  # [T, N]
            counts = chosen.sum(0)[:, None]
            target = chosen.T @ z / counts.clamp_min(1.0)
            self.codes.lerp_(target, self.hp["eta"] * (counts > 0))
