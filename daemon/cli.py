"""The command line. Each command imports what it needs when it is called, so that `lineward --help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

from lineward.daemon import monitor_commands, service_commands
from lineward.daemon.dataset_commands import dataset_app
from lineward.daemon.ledger_commands import ledger_app
from lineward.daemon.model_commands import models_app
from lineward.daemon.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from lineward.daemon.review_commands import review_app

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="lineward",
    help="Visual inspection beside the line: camera in, one answer per part out over MQTT.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0 fine, 1 the thing checked is not fine, 2 wrong usage or bad input."""
    try:
        sys.exit(app(args=arguments, standalone_mode=False) or 0)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "lineward"
        message = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
        if message:
            fail(f"{message}; see `{path} --help`")
        sys.exit(2)  # called without arguments: the help is on the screen already
    except typer.Abort:
        sys.exit(130)
    except OSError as error:
        fail(_where(error))
    except Exception as error:
        if not _is_ours(error):
            raise
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def _is_ours(error: Exception) -> bool:
    """Tell an error that Lineward put into words for its user from one that nobody expected."""
    # Their classes are not imported until one is raised: numpy and OpenCV take longer than most commands.
    from lineward.drivers.camera import CameraError

    return isinstance(error, CameraError) or (
        isinstance(error, ValueError) and type(error).__module__.startswith("lineward.")
    )


def _where(error: OSError) -> str:
    """Say which file the system refused, and what to do when it is one that Lineward keeps for itself."""
    from lineward.daemon.progress import cache_dir

    if not error.filename or not error.strerror:
        return str(error)
    said = f"{error.filename}: {error.strerror}"
    if isinstance(error.filename, str) and Path(error.filename).is_relative_to(cache_dir()):
        said += "; features of images are kept there: make it writable, or set XDG_CACHE_HOME to a folder that is"
    return said


def fail(error: object) -> None:
    """Say in one line what is wrong and leave with 2."""
    sys.stderr.write(f"lineward: {error}\n")
    sys.exit(2)


def version_wanted(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from lineward import __version__

        typer.echo(f"lineward {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=version_wanted, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual inspection beside the line: camera in, one answer per part out over MQTT."""


@app.command(epilog="Example: `lineward demo --parts 200 --headless`")
def demo(
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after this many seconds.")] = None,
    parts: Annotated[int | None, typer.Option(min=1, help="Stop after this many parts.")] = None,
    rate: Annotated[float, typer.Option("--rate", metavar="HZ", min=0.1, max=200, help="Parts per second.")] = 5.0,
    headless: Annotated[bool, typer.Option("--headless", help="No review page, no progress bars, no colours.")] = False,
    product: Annotated[str, typer.Option(help="Which simulated product passes by.")] = "bracket",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", help="Where model, ledger and images are kept.", show_default="$XDG_CACHE_HOME/lineward/demo"
        ),
    ] = None,
) -> None:
    """Run a whole line on this machine: simulated camera, model, inspection, MQTT broker, review page."""
    from lineward.daemon.demo import run_demo

    run_demo(seconds=seconds, parts=parts, rate_hz=rate, headless=headless, product=product, folder=folder)


@app.command(epilog="Example: `lineward run --config /etc/lineward/lineward.toml`")
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0, help="After a replay: seconds to wait until the broker has acknowledged all; after SIGTERM 0.4."
        ),
    ] = 10.0,
) -> None:
    """Run the service: inspect until told to stop."""
    from lineward.daemon import log, service
    from lineward.daemon.config import load_config

    with service.stop_on_signals() as stop, service.reload_on_hangup(stop) as reloads:
        loaded = load_config(config)
        log.set_up(loaded.log.level, parts=loaded.log.parts)
        service.run(loaded, stop, drain_s=drain_s, path=config, reloads=reloads)
        service.leave()


@app.command(epilog="Example: `lineward check --config line.toml`")
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check configuration, storage, model, camera and broker; say what is wrong and what to do."""
    from lineward.daemon.check import check_all
    from lineward.daemon.config import load_config

    findings = check_all(load_config(config))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            mark = typer.style("ok  ", fg="green") if finding.fine else typer.style("FAIL", fg="red")
            typer.echo(f"{mark} {finding.what:<8s} {finding.text}")
    raise typer.Exit(0 if all(finding.fine for finding in findings) else 1)


cameras_app = typer.Typer(
    help="List the GenICam cameras that the producers see, or tune one.",
    invoke_without_command=True,
    epilog="Example: `lineward cameras --producer viky`",
)
app.add_typer(cameras_app, name="cameras")

ProducerOption = Annotated[
    list[str] | None,
    typer.Option(help='A GenTL producer (.cti file), or "viky"; repeat for several. Else GENICAM_GENTL64_PATH.'),
]


@cameras_app.callback()
def cameras(context: typer.Context, producer: ProducerOption = None, as_json: JsonOption = False) -> None:
    """List the GenICam cameras that the producers see, or tune one."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from lineward.drivers import registry

    found = registry.discover("genicam", {"producers": producer or []})
    if as_json:
        print_json([asdict(info) for info in found])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("serial", "user id", "model", "vendor", "access", "transport", "producer")
    for info in found:
        file = Path(info.producer).name
        said = (info.serial, info.user_id, info.name, info.vendor, info.access, info.transport, file)
        table.add_row(*map(Text, said))  # a camera's words are no markup
    Console().print(table if found else "no camera found: check power, cable and the producer's own viewer")


@cameras_app.command(
    epilog="Example: `lineward cameras tune --serial 0 --producer viky --set PixelFormat=Mono8 --save camera.toml`"
)
def tune(
    serial: Annotated[str, typer.Option(help="Serial number of the camera.")],
    producer: ProducerOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Write a feature; repeat, in order.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Measure for so long; Ctrl-C ends it sooner.")] = 10.0,
    save: Annotated[Path | None, typer.Option(help="Write camera and settings as TOML.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Grab from one camera and show rate, losses, latency, and brightness and sharpness per zone."""
    from rich.console import Console

    from lineward.daemon import service
    from lineward.daemon import tune as tuning
    from lineward.drivers.process import CameraProcess

    settings = dict(tuning.parse_setting(text) for text in set_ or [])
    if save is not None:
        tuning.check_place(save)
    selector = {"producers": producer or [], "serial": serial}
    with service.stop_on_signals() as stop:
        live = not as_json and sys.stderr.isatty()
        camera = CameraProcess("genicam", selector)
        readings = tuning.tune(camera, settings, seconds=seconds, stop=stop, live=live)
    if as_json:
        print_json(readings.to_json())
    else:
        Console().print(readings.table())
    if save is not None:
        tuning.save_settings(save, tuning.settings_toml("genicam", selector, readings.applied))


@app.command(epilog="Example: `lineward train --data images/ --out tiles.lward`")
def train(
    data: Annotated[Path, typer.Option(help="Folder with good/** and defect/TYPE/**, and groups.csv if there is one.")],
    out: Annotated[Path, typer.Option(help="The bundle to write (.lward).")],
    product: Annotated[str | None, typer.Option(help="Product name; else the name of the bundle.")] = None,
    tier: Annotated[
        str,
        typer.Option(
            metavar="quick|full",
            help="quick: frozen backbone, seconds on a CPU; full: tuned with torch as well (extra train), minutes.",
        ),
    ] = "quick",
    base: Annotated[
        Path | None,
        typer.Option(help="A bundle to start from; --data then holds the new images alone.", show_default=False),
    ] = None,
    base_data: Annotated[
        Path | None,
        typer.Option(help="The folder the base was trained from, if this machine's cache no longer knows it."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise the network: less time for each part; --tier quick alone."),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Input of the model in pixels; else chosen from the data. A smaller one is quicker.",
        ),
    ] = None,
    synthetic: Annotated[
        int,
        typer.Option(
            min=0,
            max=5000,
            metavar="N",
            help="Make up N defects on good images to learn from, for a product without any real one; 200 to 400.",
        ),
    ] = 0,
    overlays: Annotated[
        Path | None,
        typer.Option(
            help="Training folder of a similar product, whose defects --synthetic pastes.", show_default=False
        ),
    ] = None,
    false_rejects: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=500,
            metavar="N",
            help="Good parts of 1,000 that may fail; the thresholds are chosen for it.",
            show_default="10, or what --base was asked for",
        ),
    ] = None,
    escapes: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=500,
            metavar="N",
            help="Defective parts of 1,000 that may pass.",
            show_default="20, or what --base was asked for",
        ),
    ] = None,
    reviews: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help="Good parts of 1,000 that may go to review; it wins over --escapes.",
            show_default="100, or what --base was asked for",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a model from labelled images and write it as one file; a line on this machine goes first."""
    from lineward.daemon.allocator import keep_freed
    from lineward.daemon.priority import step_back
    from lineward.daemon.training import train_with_progress
    from lineward.models.naming import product_of

    step_back()
    if tier == "full":
        keep_freed()
    report = train_with_progress(
        data,
        out,
        product=product_of(product, out),
        tier=tier,
        seed=seed,
        quiet=as_json,
        base=base,
        base_data=base_data,
        int8=int8,
        size=size,
        synthetic=synthetic,
        overlays=overlays,
        per_1000={"max_false_reject": false_rejects, "max_escape": escapes, "max_review": reviews},
    )
    if as_json:
        print_json(report.to_json())
    else:
        for line in report.sentences():
            typer.echo(line)


@app.command(epilog="Example: `lineward evaluate --model tiles.lward --data images/`")
def evaluate(
    model: Annotated[Path, typer.Option(help="A bundle (.lward).")],
    data: Annotated[Path, typer.Option(help="Folder with good/** and defect/TYPE/**.")],
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with plots and the worst mistakes; it needs no other file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge labelled images and report error rates with their 95 % intervals."""
    from lineward.daemon.reporting import evaluate_with_page
    from lineward.daemon.training import evaluate_with_progress

    if html is not None:
        judged = evaluate_with_page(model, data, html, quiet=as_json)
    else:
        judged = evaluate_with_progress(model, data, quiet=as_json)
    if as_json:
        print_json(judged.metrics.to_json())
    else:
        for line in judged.sentences():
            typer.echo(line)


@app.command(epilog="Example: `lineward predict --model tiles.lward part.png`")
def predict(
    model: Annotated[Path, typer.Option(help="A bundle (.lward).")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Judge image files; one line per image."""
    from lineward.daemon.training import predict_files

    predictions, errors = predict_files(model, images)
    if as_json:
        print_json(predictions)
    else:
        for row in predictions:
            defect = "     -" if row["defect_probability"] is None else f"{row['defect_probability']:6.1%}"
            typer.echo(
                f"{row['verdict'].upper():<9s} {row['confidence']:6.1%}  defect {defect} "
                f"{row['ms']:7.1f} ms  {row['file']}"
            )
    for error in errors:
        typer.echo(f"lineward: {error}", err=True)
    raise typer.Exit(2 if errors else 0)


@app.command(epilog="Example: `lineward bench --frames 300`")
def bench(
    config: Annotated[
        Path | None,
        typer.Option(help="Bench this station's camera, running freely, and its model; else a simulated one, 5 MP."),
    ] = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames to inspect.")] = 300,
    width: Annotated[int, typer.Option(min=64, help="Image width without --config.")] = 2448,
    height: Annotated[int, typer.Option(min=64, help="Image height without --config.")] = 2048,
    as_json: JsonOption = False,
) -> None:
    """Measure each stage of the line, and the line against a bare ONNX Runtime loop in the same run."""
    from lineward.daemon.bench import print_report, run_bench

    report = run_bench(config, frames=frames, width=width, height=height)
    if as_json:
        print_json(report)
    else:
        print_report(report)


@app.command(epilog="Example: `lineward recipe flange --config line.toml`")
def recipe(
    name: Annotated[str, typer.Argument(help="Recipe, or the product of its model; `default` is [inspection].")],
    config: ConfigOption = DEFAULT_CONFIG,
    wait_s: Annotated[float, typer.Option("--wait-s", min=1, help="How long to wait until it is in force.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Change a running station over to another recipe; the old one judges until the new one is in force."""
    from lineward.daemon.config import load_config
    from lineward.daemon.control import change_over

    answer = change_over(load_config(config).storage.root, name, timeout_s=wait_s)
    if as_json:
        print_json(answer)
    elif answer["ok"]:
        typer.echo(f"{name} is in force")
    else:
        typer.echo(f"{name} is not in force: {answer['reason']}; the station's log says more", err=True)
    sys.exit(0 if answer["ok"] else 1)


@app.command("plc-check", epilog="Example: `lineward plc-check --config line.toml`")
def plc_check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...", help="Recorded payloads, as `mosquitto_sub -v` prints them.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Station whose names are used.", show_default=str(DEFAULT_CONFIG))
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that PLCs can read the longest payloads of this station, or recorded ones, by their vendors' limits."""
    from lineward.daemon.plc_check import run_check

    report = run_check(config if config is not None or not DEFAULT_CONFIG.exists() else DEFAULT_CONFIG, files or [])
    if as_json:
        print_json(report.to_json())
    else:
        from rich.console import Console

        console = Console(soft_wrap=False)
        for each in report.tables():
            console.print(each, crop=False)  # a topic is never cut off
        for line in report.sentences():
            typer.echo(line)
    raise typer.Exit(0 if report.fine else 1)


app.add_typer(dataset_app, name="dataset")
app.add_typer(models_app, name="models")
service_commands.register(app)
monitor_commands.register(app)
app.add_typer(ledger_app, name="ledger")
app.add_typer(review_app, name="review")
