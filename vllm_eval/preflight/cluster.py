"""Whether the ray engine can be asked for; what the cluster holds is seen at its start."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vllm_eval.findings import Finding, error, ok

if TYPE_CHECKING:
    from vllm_eval.config import Config


def check_ray(config: Config) -> list[Finding]:
    """A finding for the ray engine; nothing for another one without its options."""
    if config.engine != "ray":
        given = config.ray_address is not None or config.replicas is not None
        what = f"replicas are asked for, but the engine is {config.engine}"
        todo = "give --engine ray, or neither --ray-address nor --replicas"
        return [error("ray", what, todo)] if given else []
    if find_spec("ray") is None:
        return [error("ray engine", "needs ray, not installed", "pip install 'vllm_eval[ray]'")]
    if config.engine_args.get("distributed_executor_backend") == "ray":
        what = "a replica of the ray engine lies within one node"
        todo = "give --engine vllm for a model across nodes (docs/cluster.md)"
        return [error("engine_args.distributed_executor_backend", what, todo)]
    count = f"{config.replicas} replicas" if config.replicas else "as many replicas as it holds"
    return [ok("ray", f"cluster {config.ray_address or 'of this machine'}, {count}")]
