"""`lineward models`: the store of models, and models made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lineward.daemon.options import DEFAULT_CONFIG, JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lineward.models.store import Entry

Choice = TypeVar("Choice", bound=str)

models_app = typer.Typer(
    help="List, show, promote and roll back models; import a model made elsewhere.",
    no_args_is_help=True,
    epilog="Example: `lineward models list --root data`",
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Station whose store it is (TOML).", show_default=str(DEFAULT_CONFIG)),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="Storage folder (storage.root) instead of --config.", show_default=False),
]


class CommandError(ValueError):
    """The command cannot be understood; the message says what to write instead."""


def storage_root(config: Path | None, root: Path | None) -> Path:
    """Find the storage folder that a command means.

    Raises
    ------
    CommandError
        Both options, or none and there is no configuration in the usual place.
    """
    if root is not None and config is not None:
        raise CommandError("--root and --config both name a store; give one of them")
    if root is not None:
        return root
    if config is None and not DEFAULT_CONFIG.exists():
        raise CommandError(f"which store? give --config FILE or --root FOLDER; there is no {DEFAULT_CONFIG}")
    from lineward.daemon.config import load_config

    return load_config(config or DEFAULT_CONFIG).storage.root


@models_app.command("list", epilog="Example: `lineward models list --root data`")
def list_(
    product: Annotated[str | None, typer.Argument(metavar="[PRODUCT]", help="Only this product.")] = None,
    config: ConfigOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every model in the store; leave with 1 when a file is damaged."""
    from lineward.models import store

    folder = storage_root(config, root)
    entries = store.list_models(folder, product)
    if product is not None and not entries:
        names = ", ".join(sorted({entry.product for entry in store.list_models(folder)}))
        there = f"; there are models of {names}" if names else ""
        raise store.StoreError(f"{folder / 'models'}: no product {product!r}{there}")
    if as_json:
        print_json([entry.to_json() for entry in entries])
    elif not entries:
        typer.echo(f"no models in {folder / 'models'}; add one with `lineward models promote FILE.lward`")
    else:
        _print_table(entries)
        for entry in entries:
            if entry.trouble:
                typer.echo(f"FAIL {entry.trouble}")
    raise typer.Exit(1 if any(entry.trouble for entry in entries) else 0)


@models_app.command("show", epilog="Example: `lineward models show bracket --root data`")
def show(
    product: Annotated[str, typer.Argument(metavar="PRODUCT", help="Product.", show_default=False)],
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Version; else the current one.")] = None,
    config: ConfigOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model was made from, what it was measured to do, and who promoted it; 1 when it is damaged."""
    from lineward.models import store

    folder = storage_root(config, root)
    entry = store.show(folder, product, version)
    versions = store.history(folder, product)
    decisions = [record for record in store.audit(folder) if record.get("product") == product]
    if as_json:
        manifest = json.loads(entry.manifest.model_dump_json()) if entry.manifest else None
        print_json({**entry.to_json(), "history": versions, "audit": decisions, "manifest": manifest})
    else:
        for line in _sentences(entry, versions):
            typer.echo(line)
        for record in decisions:
            before = f" (before: {record['before']})" if record.get("before") else ""
            typer.echo(f"  {record['when']}  {record['who']}  {record['what']} {record['version']}{before}")
    raise typer.Exit(1 if entry.trouble else 0)


@models_app.command("promote", epilog="Example: `lineward models promote bracket.lward --root data`")
def promote(
    model: Annotated[
        list[str],
        typer.Argument(metavar="FILE.lward|PRODUCT VERSION", help="A bundle, or a version in the store."),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Also what its own training marked as not promotable.")
    ] = False,
    config: ConfigOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model judge from now on; a running service takes it over between two parts."""
    from lineward.models import store

    folder = storage_root(config, root)
    match model:
        case [file] if file.endswith(".lward"):
            entry = store.add(folder, Path(file))
            product, version = entry.product, entry.version
        case [product, version] if not product.endswith(".lward"):
            pass
        case _:
            raise CommandError(
                "promote what? give one file, `lineward models promote FILE.lward`, or a product and a version in the "
                "store, `lineward models promote PRODUCT VERSION`"
            )
    before = store.history(folder, product)[:1]
    entry = store.promote(folder, product, version, force=force)
    _say_change(entry, before, as_json=as_json)


@models_app.command("rollback", epilog="Example: `lineward models rollback bracket --root data`")
def rollback(
    product: Annotated[str, typer.Argument(metavar="PRODUCT", help="Product.", show_default=False)],
    config: ConfigOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the model judge that judged before the current one."""
    from lineward.models import store

    folder = storage_root(config, root)
    before = store.history(folder, product)[:1]
    _say_change(store.rollback(folder, product), before, as_json=as_json)


def _say_change(entry: Entry, before: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({**entry.to_json(), "before": before[0] if before else None})
    elif list(before) == [entry.version]:
        typer.echo(f"{entry.product}: {entry.version} was the current model already")
    else:
        typer.echo(f"{entry.product}: {entry.version} judges now (before: {before[0] if before else 'none'})")


def _print_table(entries: Sequence[Entry]) -> None:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Column, Table
    from rich.text import Text

    from lineward.models.store import not_promotable

    names = ("product", "version", "made", "tier", "AUROC", "found", "state")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=box.SIMPLE_HEAD, pad_edge=False)
    for entry in entries:
        states = ["current"] if entry.current else []
        if entry.manifest is None:
            state = Text(", ".join([*states, "damaged"]), style="red")
            table.add_row(Text(entry.product), Text(entry.version), "", "", "", "", state)
            continue
        held = entry.manifest.holdout
        states += ["not promotable"] if not_promotable(entry.manifest) else []
        table.add_row(
            Text(entry.product),
            Text(entry.version),
            Text(entry.manifest.created[:10]),
            entry.manifest.tier,
            "-" if held.auroc is None else f"{held.auroc:.3f}",
            "-" if held.detection_at_2pct_fr is None else f"{held.detection_at_2pct_fr:.0%} of {held.n_defect}",
            ", ".join(states) or "ok",
        )
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(needed, console.width)).print(table)  # what has to be typed again is never cut off
    typer.echo("found: defective parts found when 2 % of the good ones are rejected")


def _sentences(entry: Entry, versions: Sequence[str]) -> list[str]:
    from lineward.models.store import not_promotable

    lines = [f"{entry.product} {entry.version}" + (" (current)" if entry.current else ""), f"  {entry.path}"]
    if entry.manifest is None:
        return [*lines, f"  FAIL {entry.trouble}"]
    manifest = entry.manifest
    data = manifest.data
    lines += [
        f"  sha256 {entry.sha256}",
        f"  made {manifest.created}, tier {manifest.tier}, {manifest.model.backbone}, {manifest.model.head}",
        f"  from {data.n_good} good and {data.n_defect} defective images of {data.groups} parts"
        + (f", started from {manifest.parent_version}" if manifest.parent_version else ""),
        *(f"  {sentence}" for sentence in manifest.holdout.sentences()),
        *(f"  Note: {warning}." for warning in data.warnings),
    ]
    reason = not_promotable(manifest)
    lines += [f"  NOT PROMOTABLE: {reason}"] if reason else []
    return [*lines, f"  judged before: {', '.join(versions[1:]) or 'none'}"]


@models_app.command(
    "import",
    epilog="Example: `lineward models import net.onnx --out tiles.lward --kind softmax --classes good,crack "
    "--scaling imagenet --data images/`",
)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The bundle to write (.lward).", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(
            help="What its scores are: softmax, logits, sigmoid, sigmoid-logits or anomaly (higher is worse).",
            show_default=False,
        ),
    ],
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Names of the score's columns, in order.")
    ] = None,
    good: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Classes of good parts; else good, ok, pass, normal.")
    ] = None,
    scaling: Annotated[
        str | None,
        typer.Option(help="Range of float pixels: unit (0..1), imagenet, symmetric (-1..1) or raw (0..255)."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="M,M,M", help="Instead of --scaling: mean of pixels 0..1, per channel.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="S,S,S", help="Instead of --scaling: deviation of pixels 0..1, per channel.")
    ] = None,
    colour: Annotated[str | None, typer.Option(help="Order of channels it was trained on: rgb, bgr or mono.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width, where the file leaves them open.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Order of axes, where the shape does not tell: nchw or nhwc.")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(metavar="OUTPUT", help="Output with the scores, where there are several.")
    ] = None,
    map_: Annotated[
        str | None,
        typer.Option("--map", metavar="OUTPUT", help="Output with the anomaly map, where there are several."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Anomaly score from which its maker calls a part defective; without --data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled images, good/** and defect/TYPE/**: calibrate, choose thresholds, test."),
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Pictures without labels to check the wrapped model on.")] = None,
    product: Annotated[str | None, typer.Option(help="Product name; else the name of the bundle.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Wrap a model made elsewhere (ONNX) into a bundle that says exactly what the original says."""
    from lineward.daemon.progress import cache_dir, progress_bar
    from lineward.daemon.training import read_size
    from lineward.models.foreign import SCALINGS, Declaration
    from lineward.models.importing import import_model
    from lineward.models.naming import product_of

    declared = Declaration(
        kind=_choice("--kind", kind, "softmax", "logits", "sigmoid", "sigmoid-logits", "anomaly"),
        classes=_names(classes),
        good=_names(good),
        scaling=_choice_if_given("--scaling", scaling, *SCALINGS),
        mean=_numbers("--mean", mean),
        deviation=_numbers("--std", std),
        colour=_choice_if_given("--colour", colour, "rgb", "bgr", "mono"),
        size=None if size is None else read_size(size, least=1),
        layout=_choice_if_given("--layout", layout, "nchw", "nhwc"),
        scores=scores,
        anomaly_map=map_,
        threshold=threshold,
    )
    with progress_bar(quiet=as_json) as progress:
        report = import_model(
            file,
            out,
            declared,
            product=product_of(product, out),
            samples=samples,
            data=data,
            cache_dir=cache_dir(),
            progress=progress,
            seed=seed,
        )
    if as_json:
        print_json(report.to_json())
    else:
        for line in report.sentences():
            typer.echo(line)


def _choice(option: str, value: str, *choices: Choice) -> Choice:
    for choice in choices:
        if choice == value:
            return choice
    raise CommandError(f"{option} {value}: one of {', '.join(choices)} is wanted")


def _choice_if_given(option: str, value: str | None, *choices: Choice) -> Choice | None:
    return None if value is None else _choice(option, value, *choices)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError as error:
        raise CommandError(f"{option} {text}: numbers separated by commas are wanted, such as 0.485,0.456,0.406") from (
            error
        )
