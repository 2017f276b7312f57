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


def contexts(of, folders, summaries):
    """Returns summaries with the numbers of `recognition`.

    Runs that `explore` has not been through have none. Args: folders, {(row, env): run folder}.
    """
    found = dict(summaries)
    for at, summary in summaries.items():
        z = snapshot.kept_contexts(folders[at], of.contexts) if of.contexts else None
        if z is not None:
            found[at] = summary | {recognition.NUMBERS: recognition.numbers(z)}
    return found


def planes(name, summaries, to):
    """Draws the contexts that policies collected, where a table has them; returns where they are.

    Args: name, of the table's files; summaries, of `contexts`; to, a folder.
    """
    found = {}
    for (row, env), summary in summaries.items():
        plane = summary.get(recognition.NUMBERS, {}).get("plane")
        if plane:  # tables of older versions have none
            found.setdefault((env, summary["preset"]), {})[row] = plane
    paths = []
    for (env, preset), own in found.items():
        title = f"contexts that policies collect: {env}, preset {preset}"
        paths += recognition.draw(to, f"{name}_{env}", own, title)
    return paths
