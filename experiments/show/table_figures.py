"""Figures beside a table of `experiments.reproduce`."""

from experiments.runs import snapshot
from experiments.show import recognition, run_figures, run_page
from gentle_jax import errors


def curves(table, of, summaries, found, to):
    """Draws a table's curves, where its rows are along something, and says where they are.

    Args: of, its Comparison; found, {(row, env): scores}; to, a folder.
    """
    for env in dict.fromkeys(env for _, env in summaries) if of.axis else ():
        rows = run_page.rows_of_scores({row: found[row, at] for row, at in summaries if at == env})
        metric = next(s["results"][0]["metric"] for (_, at), s in summaries.items() if at == env)
        name, title = f"{table}_{env}", f"{table}, {env}"
        for path in run_figures.along(to, name, rows, of.axis, metric, title):
            print(f"figure: {path}")


def contexts(table, of, folders, summaries, to, root):
    """Returns summaries with the numbers of `recognition`; draws its figures into a folder.

    Runs that cannot be restored have none, which is told. Args: folders, {(row, env): run folder};
    to, a folder; root, as `--data`.
    """
    codes, found = {}, {}
    for at, summary in summaries.items():
        found[at] = summary
        try:
            z = snapshot.explored(folders[at], of.contexts, root)
        except errors.UserError as error:
            print(f"no contexts: {error}", flush=True)
            continue
        codes.setdefault(at[1], {})[at[0]] = z
        found[at] = summary | {recognition.NUMBERS: recognition.numbers(z)}
    for env, own in codes.items():
        preset = next(s["preset"] for at, s in summaries.items() if at[1] == env)
        title = f"contexts that policies collect: {env}, preset {preset}"
        for path in recognition.draw(to, f"{table}_{env}", own, title):
            print(f"figure: {path}")
    return found
