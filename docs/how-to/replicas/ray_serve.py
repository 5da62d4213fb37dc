"""`bertgpt serve` as a Ray Serve application: serve run ray_serve:app model=/models/reviews replicas=4

Ray starts the replicas, on as many machines as the cluster has, and replaces those that die. Each replica loads the
model in its own process. The routes are those of `bertgpt serve`.
"""

from pydantic import BaseModel
from ray import serve
from starlette.types import ASGIApp


class Arguments(BaseModel):
    """What `serve run` passes on."""

    model: str
    replicas: int = 2
    cpus: float = 1


def app(arguments: Arguments) -> serve.Application:
    """The application that `serve run ray_serve:app` deploys."""

    def build() -> ASGIApp:  # called in each replica, so that nothing but the path is sent there
        from bertgpt.inference.model import load
        from bertgpt.serving.app import build_app
        from bertgpt.serving.batched import BatchedServed

        return build_app([BatchedServed("model", load(arguments.model))])

    @serve.deployment(
        num_replicas=arguments.replicas,
        max_ongoing_requests=64,  # lets requests meet in one batch
        ray_actor_options={"num_cpus": arguments.cpus},
        graceful_shutdown_timeout_s=75,
    )
    @serve.ingress(build)
    class BertGPT:
        """The application in one process."""

    return BertGPT.bind()
