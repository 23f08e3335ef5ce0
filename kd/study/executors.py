"""What carries out the steps of a study: processes of this machine, a Ray cluster, or jobs of Slurm.

An executor runs one command line at a time that it is given, and says how it ended:

    start(step)  begins a Step (kd/study/step.py); returns a job
    poll(job)    None while it runs; then (error as text or '', whether its worker was lost: it may be started again)
    stop(job)    ends it at once
    threads(n)   the processor's threads for each of n steps at once; None: those that the step finds
    devices(k)   names of GPUs, each k times: steps get one each; None: steps get none from here
    terminal     whether steps can write to the terminal of the study
    pause        seconds between two looks at its jobs

What depends on what, and what is started again, is decided in kd/study/schedule.py, for all alike.
"""

import os
import secrets
from functools import cached_property

from kd.errors import UserError, nearest, need
from kd.study import step as step_module
from kd.study.step import Process, Worker, run


class Local:
    """Processes of this machine."""

    terminal, pause = True, 0.1
    worker = None

    def start(self, step):
        if step.log or not Worker.possible or self.worker and self.worker.error_file:  # one of several at once
            return Process(step)
        if not (self.worker and self.worker.takes(step)):
            self.worker = Worker(step)
        return self.worker.start(step)

    def poll(self, process):
        return process.poll()

    def stop(self, process):
        process.stop()

    def threads(self, count):
        return max(1, cores() // count) if count > 1 else None

    def devices(self, per_device):
        return visible_devices() * per_device or None


def cores():
    """The number of processor threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices():
    """Names of the CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES has them; [] without any.

    A user may have set it, to numbers or to names of GPUs and of parts of them (GPU-..., MIG-...).
    """
    import torch
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if named is None else (name.strip() for name in named.split(","))
    return list(names)[:count]


class Ray:
    """Workers of a Ray cluster: of the one at RAY_ADDRESS, else of one that is made of this machine for the study."""

    terminal, pause = False, 0.1

    def __init__(self, per_device=1):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers; read at the import
        os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # on a busy machine it starts slowly
        os.environ.setdefault("RAY_worker_niceness", "0")  # its own 15 is for services beside other work
        self.ray, self.per_device = need("ray", "ray"), per_device

    @cached_property
    def nodes(self):
        """The resources of each machine of the cluster, which is connected or made at the first use."""
        address = os.environ.get("RAY_ADDRESS") or "local"
        # of this machine alone; steps hand each other files, and no objects
        settings = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": 2 ** 27,
                    "_node_ip_address": "127.0.0.1"} if address == "local" else {}
        try:
            self.ray.init(address, log_to_driver=False, logging_level="ERROR", **settings)
        except Exception as error:  # Exception itself, too
            raise UserError(f"Ray does not start: {(str(error) or type(error).__name__).splitlines()[0]}",
                            "Without RAY_ADDRESS it is started on this machine. --executor local needs no Ray.") \
                from error
        self.ray.cloudpickle.register_pickle_by_value(step_module)  # a worker imports nothing of the project
        self.run = self.ray.remote(max_retries=0)(run)  # kd/study/schedule.py starts it again
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def start(self, step):
        gpus = 1 / self.per_device if step.gpu and any(node.get("GPU") for node in self.nodes) else 0
        return self.run.options(num_cpus=int(step.environment["OMP_NUM_THREADS"]), num_gpus=gpus).remote(step)

    def poll(self, job):
        if not self.ray.wait([job], timeout=0)[0]:
            return None
        try:
            return self.ray.get(job)
        except self.ray.exceptions.RayError as error:
            return f"its worker was lost ({type(error).__name__})", True

    def stop(self, job):
        self.ray.cancel(job, force=True)

    def threads(self, count):
        processors = [int(node.get("CPU", 0)) for node in self.nodes]
        return max(1, min(max(processors), sum(processors) // count))

    def devices(self, per_device):
        return None  # Ray gives them


class Slurm:
    """Jobs of Slurm, by submitit."""

    terminal, pause = False, 2  # a look is one at files that several machines share

    def __init__(self, logs, options, cluster="slurm"):
        """logs: the folder below which submitit has its files. options: {name: value} of its update_parameters().

        cluster: another one of submitit's, for tests. UserError for options that it does not have.
        """
        self.submitit, self.cluster = need("submitit", "slurm"), cluster
        need("cloudpickle", "slurm").register_pickle_by_value(step_module)  # a job imports nothing of the project
        # submitit unpickles what it finds there: a new name, that nobody knew who wrote into the study's folder before
        self.folder = logs / f"slurm_{secrets.token_hex(8)}"
        self.options = {"timeout_min": 60, **options}
        self.make(self.options)

    def make(self, options):
        """submitit's executor with these options."""
        try:
            executor = self.submitit.AutoExecutor(self.folder, self.cluster)
        except RuntimeError as error:
            raise UserError("there is no Slurm here: the command srun is not found",
                            "Run the study on a machine that submits jobs, or with --executor local.") from error
        general = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "name")
        known = [key for key in {*general, *self.submitit.SlurmExecutor._valid_parameters()}
                 if key not in ("nodes", "ntasks_per_node")]  # one process writes a run
        for key, value in options.items():
            if key not in known:
                raise UserError(f"--slurm: there is no option {key!r} for a step",
                                nearest(key, known) or f"There are {', '.join(sorted(known))}.")
            try:
                executor.update_parameters(**{key if key in general else f"slurm_{key}": value})
            except (AssertionError, TypeError, ValueError) as error:
                raise UserError(f"--slurm {key}={value}: {str(error).splitlines()[0]}",
                                "For instance --slurm partition=gpu timeout_min=120 mem_gb=16") from error
        return executor

    def start(self, step):
        options = self.options if step.gpu else {key: value for key, value in self.options.items()
                                                 if "gpu" not in key and key != "gres"}
        return self.make(options).submit(run, step)

    def poll(self, job):
        if not job.done():
            return None
        try:
            return job.result()
        except (self.submitit.core.utils.UncompletedJobError, self.submitit.core.utils.FailedJobError):
            return f"its worker was lost ({job.state})", True

    def stop(self, job):
        job.cancel(check=False)

    def threads(self, count):
        return None  # those of the job

    def devices(self, per_device):
        return None  # those of the job
