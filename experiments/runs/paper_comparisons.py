"""The tables and curves of both papers as comparisons: rows of flags, columns of protocols.

A protocol is run in every row: the paper's, each method's own, and a given context.
"""

from .comparison import Axis, Comparison, levels, on_gentle

TASK_SETS = ("test", "train")  # outside and inside the training distribution
FAMILIES = (
    "point_robot", "point_robot_wind", "sparse_point_robot", "cheetah_vel", "ant_goal",
    "hopper_params", "walker_params",
)  # fmt: skip
GENTLES = ("point_robot", "cheetah_dir", "ant_dir", "cheetah_vel", "hopper_params", "walker_params")


def columns(*protocols):
    """Returns a column for each protocol and task set."""
    return tuple((protocol, task_set) for protocol in protocols for task_set in TASK_SETS)


def tested(rows, *protocols):
    """Returns rows with the protocols of a table, and each method's own first."""
    flags = tuple(f"--protocol={protocol}" for protocol in ("native", *protocols))
    return {name: (*line, *flags) for name, line in rows.items()}


def of(*names):
    """Returns a row for each algorithm."""
    return {name: (f"--algo={name}",) for name in names}


CTMRL = ("--algo=ctmrl",)
WITHOUT = {
    "without L_C": ("--config.algo.use_code_loss=False",),
    "without L_pre^cro": ("--config.algo.use_cross_prediction=False",),
    "without K-means": ("--config.algo.use_kmeans=False",),
    "without L_contra": ("--config.algo.use_contrast=False",),
}
NUMBERS_OF_CODES = (2, 4, 8, 16, 32, 64)
GENTLE = ("--algo=gentle",)
CHANGED = {
    "gentle": (),
    "contrastive": ("--config.algo.objective=contrastive",),
    "no relabel": ("--config.algo.relabel=False",),
    "no policy relabel": ("--config.algo.policy_relabel=False",),
}
# own rows : relabelled rows -> (tasks that are relabelled for one, share of the own rows)
RATIOS = {
    "1:0": (0, 1.0), "1:1": (1, 1.0), "1:3": (3, 1.0), "1:6": (6, 1.0), "1:9": (9, 1.0),
    "1:12": (9, 0.75), "1:15": (9, 0.6),
}  # fmt: skip
# contexts of these behaviour levels, policies always of the last one's rows
CONTEXTS = {"expert": "5:6", "medium": "2:3", "mixed": "0:6"}
SIX_LEVELS = (*levels(120_000, 20_000, 20_000, 6, 50), "--config.train.rl_data=5:6")
NUMBERS_OF_TASKS = (4, 5, 6, 7, 8, 9, 10)
ONLINE, GIVEN, ONE_SHOT = "random_then_policy", "given_context", "one_shot"

ABLATIONS = {"ctmrl": CTMRL, **{name: (*CTMRL, *flags) for name, flags in WITHOUT.items()}}
CODES = {f"N = {n}": (*CTMRL, f"--config.algo.num_codes={n}") for n in NUMBERS_OF_CODES}
SHARES = {
    ratio: (*GENTLE, f"--config.algo.num_cross_tasks={count}", f"--config.algo.own_share={share}")
    for ratio, (count, share) in RATIOS.items()
}
OTHER_CONTEXTS = {
    f"{name}, {kind}": (f"--algo={name}", *SIX_LEVELS, f"--config.train.context_data={these}")
    for kind, these in CONTEXTS.items()
    for name in ("focal", "gentle")
}
FEWER_TASKS = {
    f"{name}, {count} tasks": (f"--algo={name}", f"--config.env.num_train={count}")
    for count in NUMBERS_OF_TASKS
    for name in ("gentle", "focal")
}


def released(rows):
    """Returns rows as they are, and each once more at fidelity `release`."""
    others = {f"{name}, release": (*line, "--fidelity=release") for name, line in rows.items()}
    return {name: (*line, "--fidelity=paper") for name, line in rows.items()} | others


def of_suites(rows, *suites):
    """Returns each row once for each suite."""
    return {
        f"{name}, {suite}": (*line, f"--suite={suite}")
        for suite in suites
        for name, line in rows.items()
    }


TABLES = {
    "gentle_table1": Comparison(
        "GENTLE's Table 1: four methods, a context given and collected by themselves",
        on_gentle(tested(of("focal", "corro", "borel", "gentle"), GIVEN, ONE_SHOT)),
        GENTLES,
        columns(GIVEN, ONE_SHOT),
        paper="std",
    ),
    "gentle_table2": Comparison(
        "GENTLE's Table 2: its ablations",
        on_gentle(tested({n: (*GENTLE, *f) for n, f in CHANGED.items()}, GIVEN, ONE_SHOT)),
        GENTLES,
        columns(ONE_SHOT, GIVEN),
        paper="std",
    ),
    "gentle_table3": Comparison(
        "GENTLE's Table 3: contexts of experts, half-trained agents, all; policies of experts",
        on_gentle(tested(OTHER_CONTEXTS, GIVEN, ONE_SHOT)),
        ("ant_dir",),
        columns(ONE_SHOT, GIVEN),
        paper="std",
        paper_of={
            f"{name}, {kind}": ("gentle_table3", {"algorithm": name, "context_data": kind})
            for kind in CONTEXTS
            for name in ("focal", "gentle")
        },
    ),
    "gentle_fig2": Comparison(
        "GENTLE's Figure 2: how well tasks are recognized in contexts that policies collect",
        on_gentle(tested(of("gentle", "focal", "corro", "borel"), GIVEN, ONE_SHOT)),
        ("point_robot", "ant_dir"),
        columns(ONE_SHOT),
        paper="std",
        contexts=400,
    ),
    "gentle_fig3": Comparison(
        "GENTLE's Figure 3: own to relabelled rows",
        on_gentle(tested(SHARES, GIVEN, ONE_SHOT)),
        ("point_robot", "ant_dir"),
        columns(ONE_SHOT, GIVEN),
        paper="std",
        paper_rows=("1:3",),
        axis=Axis("own : relabelled rows", {ratio: ("gentle", ratio) for ratio in RATIOS}),
    ),
    "gentle_fig4": Comparison(
        "GENTLE's Figure 4: four to ten training tasks, test tasks unchanged",
        on_gentle(tested(FEWER_TASKS, GIVEN, ONE_SHOT)),
        ("point_robot", "ant_dir"),
        columns(ONE_SHOT, GIVEN),
        paper="std",
        paper_rows=("gentle, 10 tasks", "focal, 10 tasks"),
        axis=Axis(
            "training tasks",
            {
                f"{name}, {count} tasks": (name, str(count))
                for count in NUMBERS_OF_TASKS
                for name in ("gentle", "focal")
            },
        ),
    ),
    "ctmrl_table1": Comparison(
        "CTMRL's Table 1: eight methods on seven families",
        tested(
            of("ctmrl", "er_trl", "unicorn", "gentle", "idaq", "csro", "anole", "corro"),
            ONLINE,
            GIVEN,
        ),
        FAMILIES,
        columns(ONLINE),
        paper="ci95",
        num_seeds=6,
    ),
    "ctmrl_table2": Comparison(
        "CTMRL's Table 2: its ablations, as in the paper and as released",
        tested(released(ABLATIONS), ONLINE, GIVEN),
        FAMILIES,
        columns(ONLINE),
        paper="ci95",
        paper_rows=tuple(ABLATIONS),
        num_seeds=6,
    ),
    "ctmrl_table3": Comparison(
        "CTMRL's Table 3: number of codes, in the settings of both of its appendices",
        tested(of_suites(CODES, "ctmrl", "ctmrl_b"), ONLINE, GIVEN),
        FAMILIES,
        columns(ONLINE),
        paper="ci95",
        paper_rows=tuple(of_suites(CODES, "ctmrl")),
        axis=Axis(
            "codes",
            {
                f"N = {n}, {suite}": (suite, str(n))
                for n in NUMBERS_OF_CODES
                for suite in ("ctmrl", "ctmrl_b")
            },
        ),
        num_seeds=6,
    ),
}
