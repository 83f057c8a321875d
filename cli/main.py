"""The `wsssfast` command: subcommands are imported when they are used, so help is instant."""

import ctypes
import os
import signal
import sys
import threading
from difflib import get_close_matches
from importlib import import_module

import click

from wsssfast.errors import INTERRUPTED, WsssError

# name -> (module, attribute, one line of help)
COMMANDS = {
    "demo": ("demo", "demo", "The whole pipeline on the embedded data set."),
    "dataset": ("dataset", "dataset", "Check a data set, count it, or write the synthetic one."),
    "train": ("train", "train", "Train the classifier on image labels."),
    "export-cams": ("export", "export_cams", "CAMs of a data set into shards."),
    "train-affinity": ("affinity", "train_affinity", "Train AffinityNet on CAM shards."),
    "export-labels": ("labels", "export_labels", "Masks from CAM shards into label shards."),
    "train-seg": ("segment", "train_seg", "Train a segmenter on label shards."),
    "predict": ("predict", "predict", "Masks of images from a trained segmenter."),
    "evaluate": ("evaluate", "evaluate", "Score shards against masks."),
    "ablate": ("ablate", "ablate", "Score many settings in one pass over the images."),
    "convert": ("convert", "convert", "Shards to .npy, PNG, COCO RLE and VOC's archive, and back."),
    "inspect": ("shards", "inspect", "What a folder of shards holds."),
    "verify": ("shards", "verify", "Check every byte of a folder of shards."),
    "report": ("report", "report", "One HTML file that shows what the pipeline did."),
    "bench": ("bench", "bench", "Time the kernels against PyTorch's own on this machine."),
    "reproduce": ("reproduce", "reproduce", "The paper's whole pipeline on VOC or COCO."),
    "price": ("price", "price", "What every stage costs here: images/s, hours, memory."),
    "doctor": ("doctor", "doctor", "What this machine offers, and what will be used."),
}


_ARENAS = -8  # glibc's M_ARENA_MAX


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in COMMANDS and ctx.resilient_parsing:  # to complete a line
            return None
        if cmd_name not in COMMANDS:
            near = get_close_matches(cmd_name, COMMANDS, 1)
            told = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {cmd_name!r}.{told}", ctx)
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"wsssfast.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
@click.version_option(package_name="wsssfast")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn image-level labels into pixel labels (WSSS): fast, exact, at data-set scale.

    Completion of commands and options in bash (zsh and fish alike):
    eval "$(_WSSSFAST_COMPLETE=bash_source wsssfast)"

    \b
    Example:
      wsssfast demo
      wsssfast dataset check --dataset folder --data-root photos
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _interrupt(number: int, frame: object) -> None:
    """A scheduler's SIGTERM ends a run as Ctrl-C does."""
    raise KeyboardInterrupt


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread: what that meets on a full disk, the run itself tells."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def _keep_memory_flat() -> None:
    """Over the many sizes of a data set's images, memory would grow by 30 % (docs/export.md)."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # of 1024 shapes' code
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose and "MALLOC_ARENA_MAX" not in os.environ:  # glibc: one arena, not one a thread
        choose(_ARENAS, 1)


def run() -> None:
    """Entry point: one line on stderr and an exit code for everything a user can mend."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.excepthook = _thread_failed
    _keep_memory_flat()
    try:
        main(prog_name="wsssfast", standalone_mode=False)
    except WsssError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.code)
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} -h`)" if error.ctx else ""
        click.echo(f"Error: {error.format_message()}{where}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {where}{error.strerror or error}.", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; run the same command again to continue.", err=True)
        sys.exit(INTERRUPTED)
