"""What rows say of a task against what the environment says, and why the two may differ."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from gentle_jax.interop import samples
from gentle_jax.types import Env, HostArray, Step, Transition

SCALES = (  # one is near enough to any, also where bodies do not move in proportion
    0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
    1.1, 1.25, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0,
)  # fmt: skip
FEW_ROWS = 24  # of a task that reasons are tried on
MIN_ROWS = 4  # that a reason can be told from
EXPLAINED = 4
ROUNDED_TASKS = 4  # that tell how much rounding explains
BETTER = 0.5  # a reason must leave at most this share of an error
EXPLAINS = 0.1  # and no more than this of what rows change
ODD_ENDS = 0.2  # share of a task's ends that may be near the edge, where engines part
ODD_ENDS_OF_ALL = 0.08  # the same of all tasks, of whom FEW_ENDS say nothing
FEW_ENDS = 4
ODD_ENDS_OF_ROUNDED = 0.5  # of a task's, where rounding moves what ends an episode
NOISIER = 2.0  # how much larger than by the noise that was tried an error of rounding may be
PerTask = Float[HostArray, " T"]


class Seen(NamedTuple):
    """Rows of every task beside what an Env makes of them."""

    env: Env
    drawn: list  # of samples.Sample
    predicted: list  # rewards [N] of each task
    spread: Float[HostArray, " obs"]  # what rows change at all, in each number of an observation
    reward_spread: float
    transitions: PerTask  # errors
    rewards: PerTask
    correlations: PerTask
    ends: tuple = ()  # (stored terminals, those of Env.step), each [N], of each task

    @classmethod
    def of(cls, env: Env, drawn: list) -> "Seen":
        """Returns what `Env.replay` makes of samples, one a task."""
        moves = np.concatenate([one.rows.next_obs - one.rows.obs for one in drawn])
        spread = np.sqrt((moves.astype(np.float64) ** 2).mean(0))
        seen = cls(env, drawn, [], spread, _spread(drawn), *[np.full(len(drawn), np.nan)] * 3)
        if env.replay is None:
            return seen
        out = [seen.step(task, one) for task, one in enumerate(drawn)]
        rewards = [np.asarray(step.reward) for step in out]
        errors = [seen.moved(step, one) for step, one in zip(out, drawn, strict=True)]
        ends = []
        for one, step in zip(drawn, out, strict=True):
            known = np.isfinite(np.asarray(step.reward))
            # whether a fall at the time limit is a true end, not every format says
            at_limit = (one.step == env.horizon - 1) & (one.rows.terminal <= 0)
            predicted = np.where(at_limit, 0.0, np.asarray(step.terminal))
            ends.append((one.rows.terminal[known], predicted[known]))
        return _with_rewards(seen, rewards)._replace(
            transitions=np.array(errors), ends=tuple(ends) if env.ends_early else ()
        )

    def step(
        self, task: int, sample: samples.Sample, by: int | None = None, scale: float = 1.0
    ) -> Step:
        """Returns the Step of a task's sample. Args: by, another task; scale, of actions."""
        scaled = lambda rows: rows._replace(action=np.clip(rows.action * scale, -1.0, 1.0))
        chosen = jax.tree.map(lambda leaf: leaf[task if by is None else by], self.env.tasks)
        return self.env.replay(chosen, scaled(sample.before), scaled(sample.rows))

    def moved(self, step: Step, sample: samples.Sample) -> float:
        """Returns the error of a Step's observations."""
        used = self.spread > 1e-6 * self.spread.max()
        gap = (np.asarray(step.obs) - sample.rows.next_obs)[:, used] / self.spread[used]
        return samples.trimmed((gap.astype(np.float64) ** 2).mean(-1))

    def typical(self) -> float:
        """Returns the median of the tasks' transition errors; 0 where there are none."""
        known = self.transitions[np.isfinite(self.transitions)]
        return float(np.median(known)) if len(known) else 0.0


def relabelled(env: Env, drawn: list) -> Seen | None:
    """Returns what `Env.relabel` makes of samples, None where there is none. No transitions."""
    if env.relabel is None:
        return None
    rewards = [_relabel(env, task, one.rows) for task, one in enumerate(drawn)]
    blank = np.full(len(drawn), np.nan)
    return _with_rewards(Seen(env, drawn, [], blank, _spread(drawn), blank, blank, blank), rewards)


def _relabel(env, task, rows):
    return np.asarray(env.relabel(jax.tree.map(lambda leaf: leaf[task], env.tasks), rows))


def _spread(drawn):
    """Returns the standard deviation of stored rewards over all tasks, at least a little."""
    rewards = np.concatenate([one.rows.reward for one in drawn]).astype(np.float64)
    return max(float(rewards.std()), 1e-3 * float(np.abs(rewards).mean()), 1e-6)


def _with_rewards(seen, predicted):
    """Returns a Seen with predicted rewards and how far stored ones are from them."""
    stored = [one.rows.reward for one in seen.drawn]
    errors = [
        samples.trimmed((p - r).astype(np.float64) ** 2) / seen.reward_spread
        for p, r in zip(predicted, stored, strict=True)
    ]
    alike = [_correlation(p, r) for p, r in zip(predicted, stored, strict=True)]
    return seen._replace(
        predicted=predicted, rewards=np.array(errors), correlations=np.array(alike)
    )


def _correlation(one, other):
    """Returns the correlation of two columns, NaN where one does not vary."""
    known = np.isfinite(one)
    one, other = one[known], other[known]
    if len(one) < 2 or min(one.std(), other.std()) < 1e-9:
        return np.nan
    return float(np.corrcoef(one, other)[0, 1])


class Limits(NamedTuple):
    """Up to where errors are those of good data."""

    equal: Float[HostArray, "2"]  # of transitions, of rewards: below them nothing is wrong
    different: float  # from here on a misfit without any reason; below it with one that explains it
    close: float  # of relabelled rewards: from here on with a reason
    rounded: bool  # whether numbers have few digits


def of_tasks(stepped: Seen, labelled: Seen | None, limits: Limits) -> list[tuple]:
    """Returns (task, why its rows do not fit, how badly) of every task whose rows do not.

    Args: stepped, by `Env.replay`; labelled, by `Env.relabel`. Reasons are looked for in the
    EXPLAINED worst tasks.
    """
    equal, different, close, rounded = limits
    found, moved = [], stepped.transitions
    worst = set(np.argsort(-np.nan_to_num(moved))[:EXPLAINED].tolist())
    for task in np.flatnonzero(moved > equal[0]).tolist():
        text = _why_transitions(task, stepped) if task in worst else ""
        if text or moved[task] > max(different, equal[0]):
            plain = f"next_obs differs from Env.step by {moved[task]:.2f} of what a step changes"
            found.append((task, text or plain, 100.0 + min(moved[task], 100.0)))
    seen, told = stepped if labelled is None else labelled, {task for task, *_ in found}
    worst = set(np.argsort(-np.nan_to_num(seen.rewards))[:EXPLAINED].tolist())
    for task in np.flatnonzero(seen.rewards > (equal[1] if labelled is None else close)).tolist():
        text, error = _why_rewards(task, seen) if task in worst else "", seen.rewards[task]
        exact = labelled is not None or moved[task] <= equal[0]  # only the task is unknown
        if task not in told and (text or error > (equal[1] if exact else max(different, equal[1]))):
            plain = f"rewards differ from the environment's by {seen.rewards[task]:.2f} of their "
            plain += f"spread (correlation {seen.correlations[task]:.3f})"
            found.append((task, text or plain, min(error, 50.0)))
    told |= {task for task, *_ in found}
    odd = ODD_ENDS_OF_ROUNDED if rounded else ODD_ENDS
    ends = [(task, _why_ends(*each, "its", 2, odd)) for task, each in enumerate(stepped.ends)]
    ends = [(task, text, 75.0) for task, text in ends if text and task not in told]
    if stepped.ends and not (found or ends or rounded):
        every = map(np.concatenate, zip(*stepped.ends, strict=True))
        text = _why_ends(*every, "all tasks'", FEW_ENDS, ODD_ENDS_OF_ALL)
        counts = [int(((stored > 0) != (falls > 0)).sum()) for stored, falls in stepped.ends]
        ends = [(int(np.argmax(counts)), text, 75.0)] if text else []
    return found + ends


def _why_ends(stored, predicted, whose, least, odd_ends):
    """Returns what is odd about the true ends of rows, "" for few, or a share up to odd_ends."""
    ended, falls = stored > 0, predicted > 0
    cut, missed = ended & ~falls, falls & ~ended
    if cut.sum() >= least and cut.sum() > odd_ends * ended.sum():
        share = 100 * cut.sum() / ended.sum()
        return f"{share:.0f}% of {whose} true ends are none in Env.step: episodes were cut"
    if missed.sum() >= least and missed.sum() > odd_ends * falls.sum():
        share = 100 * missed.sum() / falls.sum()
        return f"{share:.0f}% of what ends {whose} episodes in Env.step is no true end in the data"
    return ""


def rounding(seen: Seen, labelled: Seen | None, random: np.random.Generator) -> tuple:
    """Returns the errors (of transitions, of rewards) that rounding of stored numbers explains.

    Numbers of every digit are rounded by nothing; others are moved by what was rounded off.
    """
    grain = max(_grain(seen.drawn), 0.0)
    if grain == 0.0:
        return 0.0, 0.0
    some = slice(0, ROUNDED_TASKS)
    pair = [_noisy(seen, grain, random, some)]
    pair += [_noisy(labelled, grain, random, some)] if labelled is not None else []
    return NOISIER * pair[0][0], NOISIER * pair[-1][1]


def _grain(drawn):
    """Returns the largest power of ten that all observations are multiples of, 0 for none."""
    values = np.concatenate([one.rows.obs.reshape(-1) for one in drawn]).astype(np.float64)
    for digits in range(1, 5):
        off = np.abs(values * 10**digits - np.round(values * 10**digits))
        if np.mean(off < 1e-2) > 0.99:
            return 10.0**-digits
    return 0.0


def _noisy(seen, grain, random, some):
    """Returns (transition error, reward error) that noise as large as a grain makes."""
    top = max(float(np.abs(one.rows.obs).max()) for one in seen.drawn)  # clipped ones stay so

    def moved(leaf):
        noise = random.uniform(-grain, grain, leaf.shape)
        return np.where(np.abs(leaf) >= top, leaf, leaf + noise).astype(np.float32)

    def shake(rows):
        changed = {name: moved(getattr(rows, name)) for name in ("obs", "next_obs", "action")}
        return rows._replace(**changed)

    drawn = [one._replace(rows=shake(one.rows), before=shake(one.before)) for one in seen.drawn]
    drawn = drawn[some]
    stepped = np.isfinite(seen.transitions).any()
    shaken = Seen.of(seen.env, drawn) if stepped else relabelled(seen.env, drawn)
    gaps = [
        samples.trimmed((p - q).astype(np.float64) ** 2) / seen.reward_spread
        for p, q in zip(shaken.predicted, seen.predicted[some], strict=True)
    ]
    return float(np.max(shaken.transitions)) if stepped else 0.0, float(np.max(gaps))


def _why_transitions(task, seen):
    """Returns what explains that next observations differ, "" where nothing tried does."""
    few, tried = jax.tree.map(lambda leaf: leaf[:FEW_ROWS], seen.drawn[task]), {}

    def error(sample, **changes):
        step = seen.step(task, sample, **changes)
        enough = np.isfinite(np.asarray(step.reward)).sum() >= MIN_ROWS
        return seen.moved(step, sample) if enough else np.inf

    for scale in SCALES if seen.env.system is not None else ():
        tried[f"its actions are scaled: about {scale:g} times them fits"] = error(few, scale=scale)
    if seen.env.system is None:  # a point moves in proportion to its action
        tried |= _distance(seen, task)
    for name, shifted in (("before", _with_earlier(few)), ("after", _with_later(few))):
        if shifted is not None:
            tried[f"its actions are shifted: those of the row {name} fit"] = error(shifted)
    others = range(len(seen.drawn)) if _tasks_move(seen, task) else ()
    tried |= {f"its rows are those of task {by}": error(few, by=by) for by in others if by != task}
    text = _smallest(tried)
    return text if tried[text] < min(BETTER * error(few), EXPLAINS) else ""


def _distance(seen, task):
    """Returns {how far rows move for their actions beside Env.step: the error that is left}."""
    rows = seen.drawn[task].rows
    stored, moves = rows.next_obs - rows.obs, np.asarray(seen.step(task, seen.drawn[task]).obs)
    centred = lambda x: (x - x.mean(0)).astype(np.float64)
    stored, moves = centred(stored), centred(moves - rows.obs)
    ratio = float((stored * moves).sum() / max((moves * moves).sum(), 1e-12))
    gap = (stored - ratio * moves) / seen.spread
    text = f"its rows move {ratio:.4g} times as far as Env.step for the same action"
    return {text: samples.trimmed((gap**2).mean(-1))}


def _with_earlier(sample):
    """Returns the rows of a sample that have a row before, all with its action; None for few."""
    cut = _where(sample, np.isfinite(_row_before(sample).reward))
    if cut is None:
        return None
    action, obs = np.roll(cut.before.action, 1, 1), cut.before.obs.copy()
    obs[:, 0] = np.nan  # whose action is not in the sample
    before = cut.before._replace(action=action, obs=obs)
    rows = cut.rows._replace(action=cut.before.action[:, -1])
    return cut._replace(rows=rows, before=before)


def _with_later(sample):
    """Returns the rows of a sample that have a row after, all with its action; None for few."""
    cut = _where(sample, np.isfinite(sample.after.reward))
    if cut is None:
        return None
    action = np.concatenate([cut.before.action[:, 1:], cut.rows.action[:, None]], 1)
    rows = cut.rows._replace(action=cut.after.action)
    return cut._replace(rows=rows, before=cut.before._replace(action=action))


def _where(sample, there):
    """Returns a sample without some rows, None where fewer than MIN_ROWS are left."""
    if there.sum() < MIN_ROWS:
        return None
    return jax.tree.map(lambda leaf: leaf[there], sample)


def _row_before(sample):
    """Returns the rows before those of a sample."""
    return jax.tree.map(lambda leaf: leaf[:, -1], sample.before)


def _unknown(rows):
    """Returns rows that say nothing."""
    return rows._replace(obs=np.full_like(rows.obs, np.nan))


def _tasks_move(seen, task):
    """Whether transitions depend on the task at all."""
    few = jax.tree.map(lambda leaf: leaf[:2], seen.drawn[task])
    own, other = (
        np.asarray(seen.step(task, few, by=by).obs) for by in (task, (task + 1) % len(seen.drawn))
    )
    return not np.array_equal(own, other)


def _why_rewards(task, seen):
    """Returns what explains that rewards differ, "" where nothing tried does."""
    sample, limit = seen.drawn[task], min(BETTER * seen.rewards[task], EXPLAINS)
    known = np.isfinite(seen.predicted[task])  # others could not be stepped
    all_stored = sample.rows.reward.astype(np.float64)
    own, stored = seen.predicted[task][known].astype(np.float64), all_stored[known]
    share = lambda gap: samples.trimmed(gap**2) / seen.reward_spread
    tried = {"": np.inf}  # where nothing can be tried
    if known.sum() >= MIN_ROWS:
        tried |= _lines(own, stored, share)
    for name, other in (("before", _row_before(sample)), ("after", sample.after)):
        there = np.isfinite(other.reward)
        if there.sum() >= MIN_ROWS:
            text = f"its rewards are shifted: they are those of the row {name}"
            tried[text] = _shifted_rewards(seen, task, other, there, all_stored)
    if seen.env.relabel is not None:
        by_task = jax.vmap(seen.env.relabel, (0, None))(seen.env.tasks, sample.rows)
        gaps = np.array([share(all_stored - np.asarray(each, np.float64)) for each in by_task])
        tried[f"its rewards are those of task {gaps.argmin()}"] = gaps.min()
    text = _smallest(tried)
    alike = f" (correlation {seen.correlations[task]:.3f})"
    return text + alike if tried[text] < limit else ""


def _smallest(tried):
    """Returns the text with the smallest error; NaN is none."""
    return min(tried, key=lambda text: np.nan_to_num(tried[text], nan=np.inf))


def _lines(own, stored, share):
    """Returns {text: error} of stored rewards as a line through the environment's."""
    scale = float(own @ stored / max(own @ own, 1e-12))
    tried = {f"its rewards are {scale:.4g} times the environment's": share(stored - scale * own)}
    slope, offset = np.polyfit(own, stored, 1) if own.std() > 1e-9 else (1.0, 0.0)
    text = f"its rewards are {slope:.4g} times the environment's and {offset:+.4g}"
    tried[text] = 2.0 * share(stored - slope * own - offset)  # two numbers explain more
    return tried


def _shifted_rewards(seen, task, other, there, stored):
    """Returns the error of stored rewards as those of neighbouring rows, NaN of too few."""
    rows = jax.tree.map(lambda leaf: leaf[there], other)
    if seen.env.relabel is not None:
        predicted = _relabel(seen.env, task, Transition(*rows))
    else:
        nothing = _unknown(jax.tree.map(lambda leaf: leaf[:, None], rows))
        predicted = np.asarray(seen.step(task, samples.Sample(rows, nothing, rows)).reward)
    gaps = (predicted - stored[there]) ** 2
    enough = np.isfinite(gaps).sum() >= MIN_ROWS
    return samples.trimmed(gaps) / seen.reward_spread if enough else np.nan
