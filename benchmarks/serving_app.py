"""A server of vectors for benchmarks/serving.py: python -m benchmarks.serving_app SIDE MODEL PORT.

All sides run under uvicorn and Starlette with one process, take {"inputs": TEXT} at /embed and answer [[numbers]].
"""

import asyncio
import concurrent.futures
import sys
from collections.abc import Callable
from typing import Any


def ours(side: str, model: str, port: int) -> None:
    """`bertgpt serve`, with or without batching."""
    from bertgpt.inference.model import load
    from bertgpt.serving.app import build_app
    from bertgpt.serving.batched import BatchedServed
    from bertgpt.serving.limits import Limits
    from bertgpt.serving.served import Served
    from bertgpt.serving.server import open_socket, run_server

    kind = Served if side == "unbatched" else BatchedServed
    loaded = load(model, dtype="bfloat16" if side == "bfloat16" else None)
    limits = Limits(max_texts=1000)
    with open_socket("127.0.0.1", port) as listener:
        run_server(build_app([kind("model", loaded)], limits), listener, limits)


def pipeline(model: str) -> Callable[[str], Any]:
    """transformers' pipeline for features, whose states are averaged and normalised."""
    import torch
    import transformers

    run = transformers.pipeline("feature-extraction", model=model, device="cpu", framework="pt")

    def embed(text: str) -> Any:
        with torch.inference_mode():
            states = run(text, return_tensors=True)
            return torch.nn.functional.normalize(states.mean(dim=1), dim=1).numpy()

    return embed


def sentence_transformers(model: str) -> Callable[[str], Any]:
    """`SentenceTransformer.encode`."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")
    return lambda text: loaded.encode([text], show_progress_bar=False)


def peer(side: str, model: str, port: int) -> None:
    """A library in one thread, which is faster on CPUs than several that share the cores."""
    import orjson
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    embed = {"pipeline": pipeline, "sentence-transformers": sentence_transformers}[side](model)
    thread = concurrent.futures.ThreadPoolExecutor(1)

    def work(text: str) -> bytes:
        return orjson.dumps(embed(text), option=orjson.OPT_SERIALIZE_NUMPY)

    async def answer(request: Request) -> Response:
        text = orjson.loads(await request.body())["inputs"]
        body = await asyncio.get_running_loop().run_in_executor(thread, work, text)
        return Response(body, media_type="application/json")

    async def health(request: Request) -> Response:
        return Response(b"{}")

    app = Starlette(routes=[Route("/embed", answer, methods=["POST"]), Route("/health", health)])
    uvicorn.run(app, host="127.0.0.1", port=port, http="h11", log_level="error", access_log=False)


def main() -> None:
    side, model, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    (peer if side in ("pipeline", "sentence-transformers") else ours)(side, model, port)


if __name__ == "__main__":
    main()
