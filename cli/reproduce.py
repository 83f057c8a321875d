"""`wsssfast reproduce`."""

import json
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsssfast.cli.options import device_option, pick_device, table, write_json
from wsssfast.cli.paths import FILE, PLANNED, ROOT
from wsssfast.errors import WORKER_FAILED, WsssError
from wsssfast.parse import json_of, toml_of

if TYPE_CHECKING:
    from wsssfast.data.dataset import Dataset
    from wsssfast.reproduce import Plan, Step

_TABLES = ("train", "ablate", "export-cams", "train-affinity", "export-labels", "train-seg",
           "predict")  # fmt: skip
_SPLITS = ("train-split", "score-split", "val-split")


def _recipe(name: str, changes: Path | None) -> dict[str, Any]:
    """The shipped recipe with a file's changes in it."""
    shipped = Path(str(resources.files("wsssfast.recipes"))) / "reproduce" / f"{name}.toml"
    recipe = toml_of(shipped.read_text(encoding="utf-8"))
    if changes is None:
        return recipe
    try:
        found = toml_of(changes.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WsssError(f"Expected a TOML file at {changes}: {error}") from error
    for key, value in found.items():
        if key in _TABLES and isinstance(value, dict):
            recipe[key] = {**recipe.get(key, {}), **value}
        elif key in _SPLITS and isinstance(value, str):
            recipe[key] = value
        else:
            raise WsssError(
                f"Expected tables of options and names of splits in {changes}, found {key!r}.",
                f"Tables: {', '.join(_TABLES)}; splits: {', '.join(_SPLITS)}.",
            )
    return recipe


@click.command()
@click.argument("what", type=click.Choice(["voc", "coco"]))
@click.option("--data-root", "root", type=ROOT, required=True, help="Folder of the data set.")
@click.option("--labels", type=FILE, help="Image labels: a .json, .csv or .npy file.")
@click.option("--out", type=FILE, required=True, help="Folder of everything that is made.")
@click.option("--pretrained", default="timm", show_default=True,
              help="ImageNet weights of the classifier: a file, timm (a download) or none.",
)  # fmt: skip
@click.option("--resnet38", metavar="FILE|none", required=True,
              help="Weights of ResNet38, from which AffinityNet and segmenter start; none: they "
              "start from the classifier's ViT instead.")  # fmt: skip
@click.option("--changes", type=FILE,
              help="TOML file: tables of options by command, that win over the paper's.",
)  # fmt: skip
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True,
              help="GPUs that share each step.")  # fmt: skip
@click.option("--price-only", is_flag=True,
              help="Say what it would take and the command line of each step, and end.",
)  # fmt: skip
@click.option("--seconds", default=10.0, show_default=True, help="To price each step for.")
@device_option
def reproduce(
    what: str,
    root: Path,
    labels: Path | None,
    out: Path,
    pretrained: str,
    resnet38: str,
    changes: Path | None,
    gpus: int,
    price_only: bool,
    seconds: float,
    device: str,
) -> None:
    """The paper's whole pipeline on VOC 2012 or COCO 2014: from image labels to its tables.

    Prices itself first: images/s measured here, hours and disk. Then it runs one command after the
    other, each told as it begins; interrupted, the same command goes on where it stopped.

    \b
    Example:
      wsssfast reproduce voc --data-root VOCdevkit/VOC2012 --resnet38 res38_cls.pth --out paper
    """
    from wsssfast.data import open_dataset
    from wsssfast.files import output_folder
    from wsssfast.reproduce import Plan, run_steps

    recipe = _recipe(what, changes)
    named = ("--labels", str(labels)) if labels else ()
    data = ("--dataset", what, "--data-root", str(root), *named)
    weights = None if resnet38 == "none" else Path(resnet38)
    if weights and not weights.is_file():
        raise WsssError(
            f"Expected weights of ResNet38 at {weights}, found none.",
            "docs/affinity.md says where they are published; none goes without.",
        )
    dataset = open_dataset(what, root, recipe["train-split"], labels)
    test = open_dataset(what, root, recipe["val-split"], labels)
    output_folder(out, "what is made")
    plan = Plan(recipe, data, what == "coco", out, pretrained, weights, device)
    steps = plan.steps()
    _require_options(steps)
    _price(plan, dataset, len(test), seconds, device, again=price_only)
    _tell_price(out, dataset, len(test), gpus)
    if price_only:
        click.echo("\n".join(step.told(gpus) for step in steps))
    else:
        sys.exit(run_steps(steps, out, gpus, click.echo))


def _require_options(steps: "list[Step]") -> None:
    """Refuse mistakes in any command's options before the first one runs."""
    from wsssfast.cli.main import main

    for step in steps:
        group: Any = main
        *groups, name = step.name.split()
        for part in groups:
            group = group.get_command(click.Context(main), part)
        command = group.get_command(click.Context(group), name)
        command.make_context(step.name, list(step.words), obj=PLANNED)


def _price(
    plan: "Plan", dataset: "Dataset", test_images: int, seconds: float, device: str, again: bool
) -> None:
    """Leaves `price.json`; one that is there is kept where the same was priced, unless `again`."""
    from wsssfast.bench.pipeline import STAGES, PriceOptions, price, to_json
    from wsssfast.bench.report import machine
    from wsssfast.cli.options import progress

    place = pick_device(device)
    stages = tuple(stage for stage in STAGES if stage != "export-labels crf")
    sizes = sorted(dataset.image_size(item) for item in dataset.items[::100])
    width, height = sizes[len(sizes) // 2]
    options = PriceOptions(
        stages=stages, arch=plan.recipe["train"].get("arch", PriceOptions.arch),
        trunk="resnet38" if plan.resnet38 else "vit",
        classes=len(dataset.class_names), images=len(dataset), test_images=test_images,
        size=(height, width), device=place, seconds=seconds,
    )  # fmt: skip
    path = plan.out / "price.json"
    if not again and _options_of(path) == json.loads(json.dumps(asdict(options))):
        return
    with progress("price", len(stages)) as advance:
        found = price(options, advance, advance.begin)
    failed = [one for one in found if one.error]
    if failed:
        raise WsssError(
            f"Expected every stage to run; {failed[0].stage} did not: {failed[0].error}.",
            code=WORKER_FAILED,
        )
    write_json({**machine(place), **to_json(options, found)}, str(path))


def _options_of(path: Path) -> Any:
    """What an earlier price was measured with; None where there is none that can be read."""
    try:
        found = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("options") if isinstance(found, dict) else None


def _tell_price(out: Path, dataset: "Dataset", test_images: int, gpus: int) -> None:
    from wsssfast.reproduce import disk_bytes

    stages = json_of((out / "price.json").read_text(encoding="utf-8"))["stages"]
    table(
        f"{len(dataset):,} images to learn from, {test_images:,} to segment",
        ["step", "images/s", "hours"],
        [[s["stage"], f"{s['images_per_second']:.3g}", f"{s['hours']:.1f}"] for s in stages],
    )
    hours = sum(stage["hours"] for stage in stages)
    disk = disk_bytes(dataset, test_images, sum(stage["parameters"] for stage in stages))
    shared = f", divided by about {gpus} GPUs" if gpus > 1 else ""
    click.echo(
        f"{hours:.1f} hours by the paper's schedules on one device{shared}; {disk / 1e9:.1f} GB. "
        "Scoring is not in it, nor what --changes changes but for the arch."
    )
