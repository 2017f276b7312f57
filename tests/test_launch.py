"""`experiments.launch`: what is generated is valid, and the jobs are the sweep, each seed once."""

import importlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import pytest
import yaml

from experiments import run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.launch import check, plan

launch = importlib.import_module("experiments.launch.__main__")
ROOT = pathlib.Path(__file__).parent.parent
GRID = "--sweep=lr=0.001,0.002"
TARGETS = {
    "jobset": ("--image=europe-docker.pkg.dev/project/images/gentle-jax:1", "--out=gs://b/runs"),
    "skypilot": ("--out=s3://bucket/runs",),
    "slurm": (),
}
FILES = {
    "jobset": {"jobset.yaml", "kueue.yaml", "HOWTO.txt", "Dockerfile"},
    "skypilot": {"skypilot.yaml", "submit.sh", "HOWTO.txt"},
    "slurm": {"array.sbatch", "collect.sbatch", "submit.sh", "HOWTO.txt"},
}


def command(capsys, *arguments):
    """Runs the command; returns (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main(launch.COMMAND, ["launch", *map(str, arguments)])
    return code, *capsys.readouterr()


def make(target, *arguments):
    """Returns (Plan, {name: text})."""
    found = planned(f"--target={target}", *TARGETS[target], *arguments)
    return found, launch.texts(found)


def planned(*arguments):
    """Returns the Plan of a command line."""
    return plan.make(flags.read(launch.COMMAND, ["launch", *arguments]))


def seeds_of(job_plan, texts):
    """Returns the list of seeds of every job, from the generated commands."""
    found = []
    for arguments in check.job_commands(job_plan, texts):
        names = flags.parse(run.COMMAND, arguments[1:]).config.run
        found.append(list(range(names.seed_offset, names.seed_offset + names.num_seeds)))
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_written_and_covers_each_seed_once(tmp_path, capsys, target):
    to = tmp_path / "files"
    arguments = (f"--target={target}", *TARGETS[target], "--num_runs=20", "--runs_per_job=6")
    code, text, err = command(capsys, *arguments, GRID, "--config.algo.num_codes=3", f"--to={to}")
    assert code == 0, err
    assert "20 runs (10 seeds x 2 grid points)" in text and "4 jobs" in text
    texts = {path.name: path.read_text() for path in to.iterdir()}
    assert set(texts) == FILES[target] and "FOLDER" not in "".join(texts.values())
    assert "experiments.gather --from=" in text and "--num_seeds=10" in text
    made = planned(*arguments, GRID, "--config.algo.num_codes=3")
    assert seeds_of(made, texts) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    for words in check.job_commands(made, texts):
        request = flags.parse(run.COMMAND, words[1:])  # a CPU, where auto is quick
        assert request.config.run.preset == "paper" and request.config.algo.num_codes == 3
        assert len(request.points) == 2 and request.out == made.out
    check.check(made, texts)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("runs,per_job,offset", [(256, 32, 0), (7, 7, 5), (5, 8, 3), (3, 1, 0)])
def test_seeds_are_cut_into_ranges(target, runs, per_job, offset):
    made, texts = make(
        target, f"--num_runs={runs}", f"--runs_per_job={per_job}", f"--seed_offset={offset}"
    )
    jobs = seeds_of(made, texts)
    assert len(jobs) == -(-runs // per_job) and max(map(len, jobs)) <= per_job
    assert [seed for job in jobs for seed in job] == list(range(offset, offset + runs))


def test_words_with_spaces_and_quotes_reach_the_run_as_they_are():
    made, texts = make("slurm", "--num_runs=2", "--data=a b's $HOME")
    (words,) = check.job_commands(made, texts)
    assert "--data=a b's $HOME" in words


def test_the_jobset_says_what_exit_codes_mean():
    made, texts = make("jobset", "--num_runs=256", "--queue=team", "--parallel=4")
    document = yaml.safe_load(texts["jobset.yaml"])
    assert document["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert document["spec"]["suspend"] is True
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], made.jobs) == (8, 4, 8)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}
    assert outcome(job, 42) == outcome(job, None) == "Ignore"
    assert outcome(job, 2) == outcome(job, 3) == "FailIndex"
    assert outcome(job, 1) == outcome(job, 137) == "Count"
    queues = {d["kind"]: d for d in yaml.safe_load_all(texts["kueue.yaml"])}
    assert queues["LocalQueue"]["metadata"]["name"] == "team"
    cluster = queues["ClusterQueue"]
    assert queues["LocalQueue"]["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    flavor = cluster["spec"]["resourceGroups"][0]["flavors"][0]
    assert flavor["resources"] == [{"name": "google.com/tpu", "nominalQuota": 32}]
    assert queues["ResourceFlavor"]["metadata"]["name"] == flavor["name"]
    assert queues["ResourceFlavor"]["spec"]["nodeLabels"] == pod["nodeSelector"]


def outcome(job, code):
    """Returns what Kubernetes does with a pod: the first rule that fits. Args: None: disrupted."""
    for rule in job["podFailurePolicy"]["rules"]:
        if code is None and "onPodConditions" in rule:
            return rule["action"]
        if code is not None and code in rule.get("onExitCodes", {}).get("values", ()):
            return rule["action"]
    return "Count"


def test_data_are_made_by_the_flags_that_they_depend_on():
    more = ("--algo=gentle", "--suite=gentle", "--sweep=lr=1,2", "--shard_data", "--save_every=9")
    settings = ("--config.algo.width=8", "--config.behaviour.seed=3", "--config.eval.num_repeats=1")
    made, texts = make("slurm", "--num_runs=4", *more, *settings)
    check.check(made, texts)
    (words,) = check.commands(texts["collect.sbatch"], [{}])
    assert words == [
        "-m", "experiments.collect", "--preset=paper", "--suite=gentle", "--save_every=9",
        "--config.behaviour.seed=3", "--data=data", "--require=gpu",
    ]  # fmt: skip


def test_a_volume_holds_data_that_are_made_once():
    made, texts = make("jobset", "--num_runs=4", "--volume=datasets")
    check.check(made, texts)
    job = yaml.safe_load(texts["collect.yaml"])
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "datasets"}}
    assert claim in job["spec"]["template"]["spec"]["volumes"]
    (script,) = check.scripts("collect.yaml", texts["collect.yaml"])
    (words,) = check.commands(script, [{}])
    assert words[1] == "experiments.collect" and "--data=/data" in words
    assert "--data=/data" in check.job_commands(made, texts)[0]
    made, texts = make("skypilot", "--num_runs=4", "--volume=gs://b/data")
    check.check(made, texts)
    assert yaml.safe_load(texts["skypilot.yaml"])["file_mounts"] == {
        "/data": {"source": "gs://b/data", "mode": "COPY"}
    }


def test_the_spot_job_recovers_from_42_only():
    _, texts = make("skypilot", "--num_runs=4", "--accelerator=tpu-v5litepod-8")
    task = yaml.safe_load(texts["skypilot.yaml"])
    recovery = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [42]}
    assert task["resources"]["job_recovery"] == recovery and task["resources"]["use_spot"]
    assert "jax[tpu]" in task["setup"] and "s3fs" in task["setup"]
    assert "seq 0 0" in texts["submit.sh"]


def test_a_cluster_without_accelerators():
    made, texts = make("slurm", "--num_runs=4", "--accelerator=none", "--queue=long")
    check.check(made, texts)
    (options,) = check.documents("array.sbatch", texts["array.sbatch"])
    assert "gres" not in options and options["partition"] == "long"
    assert made.preset == "quick" and "JAX_PLATFORMS:-cpu}" in texts["array.sbatch"]
    assert "--require" not in "".join(texts.values())
    made, texts = make("slurm", "--num_runs=4")
    assert made.preset == "paper" and "JAX_PLATFORMS:-cuda,cpu}" in texts["array.sbatch"]


@pytest.mark.parametrize(
    "target,more,kind",
    [
        ("jobset", (), "tpu"), ("slurm", (), "gpu"), ("skypilot", (), "gpu"),
        ("skypilot", ("--accelerator=tpu-v5litepod-8",), "tpu"),
    ],
)  # fmt: skip
def test_a_job_without_its_accelerator_fails_instead_of_training_on_the_cpu(target, more, kind):
    made, texts = make(target, "--num_runs=2", *more)
    for words in check.job_commands(made, texts):
        assert f"--require={kind}" in words
        assert flags.read(run.COMMAND, words[1:]).shared["require"] == kind


def test_howto_is_typed_as_it_is_whatever_the_folder(tmp_path, capsys):
    to = tmp_path / "a b's $HOME"
    words = ("--target=slurm", "--num_runs=2", f"--to={to}", "--out=r s")
    assert command(capsys, *words)[0] == 0
    typed = [
        shlex.split(line, comments=True)
        for line in (to / "HOWTO.txt").read_text().splitlines()
        if line.startswith(("bash", "python"))
    ]
    assert typed[0] == ["bash", str(to / "submit.sh")] and "--from=r s" in typed[1]
    _, texts = make("jobset", "--num_runs=2", "--volume=v")
    placed = launch.placed(texts["HOWTO.txt"], str(to))
    assert "'\"'\"'s $HOME/kueue.yaml' " in placed and "FOLDER" not in placed


def broken(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    "target,name,old,new,part",
    [
        ("jobset", "jobset.yaml", "v1alpha2", "v1alpha1", "apiVersion"),
        ("jobset", "jobset.yaml", "kueue.x-k8s.io/queue-name", "queue-name", "labels"),
        ("jobset", "jobset.yaml", "restartPolicy: Never", "restartPolicy: OnFailure", "Never"),
        ("jobset", "jobset.yaml", "- 42", "- 43", "rules"),
        ("jobset", "jobset.yaml", "type: DisruptionTarget", "type: Ready", "rules"),
        ("jobset", "jobset.yaml", "action: FailIndex", "action: FailPod", "rules"),
        ("jobset", "jobset.yaml", "completions: 2", "completions: '2'", "completions"),
        ("jobset", "jobset.yaml", "backoffLimitPerIndex", "backoffLimitPerindex", "spec"),
        ("jobset", "jobset.yaml", "Seconds: 120", "Seconds: 30", "terminationGrace"),
        ("jobset", "jobset.yaml", "google.com/tpu: 8", "google.com/tpu: 16", "google.com/tpu"),
        ("jobset", "jobset.yaml", "COUNT=$((", "COUNT=$(((", "bash"),
        ("jobset", "jobset.yaml", "* 4))", "* 3))", "seeds"),
        ("jobset", "kueue.yaml", "kind: LocalQueue", "kind: LocalQueues", "kueue.yaml"),
        ("jobset", "kueue.yaml", "v1beta2", "v1beta1", "kueue.yaml"),
        ("jobset", "kueue.yaml", "nominalQuota: 16", "nominalQuota: many", "kueue.yaml"),
        ("skypilot", "skypilot.yaml", "recover_on_exit_codes", "recover_on", "job_recovery"),
        ("skypilot", "skypilot.yaml", "use_spot: true", "use_spot: false", "use_spot"),
        ("skypilot", "skypilot.yaml", "INDEX: '0'", "INDEX: 0", "INDEX"),
        ("skypilot", "skypilot.yaml", "num_seeds=", "num_sed=", "num_sed"),
        ("skypilot", "submit.sh", "done", "", "bash"),
        ("slurm", "array.sbatch", "#SBATCH --requeue\n", "", "requeue"),
        ("slurm", "array.sbatch", "B:TERM@120", "TERM@120", "signal"),
        ("slurm", "array.sbatch", "--array=0-1", "--array=1-2", "array"),
        ("slurm", "array.sbatch", "FIRST=$((0", "FIRST=$((1", "seeds"),
        ("slurm", "array.sbatch", "experiments.run", "experiments.report", "experiments.run"),
        ("slurm", "collect.sbatch", "done", "", "bash"),
        ("slurm", "collect.sbatch", "--preset=paper", "--preset=smoke", "other data"),
        ("slurm", "collect.sbatch", "experiments.collect", "experiments.run", "experiments.run"),
        ("slurm", "collect.sbatch", "--data=data", "--data=elsewhere", "other data"),
    ],
)
def test_broken_files_are_refused(target, name, old, new, part):
    made, texts = make(target, "--num_runs=8", "--runs_per_job=4")
    check.check(made, texts)
    texts[name] = broken(texts[name], old, new)
    with pytest.raises(ValueError, match=re.escape(part)):
        check.check(made, texts)


@pytest.mark.parametrize(
    "arguments,part",
    [
        ("--num_runs=8", "--target is missing"),
        ("--target=slrum --num_runs=8", "did you mean 'slurm'"),
        ("--target=slurm", "--num_runs is missing"),
        ("--target=slurm --num_runs=0", "--num_runs is 0"),
        ("--target=slurm --num_runs=x", "num_runs=x"),
        ("--target=slurm --num_runs=8 --runs_per_job=0", "--runs_per_job is 0"),
        ("--target=slurm --num_runs=8 --parallel=0", "--parallel is 0"),
        ("--target=slurm --num_runs=8 --runs_per_job=3 --sweep=lr=1,2", "multiple of the 2 grid"),
        ("--target=slurm --num_runs=7 --runs_per_job=2 --sweep=lr=1,2", "--num_runs is 7"),
        ("--target=slurm --num_runs=8 --num_seeds=2", "--num_seeds: it follows"),
        ("--target=slurm --num_runs=8 --require=gpu", "--require: it follows from --accelerator"),
        ("--target=slurm --num_runs=8 --events=x", "the jobs would share one file"),
        ("--target=slurm --num_runs=8 --multihost", "every job is a process of its own"),
        ("--target=slurm --num_runs=8 --algo=ctrml", "did you mean 'ctmrl'"),
        ("--target=slurm --num_runs=8 --config.algo.lrr=1", "did you mean 'algo.lr'"),
        ("--target=slurm --num_runs=8 --algo gentle", "'gentle' stands alone"),
        ("--target=slurm --num_runs=8 --image=x", "slurm does not use --image"),
        ("--target=slurm --num_runs=8 --volume=x", "slurm does not use --volume"),
        ("--target=slurm --num_runs=8 --name=Bad_Name", "--name is 'Bad_Name'"),
        ("--target=slurm --num_runs=8 --accelerator=;rm", "not valid: gres"),
        ("--target=jobset --num_runs=8 --out=gs://b/r", "--image is missing"),
        ("--target=jobset --num_runs=8 --image=x", "--out is 'missing'"),
        ("--target=jobset --num_runs=8 --image=x --out=/mnt", "--out is '/mnt'"),
        ("--target=jobset --num_runs=8 --image=x --out=ftp://b", "unknown kind"),
        ("--target=jobset --num_runs=8 --image=img --out=gs://b --accelerator=4x4", "'4x4'"),
        ("--target=jobset --num_runs=8 --image=A.B/c --out=gs://b", "image"),
        ("--target=skypilot --num_runs=8", "--out is 'missing'"),
        ("--target=skypilot --num_runs=8 --out=gs://b --accelerator=none", "jobs need one"),
        ("--target=skypilot --num_runs=8 --out=gs://b --volume=/d", "pass a URL"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, part):
    code, _, err = command(capsys, *arguments.split(), f"--to={tmp_path / 'files'}")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert part in err, err
    assert not list(tmp_path.rglob("*"))


def test_help_has_its_own_flags_and_those_of_run(capsys):
    code, text, _ = command(capsys, "--help")
    assert code == 0 and "--runs_per_job" in text and "--sweep" in text


def test_the_schemas_are_schemas():
    for path in (check.HERE / "schemas").glob("*.json"):
        check.jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))
        assert path.stem in check.SCHEMAS.values()


def test_the_container_file_copies_what_there_is():
    text = (check.HERE / "Dockerfile").read_text()
    words = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ENTRYPOINT", "CMD"}
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} == words
    for line in lines:
        if line[0] == "COPY":
            assert (ROOT / line[1]).exists()
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines()]
    assert {line[1] for line in lines if line[0] == "COPY"} <= set(kept)
    assert ["ENTRYPOINT", '["python",', '"-m"]'] in lines and ["USER", "runner"] in lines


class Cluster:
    """A node of a SLURM cluster: a folder with a fake python and scontrol on PATH."""

    def __init__(self, folder, python):
        self.folder = folder
        for name, text in {"python": python, "scontrol": 'echo "$@" >> "$LOG"\n'}.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (folder / name).chmod(0o755)
        _, texts = make("slurm", "--num_runs=8", "--runs_per_job=4")
        (folder / "array.sbatch").write_text(texts["array.sbatch"])
        self.environment = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "LOG": str(folder / "log"),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "1",
        }

    def start(self):
        words = ["bash", str(self.folder / "array.sbatch")]
        return subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE, text=True)

    def log(self):
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("code,requeued", [(0, False), (42, True), (2, False), (3, False)])
def test_a_task_is_requeued_when_it_was_interrupted(tmp_path, code, requeued):
    cluster = Cluster(tmp_path, f'echo "$@"\nexit {code}\n')
    with cluster.start() as process:
        shown, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert "-m experiments.run" in shown and "--seed_offset=4 --num_seeds=4" in shown
    assert cluster.log() == ("requeue 77_1\n" if requeued else "")


SAVES = """\
trap 'sleep 0.3; echo saved >> "$LOG"; exit 42' TERM
echo ready
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("program,log", [(SAVES, "saved\nrequeue 77_1\n"),
                                         ("echo ready\nexec sleep 60\n", "requeue 77_1\n")],
                         ids=["listens", "not yet"])  # fmt: skip
def test_the_notice_of_the_end_reaches_the_process(tmp_path, program, log):
    cluster = Cluster(tmp_path, program)
    with cluster.start() as process:
        assert process.stdout.readline() == "ready\n"
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert time.monotonic() - begin < 10
    assert process.returncode == (42 if "saved" in log else 143) and cluster.log() == log


def test_a_notice_before_there_is_a_process_is_not_lost(tmp_path):
    cluster = Cluster(tmp_path, "exec sleep 60\n")
    path = tmp_path / "array.sbatch"
    path.write_text(broken(path.read_text(), "child=$!\n", "kill -TERM $$\nchild=$!\n"))
    begin = time.monotonic()
    with cluster.start() as process:
        process.communicate(timeout=20)
    assert time.monotonic() - begin < 15
    assert process.returncode == 143 and cluster.log() == "requeue 77_1\n"
