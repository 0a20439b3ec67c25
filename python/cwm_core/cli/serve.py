"""Implement `cwm serve`."""

from __future__ import annotations

import argparse
import ipaddress
import os
from pathlib import Path
from typing import Any

from .models import chosen_model, load_model
from .options import OK, add_cache, add_model, add_tokenizer, add_verb, port, positive, say, seconds

KEY_VARIABLE = "CWM_API_KEY"


def add_serve(verbs: Any) -> None:
    """Add `cwm serve`."""
    parser = add_verb(
        verbs,
        _serve,
        "Serve a model over HTTP with the OpenAI protocol.",
        "cwm serve runs/tiny --port 8000",
        "By default, only this machine can reach the server. With another --host, clients must send the API key of\n"
        f"--api-key-file or of the variable {KEY_VARIABLE}. Ctrl-C and SIGTERM stop the server after the running\n"
        "requests.",
    )
    add_model(parser)
    add_tokenizer(parser)
    parser.add_argument("--name", metavar="NAME", help="name of the model in requests (default: the folder's name)")
    parser.add_argument("--host", metavar="HOST", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=port, metavar="N", default=8000, help="port to listen on, 0 for a free one (default: 8000)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="PyTorch device, such as cuda (default: cpu)")
    parser.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="sequences generated together (default: 64)"
    )
    parser.add_argument(
        "--max-queue", type=positive, default=256, metavar="N", help="sequences that may wait (default: 256)"
    )
    parser.add_argument(
        "--max-length", type=positive, metavar="N", help="maximum tokens of prompt and answer (default: the model's)"
    )
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="maximum tokens of an answer (default: no limit)"
    )
    parser.add_argument(
        "--clamp-max-tokens",
        action="store_true",
        help="reduce a max_tokens that is too large instead of refusing the request",
    )
    add_cache(parser)
    parser.add_argument(
        "--max-seconds", type=seconds, default=600.0, metavar="S", help="time limit of a request (default: 600)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=seconds,
        default=30.0,
        metavar="S",
        help="time for running requests when the server stops (default: 30)",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of web pages that may use the server, such as https://example.org, or '*' for all; may be "
        "repeated (default: pages of this machine; with an API key, all pages)",
    )
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key that clients must send")
    key.add_argument("--no-api-key", action="store_true", help="serve other machines without a key")


def _serve(args: argparse.Namespace) -> int:
    from cwm_core import inference
    from cwm_core.inference import server
    from cwm_core.model import SHIPPED_NAME

    key = _api_key(args)
    if key is None and not args.no_api_key and not _is_loopback(args.host):
        args.error(f"other machines can reach {args.host}: use --api-key-file FILE or --no-api-key")
    listener = server.listen(args.host, args.port)  # fail before the slow loading of the model
    with listener:
        loaded, tokenizer = load_model(chosen_model(args), args.device, args.tokenizer)
        cache_bytes = (args.cache_gib or 0) << 30 or free_memory(args.device) * 8 // 10
        engine = inference.Engine(
            loaded, tokenizer, max_batch=args.batch_size, max_length=args.max_length, max_cache_bytes=cache_bytes
        )
        limits = server.ServerLimits(
            max_queue=args.max_queue,
            max_tokens=args.max_tokens,
            clamp_max_tokens=args.clamp_max_tokens,
            request_seconds=args.max_seconds,
        )
        name = args.name or (args.model.resolve().name if args.model else SHIPPED_NAME)
        app = server.create_app(
            engine, tokenizer, name=name, limits=limits, api_key=key, cors_origins=args.cors_origin or None
        )
        host, port = listener.getsockname()[:2]
        say(args, f"{name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1; press Ctrl-C to stop")
        server.serve(app, listener, stall_seconds=limits.stall_seconds, drain_seconds=args.drain_seconds)
    say(args, "stopped")
    return OK


def _api_key(args: argparse.Namespace) -> str | None:
    if args.no_api_key:
        return None
    key = args.api_key_file.read_text("utf-8").strip() if args.api_key_file else os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise ValueError(f"{args.api_key_file or KEY_VARIABLE}: the API key is empty")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_memory(device: str) -> int:
    """Return the number of free bytes on a device, after loading the model."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        available = Path("/proc/meminfo").read_text("ascii").partition("MemAvailable:")[2].split()[0]
        return int(available) << 10
    except (OSError, IndexError):  # not Linux: half of the memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
