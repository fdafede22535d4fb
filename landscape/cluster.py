"""Spread tasks over the machines of a Ray cluster (extra `cluster`), behind the seam of `workers`."""

import io
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from landscape.workers import Make, pack, unpack

log = logging.getLogger(__name__)

_MAX_DEATHS = 3  # of an actor at one task
_QUEUED = 2  # tasks that an actor has at a time
_PATIENCE = 30.0  # seconds without any result after which it is said aloud


class ClusterWorkers:
    """Actors of a Ray cluster, one per GPU or one per processor, each holding model and data once.

    The package, and the module that defines the model, must be installed on every machine. An actor or a machine that
    dies is replaced, and its tasks are done again.

    Args:
        address: Of a running cluster, `"host:6379"`, `"ray://host:10001"` or `"auto"`; `"local"` starts one here.
        device: `"cuda"` for one actor per GPU of the cluster, None for one per processor.
        workers: How many actors. Default: as many as the cluster has room for now.
        threads: Processor threads of an actor.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no cluster at the address.
        ValueError: The cluster has not what is asked for.
    """

    def __init__(self, address: str, device: str | None = None, workers: int | None = None, threads: int = 1) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES as it is
        try:
            import ray
        except ImportError as error:
            raise ImportError("a cluster needs Ray: pip install 'landscape[cluster]'") from error
        self._ray = ray
        self.threads: int | None = threads
        self._connected = not ray.is_initialized()
        if self._connected:
            _knock(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConnectionError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
        kind = "GPU" if device is not None else "CPU"
        room = int(ray.cluster_resources().get(kind, 0))
        room = room if device is not None else room // threads
        wanted = room if workers is None else workers
        if not 0 < wanted <= room:  # Ray would wait for ever
            self.close()
            raise ValueError(f"the cluster at {address} has room for {room} worker(s) on a {kind}, {wanted} asked for")
        self.devices: Sequence[str | None] = ["cuda:0" if device is not None else None] * wanted

    def __enter__(self) -> "ClusterWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which ends its actors."""
        if self._connected:
            self._ray.shutdown()

    def run(self, make: Make, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Workers.run`."""
        ray = self._ray
        buffer = io.BytesIO()
        pack(make, buffer)
        packed = ray.put(buffer.getvalue())
        on_gpu = self.devices[0] is not None
        # Ray itself does tasks again: what is sent while an actor is being restarted would fail like one that killed it
        deaths = {"max_restarts": -1, "max_task_retries": _MAX_DEATHS - 1}
        remote = ray.remote(num_cpus=self.threads, num_gpus=1 if on_gpu else 0, **deaths)(_Actor)
        actors = [remote.remote(packed, device, self.threads) for device in self.devices]
        running: dict[Any, tuple[Any, int]] = {}
        left = iter(range(len(tasks)))
        heard = time.monotonic()
        try:
            for actor in actors * _QUEUED:
                for i in islice(left, 1):
                    running[actor.do.remote(tasks[i])] = actor, i
            while running:
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_PATIENCE)
                if not ready:
                    log.warning(
                        "no result from the cluster for %.0f s: are its processors taken by other jobs?",
                        time.monotonic() - heard,
                    )
                    continue
                heard = time.monotonic()
                actor, i = running.pop(ready[0])
                try:
                    result = ray.get(ready[0])
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error  # the work's own, not wrapped
                except ray.exceptions.RayActorError as error:
                    raise RuntimeError(
                        f"workers of the cluster died {_MAX_DEATHS} times at one task: out of memory? Use fewer "
                        "workers or a smaller memory budget"
                    ) from error
                for following in islice(left, 1):
                    running[actor.do.remote(tasks[following])] = actor, following
                yield i, result
        finally:
            for actor in actors:
                ray.kill(actor)


class _Actor:
    """What holds model and data on a machine of the cluster."""

    def __init__(self, packed: bytes, device: str | None, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._packed, self._device = packed, device
        self._work: Callable[[Any], Any] | None = None

    def do(self, task: Any) -> Any:
        if self._work is None:  # here, since an error in the constructor would be taken for a death and tried again
            self._work = unpack(self._packed)(self._device)
            self._packed = b""
        return self._work(task)


def _knock(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    place = urlsplit(address if "//" in address else f"//{address}")
    if place.hostname is None or place.port is None:
        return  # "auto", "local"
    try:
        socket.create_connection((place.hostname, place.port), timeout=5).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster at {address}: {error}") from error
