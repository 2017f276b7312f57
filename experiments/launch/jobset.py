"""A GKE JobSet behind a Kueue queue: every index of one Job has a single-host TPU v5e slice."""

from gentle_jax import errors

from ..cli import exit_codes
from . import plan as plan_lib

CHIPS = {"1x1": 1, "2x2": 4, "2x4": 8}  # slices of one host
MACHINES = {"1x1": "ct5lp-hightpu-1t", "2x2": "ct5lp-hightpu-4t", "2x4": "ct5lp-hightpu-8t"}
QUEUE = "user-queue"
LABEL = "kueue.x-k8s.io/queue-name"
GRACE = 120  # seconds between SIGTERM and SIGKILL: one chunk of training, one checkpoint
RETRIES = 3  # of an index whose process ended as no exit code of ours says


def rules():
    """Returns the pod failure rules: what the exit codes of `experiments.run` mean."""
    codes = lambda *values: {
        "containerName": "run",
        "operator": "In",
        "values": list(values),
    }
    return [
        # the node went away: begin again elsewhere, it resumes
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        {
            "action": "Ignore",
            "onExitCodes": codes(exit_codes.INTERRUPTED),
        },
        # nothing that a second try would mend
        {"action": "FailIndex", "onExitCodes": codes(exit_codes.USAGE, exit_codes.DIVERGED)},
    ]


def pod(plan, lines):
    """Returns the pod spec that runs shell lines on one slice."""
    container = {
        "name": "run",
        "image": plan.image,
        "command": ["bash", "-c", "\n".join(["set -euo pipefail", *lines]) + "\n"],
        "env": [
            # without a TPU the process fails by --require, it does not train on the CPU
            {"name": "JAX_PLATFORMS", "value": "tpu,cpu"},
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/scratch/cache"},
            {"name": "XDG_CACHE_HOME", "value": "/scratch"},
        ],
        "resources": {
            "requests": {"google.com/tpu": CHIPS[plan.accelerator]},
            "limits": {"google.com/tpu": CHIPS[plan.accelerator]},
        },
        "volumeMounts": [{"name": "work", "mountPath": "/scratch"}],
    }
    volumes = [{"name": "work", "emptyDir": {}}]
    if plan.volume:
        container["volumeMounts"].append({"name": "data", "mountPath": "/data"})
        claim = {"claimName": plan.volume}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": plan.accelerator,
        },
        "securityContext": {"fsGroup": 1000},  # the image's user writes to the volumes
        "containers": [container],
        "volumes": volumes,
    }


def jobset(plan):
    """Returns the JobSet as a dict: one indexed Job, an index for each job of the plan."""
    lines = plan_lib.seed_lines(plan, "JOB_COMPLETION_INDEX")
    job = {
        "completionMode": "Indexed",
        "completions": plan.jobs,
        "parallelism": plan.parallel,
        "backoffLimitPerIndex": RETRIES,
        "podReplacementPolicy": "Failed",  # never two pods in one run folder
        "podFailurePolicy": {"rules": rules()},
        "template": {"spec": pod(plan, [*lines, f"exec {plan_lib.job_line(plan)}"])},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": plan.name, "labels": {LABEL: plan.queue or QUEUE}},
        "spec": {
            "suspend": True,  # Kueue starts it
            "failurePolicy": {"maxRestarts": 0},  # indices restart by themselves
            "replicatedJobs": [{"name": "seeds", "replicas": 1, "template": {"spec": job}}],
        },
    }


def collect(plan):
    """Returns a Job that fills the volume with the dataset before the sweep."""
    spec = pod(plan, [f"exec {plan_lib.collect_command(plan)}"])
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{plan.name}-data", "labels": {LABEL: plan.queue or QUEUE}},
        "spec": {
            "suspend": True,
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "backoffLimitPerIndex": RETRIES,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules()},
            "template": {"spec": spec},
        },
    }


def kueue(plan):
    """Returns Kueue's objects for an empty cluster: flavour, cluster queue, local queue."""
    api = "kueue.x-k8s.io/v1beta2"
    flavor, cluster_queue = f"tpu-v5e-{plan.accelerator}", f"{plan.name}-tpu"
    quota = {"name": "google.com/tpu", "nominalQuota": CHIPS[plan.accelerator] * plan.parallel}
    labels = {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": plan.accelerator,
    }
    group = {
        "coveredResources": ["google.com/tpu"],
        "flavors": [{"name": flavor, "resources": [quota]}],
    }
    return [
        {
            "apiVersion": api,
            "kind": "ResourceFlavor",
            "metadata": {"name": flavor},
            "spec": {"nodeLabels": labels},
        },
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": cluster_queue},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": plan.queue or QUEUE, "namespace": "default"},
            "spec": {"clusterQueue": cluster_queue},
        },
    ]


def files(plan):
    """Returns {name: text} of everything that the cluster and the user need."""
    if plan.accelerator not in CHIPS:
        raise errors.unknown("--accelerator of jobset", plan.accelerator, CHIPS)
    texts = {
        "jobset.yaml": plan_lib.dump(jobset(plan)),
        "kueue.yaml": "---\n".join(map(plan_lib.dump, kueue(plan))),
    }
    steps = [
        "From the root of the repository, with a cluster (Kubernetes 1.29 or newer) that has",
        f"JobSet, Kueue (0.15 or newer) and nodes of machine type {MACHINES[plan.accelerator]}:",
        "",
        f"docker build -f FOLDER/Dockerfile --build-arg JAX=tpu "
        f"--build-arg STORE={plan_lib.client(plan)} -t {plan.image} .",
        f"docker push {plan.image}",
        "kubectl apply -f FOLDER/kueue.yaml   # an example; leave it out where there is a queue",
    ]
    if plan.volume:
        texts["collect.yaml"] = plan_lib.dump(collect(plan))
        steps += [
            f"kubectl apply -f FOLDER/collect.yaml   # once: fills the claim {plan.volume}",
            f"kubectl wait --for=condition=complete --timeout=-1s job/{plan.name}-data",
        ]
    steps += ["kubectl apply -f FOLDER/jobset.yaml", f"kubectl get jobset {plan.name} -w"]
    steps += [plan_lib.gather_line(plan), ""]
    steps += ["The pods' service account must be allowed to write to the bucket of --out."]
    return texts | {"HOWTO.txt": "\n".join(steps) + "\n"}
