"""Serve a page to relight in: upload a picture or clip, turn a light, compare, download."""

import os
import signal
import tempfile
from pathlib import Path

from drender import cli
from drender.config import DTYPES
from drender.errors import InputError
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling.options import CHECKPOINT


def main(words: list[str] | None = None, prog: str | None = None) -> None:
    """Serve the page until interrupted; `words` are the command line's, by default this process's."""
    top = cli.Parser(prog=prog, description=__doc__)
    top.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in")
    top.add_argument("--port", type=int, default=7860, help="port to listen on")
    top.add_argument("--inverse", type=cli.path, metavar="CHECKPOINT", help=f"{CHECKPOINT} (the built-in model)")
    top.add_argument("--forward", type=cli.path, metavar="CHECKPOINT", help="likewise (the built-in model)")
    top.add_argument("--dtype", choices=DTYPES, help="dtype of the computation (float32 on CPUs, else bfloat16)")
    size_help = "size that clips are fitted to (the model's)"
    top.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size_help)
    top.add_argument("--frames", type=int, default=24, metavar="N", help="frames of a clip that are read")
    top.add_argument("--max-upload", type=float, default=200, metavar="MB", help="largest upload")
    args = top.parse_args(words)
    if args.frames < 1 or not 0 < args.max_upload < 1e6:
        raise InputError("--frames and --max-upload: must be more than 0, and --max-upload less than 1e6")
    if not 0 < args.port < 2**16:
        raise InputError(f"--port {args.port}: must be 1 to 65535")
    if args.size and (min(args.size) < 64 or any(side % 64 for side in args.size)):
        raise InputError(f"--size {args.size[0]} {args.size[1]}: must be multiples of 64")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no temporary files
    with tempfile.TemporaryDirectory(prefix="drender-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")  # before Gradio is imported
        from drender.app.page import App, serve

        inverse = InverseRenderer.load(args.inverse, args.dtype)
        forward = ForwardRenderer.load(args.forward, args.dtype)
        size = tuple(args.size or inverse.config.size)
        print(f"serving http://{args.host}:{args.port}", flush=True)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print(f"everyone who reaches {args.host} can use this page; it has no password", flush=True)
        serve(App(inverse, forward, Path(folder), size, args.frames), args.host, args.port, args.max_upload)
