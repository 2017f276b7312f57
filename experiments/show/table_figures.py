"""Figures beside a table of `experiments.reproduce`."""

from gentle_jax import errors

from ..host import preemption
from ..runs import snapshot
from . import recognition, run_figures, run_page


def curves(name, of, summaries, found, to):
    """Draws a table's curves, where its rows are along something; returns where they are.

    Args: name, of its files; of, its Comparison; found, {(row, env): scores}; to, a folder.
    """
    paths = []
    for env in dict.fromkeys(env for _, env in summaries) if of.axis else ():
        rows = run_page.rows_of_scores({row: found[row, at] for row, at in summaries if at == env})
        one = next(s for (_, at), s in summaries.items() if at == env)
        metric, title = one["results"][0]["metric"], f"{of.about}\n{env}, preset {one['preset']}"
        paths += run_figures.along(to, f"{name}_{env}", rows, of.axis, metric, title)
    return paths


def explore(of, folders):
    """Lets the policies of finished runs collect contexts, which stay in their folders.

    Args: of, a Comparison; folders, of runs. Runs whose agents cannot be read are told, and left
    out.
    """
    for folder in folders if of.contexts else ():
        preemption.check()
        try:
            snapshot.explored(folder, of.contexts)
        except errors.UserError as error:
            print(f"no contexts: {error}", flush=True)


def contexts(name, of, folders, summaries, to):
    """Returns summaries with the numbers of `recognition`; draws its figures into a folder.

    Runs that `explore` has not been through have none. Args: name, of the table's files; folders,
    {(row, env): run folder}; to, a folder.
    """
    codes, found = {}, dict(summaries)
    for at, summary in summaries.items():
        z = snapshot.kept_contexts(folders[at], of.contexts) if of.contexts else None
        if z is not None:
            codes.setdefault(at[1], {})[at[0]] = z
            found[at] = summary | {recognition.NUMBERS: recognition.numbers(z)}
    for env, own in codes.items():
        preset = next(s["preset"] for at, s in summaries.items() if at[1] == env)
        title = f"contexts that policies collect: {env}, preset {preset}"
        for path in recognition.draw(to, f"{name}_{env}", own, title):
            print(f"figure: {path}")
    return found
