"""The comparisons that `experiments.reproduce` knows: their rows, each a line of flags."""

from gentle_jax import registry

from . import paper_comparisons
from .comparison import Comparison, levels, on_gentle

ALL = {name: (f"--algo={name}",) for name in registry.ALGORITHMS}
# an agent without context that is told the task: the ceiling beside `multitask`, the floor
ALL["multitask, task revealed"] = ("--algo=multitask", "--config.env.reveal_task=True")
TWO_AGENTS = ("multitask", "multitask, task revealed")  # without context: a floor, a ceiling
# GENTLE's claim: relabelling pays where tasks are few and data narrow
LIMITED = {
    "gentle": ("--algo=gentle",),
    "gentle without relabelling": ("--algo=gentle", "--config.algo.relabel=False"),
    "focal": ("--algo=focal",),
}


OF_DATA = {f"{count} tasks": (f"--config.env.num_train={count}",) for count in (4, 6, 8, 10)}
OF_DATA["10 expert episodes a task"] = ("--config.behaviour.episodes_per_level=10",)
OF_DATA["10 levels a task"] = levels(4000, 400, 400, 10, 10)
# Data that a preset was not made for: agents at the end of their training, all along it, half-way
KINDS = {
    "point_robot": {
        "experts": levels(4000, 4000, 200, 1, 100),
        "mixed": levels(4000, 400, 400, 10, 20),
        "medium": levels(1200, 1200, 200, 1, 100),
    },
    "cheetah_vel": {
        "experts": levels(120_000, 120_000, 20_000, 1, 50),
        "mixed": levels(120_000, 20_000, 20_000, 6, 10),
        "medium": levels(60_000, 60_000, 20_000, 1, 50),
    },
}
ON_ALL_KINDS = ("gentle", "focal", "ctmrl")
# Why a MuJoCo family is learned or not: an agent that is told its task, one change a row
TOLD = ("--algo=multitask", "--config.env.reveal_task=True", "--protocol=online")
OLD_RATES = ("--config.backbone.lr=1e-3", "--config.backbone.policy_lr=1e-3")
OLD_SCALE = (
    "--config.train.normalize_rewards=False", "--config.backbone.reward_scale=5",
    "--config.backbone.alpha_init=50", "--config.backbone.alpha_lr=1",
    "--config.backbone.alpha_max=2000",
)  # fmt: skip
RELEASED = (
    "--config.backbone.true_gradient_penalty=False",
    "--config.backbone.clip_stored_alpha=False",
)
OLD_DUAL, RAW = ("--config.backbone.dual_steps=3",), ("--config.train.normalize_obs=False",)
OLD_END = ("--config.train.final_lr=0.1",)
OLD = (*RAW, *OLD_SCALE, *OLD_RATES, *OLD_END, *RELEASED)
BRAC = {
    "brac_sac": (),
    "all of the next six": (*OLD, *OLD_DUAL),
    "raw observations": RAW,
    "raw rewards, scale 5": OLD_SCALE,
    "rates of 1e-3": OLD_RATES,
    "a tenth of the rates at the end": OLD_END,
    "dual critic as released": RELEASED,
    "three dual steps": OLD_DUAL,
    "no penalty": ("--config.backbone.use_brac=False",),
    "tau 0.03": ("--config.backbone.tau=0.03",),
    "discount 0.97": ("--config.backbone.discount=0.97",),
}
CAUSES = {
    "td3_bc, the preset": ("--backbone=td3_bc",),
    "iql": ("--backbone=iql",),
    **{name: ("--backbone=brac_sac", *changes) for name, changes in BRAC.items()},
}
EVERYWHERE = {
    f"{name}, {backbone}": (f"--algo={name}", f"--backbone={backbone}")
    for backbone in registry.BACKBONES
    for name in registry.ALGORITHMS
}
NO_CODES = ("--config.algo.use_codebook=False",)
# what each part of CTMRL buys; Table 2 of its paper and more
COMPONENTS = {
    "paper equations": ("--algo=ctmrl", "--fidelity=paper"),
    "release": ("--algo=ctmrl", "--fidelity=release"),
    "no codebook at all": ("--algo=ctmrl", *NO_CODES),
    "contexts from the whole history": ("--algo=ctmrl", "--config.train.context_draw=uniform"),
    **{
        name: paper_comparisons.ABLATIONS[name]
        for name in ("without L_contra", "without L_C", "without L_pre^cro", "without K-means")
    },
}
GENTLE = {
    "release": ("--algo=gentle", "--suite=gentle"),
    "paper": ("--algo=gentle", "--suite=gentle", "--fidelity=paper"),
    "without relabelling": ("--algo=gentle", "--suite=gentle", "--config.algo.relabel=False"),
}


POINT = ("point_robot",)
OF_CONTEXTS = (("given_context", "test"), ("one_shot", "test"))
TABLES = {
    **paper_comparisons.TABLES,
    "components": Comparison(
        "what each part of CTMRL buys",
        COMPONENTS,
        ("point_robot", "point_robot_wind", "sparse_point_robot"),
        (("random_then_policy", "test"), ("given_context", "test")),
    ),
    "gentle": Comparison(
        "GENTLE as released, as in its paper, without relabelling",GENTLE, POINT, OF_CONTEXTS),
    "positives": Comparison(
        "FOCAL with every task once in a batch, or drawn with replacement: positive pairs",
        {
            "tasks once": ("--algo=focal",),
            "with replacement": ("--algo=focal", "--config.train.task_draw=replace"),
        },
        POINT,
        (("random_then_policy", "test"), ("given_context", "test")),
    ),
    # every method on the same data, backbone and protocols
    "methods": Comparison(
        "every method on the same data, suite ctmrl",ALL, POINT),
    "methods_gentle": Comparison(
        "every method on the same data, suite gentle",on_gentle(ALL), POINT),
    "all_methods": Comparison("every method on every backbone, all protocols", EVERYWHERE, POINT),
    # few training tasks, the test tasks unchanged; fewer and more diverse data of ten tasks
    "limited": Comparison(
        "does relabelling pay where tasks are few or data narrow?",
        {
            f"{name}, {data}": ("--suite=gentle", *line, *of_data)
            for data, of_data in OF_DATA.items()
            for name, line in LIMITED.items()
        },
        POINT,
        OF_CONTEXTS,
    ),
    # settings that must hold on data that they were not made for
    "robust": Comparison(
        "do settings hold on data that they were not made for?",
        {
            f"{name}, {kind}": (f"--algo={name}", "--suite=gentle")
            for kind in KINDS["point_robot"]
            for name in ON_ALL_KINDS
        },
        tuple(KINDS),
        (("given_context", "train"),),
        {
            env: {f"{name}, {kind}": of[kind] for kind in of for name in ON_ALL_KINDS}
            for env, of in KINDS.items()
        },
    ),
    "causes": Comparison(
        "why Cheetah-Vel is learned or not: one change of the settings a row",
        {name: (*TOLD, *changes) for name, changes in CAUSES.items()}, ("cheetah_vel",)
    ),
    "families": Comparison(
        "FOCAL and CTMRL, a floor and a ceiling, suite ctmrl",
        {name: ALL[name] for name in ("focal", "ctmrl", *TWO_AGENTS)},
        ("cheetah_vel", "ant_goal", "hopper_params", "walker_params", "sparse_point_robot"),
    ),
    "families_gentle": Comparison(
        "FOCAL and GENTLE, a floor and a ceiling, suite gentle",
        on_gentle({name: ALL[name] for name in ("focal", "gentle", *TWO_AGENTS)}),
        ("cheetah_dir", "ant_dir"),
    ),
}  # fmt: skip
