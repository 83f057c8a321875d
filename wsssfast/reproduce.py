"""`reproduce`: the whole pipeline as a list of commands, each of which continues by itself."""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.data.dataset import Dataset
from wsssfast.errors import INTERRUPTED, SOME_UNREADABLE, WsssError
from wsssfast.files import publish
from wsssfast.parse import json_of
from wsssfast.shards.format import canonical

_STATE = "done.json"
_SHARED = {"train", "ablate", "export-cams", "train-affinity", "export-labels", "train-seg",
           "predict"}  # fmt: skip
_MASK_BYTES = 3000  # of a label shard an image (docs/shards.md)
_MAP_BYTES = 1000  # of a CAM shard an image, class and scale
_RUN_BYTES = 20  # a parameter: the weights, and the state that a run resumes from with Adam


@dataclass(frozen=True)
class Step:
    """One command of the pipeline.

    Attributes:
        name: of the command, `evaluate labels` for instance.
        words: its arguments.
    """

    name: str
    words: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether several GPUs can share it."""
        return self.name in _SHARED

    def line(self, gpus: int = 1) -> list[str]:
        """What a shell would run."""
        module = ["-m", "wsssfast", *self.name.split(), *self.words]
        if gpus == 1 or not self.shared:
            return [sys.executable, *module]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        return [sys.executable, *launch, *module]

    def told(self, gpus: int = 1) -> str:
        """What a user would type."""
        command = ["wsssfast"]
        if gpus > 1 and self.shared:
            command = ["torchrun", "--standalone", f"--nproc-per-node={gpus}", "-m", "wsssfast"]
        return shlex.join([*command, *self.name.split(), *self.words])


@dataclass(frozen=True)
class Plan:
    """What is reproduced, and with what.

    Attributes:
        recipe: splits, and tables of options by command (`wsssfast/recipes/reproduce`).
        data: options that name the data set, without --split.
        coco: whether the scores belong to the paper's COCO tables.
        out: folder of everything.
        pretrained: of the classifier: a file, or timm.
        resnet38: file of ResNet38's weights; None: the classifier's ViT is used in its place.
        device: auto, cpu or cuda.
    """

    recipe: dict[str, Any]
    data: tuple[str, ...]
    coco: bool
    out: Path
    pretrained: str
    resnet38: Path | None
    device: str = "auto"

    def steps(self) -> list[Step]:
        """The commands, in order."""
        out, recipe = self.out, self.recipe
        train, score, val = (
            (*self.data, "--split", recipe[f"{name}-split"]) for name in ("train", "score", "val")
        )
        classifier = f"{out}/classifier/last.safetensors"
        trunk = ("--pretrained", str(self.resnet38)) if self.resnet38 else (
            "--trunk", "vit", "--pretrained", classifier)  # fmt: skip
        found = [
            self._step("train", *train, "--pretrained", self.pretrained,
                       "--out", f"{out}/classifier"),
            self._step("ablate", *score, "--checkpoint", classifier, "--out", f"{out}/ablation",
                       "--json", f"{out}/ablation.json", "--report", f"{out}/ablation.html"),
            self._step("export-cams", *train, "--checkpoint", classifier, "--out", f"{out}/cams"),
            self._step("train-affinity", *train, "--cams", f"{out}/cams", *trunk,
                       "--out", f"{out}/affinity"),
            self._step("export-labels", *train, "--cams", f"{out}/cams",
                       "--affinity", f"{out}/affinity/last.safetensors", "--out", f"{out}/labels"),
            self._step("evaluate labels", f"{out}/labels", *train, "--json", f"{out}/labels.json"),
            self._step("train-seg", *train, "--label-shards", f"{out}/labels", *trunk,
                       "--out", f"{out}/seg"),
            self._step("predict", *val, "--checkpoint", f"{out}/seg/last.safetensors",
                       "--out", f"{out}/masks"),
            self._step("evaluate seg", f"{out}/masks", *val, "--json", f"{out}/seg.json",
                       "--report", f"{out}/masks.html"),
        ]  # fmt: skip
        measured = {"price": "price", "coco-seg": "seg"} if self.coco else {
            "price": "price", "ablation": "ablation", "labels": "labels", "seg": "seg"}  # fmt: skip
        if not score[-1]:
            found = [step for step in found if step.name != "ablate"]
            measured.pop("ablation", None)
        given = [f"--measured={name}={out}/{file}.json" for name, file in measured.items()]
        return [*found, Step("report", ("--paper", *given, "--out", f"{out}/paper.html"))]

    def _step(self, name: str, *words: str) -> Step:
        """A command with the recipe's options of it."""
        options: list[str] = []
        for key, value in self.recipe.get(name, {}).items():
            if isinstance(value, bool):
                options.append(f"--{key}" if value else f"--no-{key}")
            else:
                texts = map(str, value if isinstance(value, list) else [value])
                options += [f"--{key}", ",".join(texts)]
        device = ("--device", self.device) if name in _SHARED else ()
        return Step(name, (*words, *device, *options))


def disk_bytes(dataset: Dataset, test_images: int, parameters: int) -> int:
    """About what everything takes: shards of CAMs and masks, and the runs' checkpoints.

    Args:
        dataset: that is trained on and labelled.
        test_images: that are segmented.
        parameters: of all networks together.
    """
    maps = sum(len(item.labels) for item in dataset)
    return _MAP_BYTES * maps + _MASK_BYTES * (len(dataset) + test_images) + _RUN_BYTES * parameters


def run_steps(
    steps: Sequence[Step], out: Path, gpus: int = 1, tell: Callable[[str], None] = print
) -> int:
    """Run what is not done yet; a step is run again where it or any before it has changed.

    It then refuses what other options left in its folder, as every command does.

    Args:
        steps: in order.
        out: folder of the state.
        gpus: that share what can be shared.
        tell: called with a line before each step.

    Returns:
        The exit code: 0, 3 where a step left unreadable inputs out, 4 where it was interrupted.

    Raises:
        WsssError: a step failed.
    """
    state = out / _STATE
    before = _finished(state)
    done: dict[str, int] = {}
    digest = hashlib.sha256()
    for number, step in enumerate(steps, 1):
        digest.update(canonical([step.name, *step.words]).encode())
        key = f"{number:02d} {step.name} {digest.hexdigest()[:16]}"
        place = f"{number} of {len(steps)}, {step.name}"
        if key in before:
            tell(f"{place}: done")
            done[key] = before[key]
            continue
        tell(f"{place}: {step.told(gpus)}")
        code = _run(step.line(gpus))
        if code == INTERRUPTED:
            return code
        if code not in (0, SOME_UNREADABLE):
            raise WsssError(
                f"Expected `wsssfast {step.name}` to end well, found exit code {code}.",
                "Mend what it says and run the same command again.",
                code=code if code > 0 else 1,
            )
        done[key] = code
        text = json.dumps(done, indent=1)
        publish(state, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
    return max(done.values(), default=0)


def _finished(state: Path) -> dict[str, int]:
    """Step -> exit code of the steps that are done."""
    try:
        found = json_of(state.read_text(encoding="utf-8")) if state.is_file() else {}
        return {str(key): int(code) for key, code in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WsssError(
            f"Expected the list of finished steps in {state}, found something else: {error}.",
            "Remove it: steps that are done say so and end at once.",
        ) from error


def _run(line: Sequence[str]) -> int:
    """The exit code of a command; its process group is its own: it hears of an end from here only.

    Ctrl-C and SIGTERM become one SIGTERM for it, at which it saves what it has.
    """
    interrupted = False
    with subprocess.Popen(line, process_group=0) as process:
        while process.poll() is None:
            try:
                process.wait(1)  # a signal that came just before a wait without end would be lost
            except subprocess.TimeoutExpired:
                continue
            except KeyboardInterrupt:
                interrupted = True
                process.terminate()
    return INTERRUPTED if interrupted else process.returncode
