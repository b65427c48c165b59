"""`sirt export` and `sirt push`: a run's student for others, in a folder or on the hub."""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from sirt_ray.cli.options import add_debug, examples
from sirt_ray.storage import object_store
from sirt_ray.storage.uri import user_path

EXPORT_EXAMPLES = """\
examples:
  sirt export runs/quickstart exported                   # the student that was kept last
  sirt export runs/mine exported --merge                 # LoRA merged into its base
  sirt export runs/mine exported --stage round_01 --data # with demonstrations and pairs
"""
PUSH_EXAMPLES = """\
examples:
  hf auth login                                          # once, or HF_TOKEN=...
  sirt push runs/mine me/my-student --private --license apache-2.0
  sirt export runs/mine exported; $EDITOR exported/README.md; sirt push exported me/my-student
  sirt push runs/mine me/my-student --revision round-2   # a branch of an existing repository
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser(
        "export",
        help="a run's student as a folder for transformers, vLLM and peft, with its model card",
        description="Write a run's student, with tokenizer, model card and the job that made it, to"
        " a new folder. A student that was trained with LoRA is an adapter unless it is merged.",
        **examples(EXPORT_EXAMPLES),
    )
    export.add_argument("run", type=object_store.to_local_path, metavar="RUN_DIR")
    export.add_argument(
        "out", type=user_path, metavar="OUT", help="a folder that does not exist yet"
    )
    _add_what(export)
    add_debug(export)
    export.set_defaults(command=_export, stopped="stopped; nothing was written")

    push = commands.add_parser(
        "push",
        help="a run's student, or an exported folder, to the Hugging Face hub",
        description="Upload a run's student, or a folder of `sirt export`, to a new repository of"
        " the Hugging Face hub. The token comes from HF_TOKEN or `hf auth login`.",
        **examples(PUSH_EXAMPLES),
    )
    push.add_argument("source", type=object_store.to_local_path, metavar="RUN_DIR|FOLDER")
    push.add_argument("repo", metavar="REPO_ID", help="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="only the owner may see it")
    push.add_argument(
        "--revision",
        metavar="BRANCH",
        help="a branch of the repository, which may exist already, `main` too",
    )
    _add_what(push)
    add_debug(push)
    push.set_defaults(
        command=_push, stopped="stopped; what was uploaded is there once the upload is whole"
    )


def _add_what(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--merge", action="store_true", help="after LoRA: the whole model instead of the adapter"
    )
    command.add_argument(
        "--stage", metavar="round_NN", help="another student than the one that was kept last"
    )
    command.add_argument(
        "--data",
        action="store_true",
        help="demonstrations and pairs as well, for TRL, LLaMA-Factory and `datasets`",
    )
    command.add_argument(
        "--license",
        metavar="ID",
        help="of the model, as the hub names it (default: to be filled in in README.md)",
    )


def _export(arguments: argparse.Namespace) -> int:
    _write(arguments, arguments.run, arguments.out)
    Console().print(f"It is in {arguments.out}", soft_wrap=True)
    return 0


def _write(arguments: argparse.Namespace, run_dir: Path, out: Path) -> None:
    from sirt_ray.publish.card import UNLICENSED
    from sirt_ray.publish.folder import export_student
    from sirt_ray.publish.students import find_student

    student = find_student(run_dir, arguments.stage)
    licence = arguments.license or UNLICENSED
    export_student(student, out, arguments.merge, arguments.data, licence)
    text = f"{student.version} of {object_store.to_uri(run_dir)}, as it was evaluated"
    if licence == UNLICENSED:
        text += ". Fill in its licence: in README.md, or by --license"
    Console().print(text, soft_wrap=True)


def _push(arguments: argparse.Namespace) -> int:
    from sirt_ray.publish import hub

    source: Path = arguments.source
    target = hub.Target(arguments.repo, arguments.private, arguments.revision)
    hub.check(target)
    if object_store.read(source / "config.yaml") is not None:
        with tempfile.TemporaryDirectory(prefix="sirt-push-") as folder:
            out = Path(folder) / "model"
            _write(arguments, source, out)
            address = hub.upload(out, target)
    else:
        address = hub.upload(source, target)
    Console().print(f"{object_store.to_uri(source)} is at {address}", soft_wrap=True)
    return 0
